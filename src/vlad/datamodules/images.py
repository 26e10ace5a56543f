"""Images and frames of videos from files, as RGB of 8 bits, turned as a viewer shows them."""

from __future__ import annotations

import os
from typing import IO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from vlad.datamodules.image_files import IMAGE_SUFFIXES
from vlad.datamodules.intensity import is_deep_colour, tell_dark, to_rgb, told_maximum, values_to_rgb
from vlad.datamodules.masks import RowCrop
from vlad.datamodules.opening import (
    PLAIN,
    Reading,
    check_pixels,
    check_size,
    identify,
    load,
    naming,
    source,
)
from vlad.datamodules.orientation import orientation, seen_size, upright
from vlad.datamodules.pages import opened_page
from vlad.datamodules.tiff import TIFF_MARKS, Tags, decode_deep, is_deep, read_strips, tiff_tags
from vlad.datamodules.video import VIDEO_SUFFIXES, read_frame, video_size

__all__ = ["decoded", "image_size", "load_image"]


def load_image(
    path: str,
    *,
    crop: RowCrop | None = None,
    frame: int = -1,
    reader: str = "",
    near: int = 0,
    reading: Reading = PLAIN,
    content: bytes | None = None,
) -> Image.Image:
    """Decodes an image, a page of one, or a frame of a video, to RGB, turned as its EXIF orientation says.

    Args:
        path: File; its content tells the format, whatever its suffix.
        crop: Row crop that is wanted.
        frame: Number of the page or of the frame from 0; -1 for the only one, or the first.
        reader: ``"red"`` reads TIFFs of three samples that call themselves grey (CVC-ClinicDB's) as OpenCV does,
            and so the published code of AdaCLIP and CLIP-AD: the red channel three times. Else in true colour.
        near: Side in pixels that the image will be resized to; JPEGs much larger are decoded at 1/2, 1/4 or 1/8,
            never below one and a half times that. 0: at full size, as the published code does.
        reading: The rules of the run: what is black and white beyond 8 bits, and how many pixels are too many.
        content: The file's bytes, where they have been read already: the file is then not opened again. Videos are.

    Raises:
        DataError: The file cannot be read as an image, is above the limit of pixels, or is none but a folder, FIFO,
            socket or device, which is not opened.
    """
    with naming("image", path):
        if frame >= 0:
            image = _page(path, frame, reader, reading, content)
        else:
            with source(path, content) as file:
                image = _first(file, path, reader, near, reading)
        if crop is not None and crop.of > 1:
            image = _crop_rows(image, *crop.rows(image.height))
        return image


def image_size(
    path: str, *, frame: int = -1, reading: Reading = PLAIN, content: bytes | None = None
) -> tuple[int, int]:
    """Returns an image's width and height as a viewer shows it, from its header where that tells.

    Raises:
        DataError: The file cannot be read as an image.
    """
    with naming("image", path):
        try:
            if frame > 0:
                with opened_page(path, frame, reading, content) as image:
                    return seen_size(image)
            with source(path, content) as file:
                return seen_size(identify(file, path))
        except UnidentifiedImageError:
            if frame >= 0 or path.lower().endswith(tuple(VIDEO_SUFFIXES)):
                return video_size(path)
    return load_image(path, frame=frame, reading=reading, content=content).size


def _first(file: IO[bytes], path: str, reader: str, near: int, reading: Reading) -> Image.Image:
    """Decodes the only page, or the first."""
    try:
        opened = identify(file, path)
    except UnidentifiedImageError:
        file.seek(0)
        if file.read(4) not in TIFF_MARKS:
            raise
        file.seek(0)
        return _refused_tiff(file.read(), path, reader, reading)
    check_pixels(opened, path, reading)
    if near and opened.format in {"JPEG", "MPO"}:
        opened.draft(None, (near + near // 2, near + near // 2))
    return decoded(opened, file, 0, path, reading)


def _page(path: str, frame: int, reader: str, reading: Reading, content: bytes | None) -> Image.Image:
    """Decodes a page of an image, or a frame of a video."""
    try:
        with opened_page(path, frame, reading, content) as opened:
            return decoded(opened, opened.fp, opened.tell(), path, reading)
    except UnidentifiedImageError:
        suffix = os.path.splitext(path)[1].lower()
        if suffix in VIDEO_SUFFIXES or (frame > 0 and suffix not in IMAGE_SUFFIXES):
            return Image.fromarray(read_frame(path, frame))
        if frame > 0:
            raise
    return load_image(path, reader=reader, reading=reading, content=content)


def decoded(
    opened: ImageFile.ImageFile, file: IO[bytes] | None, number: int, path: str, reading: Reading
) -> Image.Image:
    """Loads an image that is opened and converts it: to 8 bits, to RGB, upright.

    Args:
        opened: The image; it may be loaded already.
        file: Its open file, where there is one: of more than 8 bits per colour Pillow gives the upper 8 alone.
        number: The page of it.
        path: Its name, for messages.
        reading: The rules of the run.

    Raises:
        DataError: Nothing tells the range of its values.
    """
    maximum = told_maximum(opened)
    deep = is_deep_colour(opened)
    inverted = _is_white_zero(opened)
    if deep and file is not None and (reading.intensity_range is not None or maximum not in {0, 65535}):
        turned = orientation(opened, loaded=False)
        file.seek(0)
        image = values_to_rgb(decode_deep(file.read(), number), path, reading, maximum=maximum)
    else:
        load(opened)
        turned = orientation(opened)
        image = to_rgb(opened, path, reading, maximum=maximum, inverted=inverted)
        if deep and not maximum:
            largest = int(np.asarray(image).max(initial=0))
            if 0 < largest < 16:
                tell_dark(path, 256 * largest + 255)
    return upright(image, turned)


def _is_white_zero(image: ImageFile.ImageFile) -> bool:
    """Whether 0 is white in a TIFF of more than 8 bits; Pillow minds it in those of 8 alone."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(262) == 0 and (image.mode == "F" or image.mode.startswith("I"))


def _refused_tiff(data: bytes, path: str, reader: str, reading: Reading) -> Image.Image:
    """Decodes TIFFs that Pillow does not know: of deep floats, of floats in colour, and such as CVC-ClinicDB's.

    Raises:
        UnidentifiedImageError: The file is nothing of the kind.
    """
    tags = tiff_tags(data)
    check_size(tags.get(256, (0,))[0], tags.get(257, (0,))[0], path, reading)
    if not is_deep(tags):
        image = Image.fromarray(read_strips(data, tags, red=reader == "red"))
    else:
        image = values_to_rgb(decode_deep(data), path, reading, whole=set(tags[258]) == {16} and _is_unsigned(tags))
    return upright(image, tags.get(274, (1,))[0])


def _is_unsigned(tags: Tags) -> bool:
    return set(tags.get(339, (1,))) == {1}


def _crop_rows(image: Image.Image, top: int, bottom: int) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * (bottom - top) > limit:  # Pillow would refuse, or warn, by its own limit
        return Image.fromarray(np.asarray(image)[top:bottom])
    return image.crop((0, top, image.width, bottom))
