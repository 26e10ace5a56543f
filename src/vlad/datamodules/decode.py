"""Images, masks and frames from files: by content, never by suffix, each failure naming its file."""

from __future__ import annotations

import struct
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlad.datamodules.image_files import IMAGE_SUFFIXES
from vlad.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RowCrop", "image_size", "load_image", "load_mask"]

_BROKEN = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    LookupError,
    TypeError,
    ValueError,
    EOFError,
    MemoryError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)


class RowCrop(NamedTuple):
    """A crop of the rows of an image: number k (from 0) of n.

    Examples:
        >>> RowCrop.parse("1/3").rows(100)
        (33, 66)
        >>> RowCrop.parse("").rows(100)
        (0, 100)
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> RowCrop:
        """Reads "k/n"; "" is the whole image."""
        number, _, of = text.partition("/")
        return cls(int(number), int(of)) if of else cls(0, 1)

    def rows(self, height: int) -> tuple[int, int]:
        """Returns the first row and the row after the last."""
        return height * self.number // self.of, height * (self.number + 1) // self.of


@contextmanager
def _naming(kind: str, path: str) -> Iterator[None]:
    """Turns whatever goes wrong in decoding into one error that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images and damaged metadata
            yield
    except FileNotFoundError as error:
        raise DataError(f"{kind} {path} does not exist (any more)") from error
    except _BROKEN as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        cause = "no known image format" if isinstance(error, UnidentifiedImageError) else cause
        raise DataError(f"cannot read {kind} {path} ({cause}); replace it or remove it") from error


def load_image(
    path: str, *, crop: RowCrop | None = None, frame: int = -1, reader: str = "", near: int = 0
) -> Image.Image:
    """Decodes an image, or a frame of a video, to RGB.

    Args:
        path: File; its content tells the format, whatever its suffix.
        crop: Row crop that is wanted.
        frame: Number of the frame from 0, for videos.
        reader: ``"red"`` reads TIFFs of three samples that call themselves grey (CVC-ClinicDB's) as OpenCV does,
            and so the published code of AdaCLIP and CLIP-AD: the red channel three times. Else in true colour.
        near: Side in pixels that the image will be resized to; JPEGs much larger are decoded at 1/2, 1/4 or 1/8,
            never below one and a half times that. 0: at full size, as the published code does.

    Raises:
        DataError: The file cannot be read as an image.
    """
    with _naming("image", path):
        if frame >= 0:
            from vlad.datamodules.video import read_frame

            image = Image.fromarray(read_frame(path, frame))
        else:
            try:
                opened = Image.open(path)
            except UnidentifiedImageError:
                image = Image.fromarray(_read_strips(path, red=reader == "red"))
            else:
                with opened:
                    if near and opened.format == "JPEG":
                        opened.draft(None, (near + near // 2, near + near // 2))
                    image = _to_rgb(opened)
        if crop is not None and crop.of > 1:
            top, bottom = crop.rows(image.height)
            image = image.crop((0, top, image.width, bottom))
        return image


def image_size(path: str, *, frame: int = -1) -> tuple[int, int]:
    """Returns an image's width and height, from its header where that tells.

    Raises:
        DataError: The file cannot be read as an image.
    """
    if frame < 0:
        try:
            with warnings.catch_warnings(), Image.open(path) as opened:
                warnings.simplefilter("ignore")
                return opened.size
        except _BROKEN:
            pass  # said, or read after all, below
    return load_image(path, frame=frame).size


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts to RGB; of 16 bits the upper 8 count."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.max(initial=0) > 255:
            values = values >> 8
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return image.convert("RGB")


def _read_strips(path: str, *, red: bool) -> np.ndarray:
    """Reads an uncompressed 8-bit TIFF of three samples that calls itself grey; Pillow refuses these.

    Raises:
        UnidentifiedImageError: The file is nothing of the kind.
    """
    data = Path(path).read_bytes()
    if data[:4] not in {b"II*\0", b"MM\0*"}:
        raise UnidentifiedImageError("no known image format")
    order = "<" if data[:2] == b"II" else ">"
    sizes = {1: "B", 3: "H", 4: "I"}
    tags: dict[int, tuple[int, ...]] = {}
    (at,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, at)
    for entry in range(at + 2, at + 2 + 12 * entries, 12):
        tag, kind, count = struct.unpack_from(order + "HHI", data, entry)
        if kind in sizes and count <= 65536:
            width = struct.calcsize(order + sizes[kind]) * count
            place = entry + 8 if width <= 4 else struct.unpack_from(order + "I", data, entry + 8)[0]
            tags[tag] = struct.unpack_from(f"{order}{count}{sizes[kind]}", data, place)
    columns, rows = tags.get(256, (0,))[0], tags.get(257, (0,))[0]
    plain = tags.get(259, (1,)) == (1,) and tags.get(277) == (3,) and set(tags.get(258, (8,))) == {8}
    if not plain or tags.get(284, (1,)) != (1,) or not 0 < columns * rows <= 1 << 27:
        raise UnidentifiedImageError("no known image format")
    pixels = b"".join(data[start : start + size] for start, size in zip(tags[273], tags[279], strict=True))
    if len(pixels) < rows * columns * 3:
        raise OSError(f"image file is truncated: {len(pixels)} of {rows * columns * 3} bytes")
    image = np.frombuffer(pixels, np.uint8, rows * columns * 3).reshape(rows, columns, 3)
    return np.repeat(image[..., :1], 3, axis=2) if red else image


def load_mask(
    path: str, size: tuple[int, int] | None = None, *, threshold: int = 0, crop: RowCrop | None = None
) -> np.ndarray:
    """Decodes a mask to bool (H, W): True where a pixel's grey value is above the threshold.

    Args:
        path: Mask file, whose palette and class-id images are read by their raw values; or a folder, whose masks
            are united (MVTec LOCO).
        size: Width and height of the image it belongs to, for the check that they agree.
        threshold: Largest value that still means normal.
        crop: Row crop that is wanted; ``size`` is then that of the crop.

    Raises:
        DataError: Unreadable, or of another size than its image.
    """
    if Path(path).is_dir():
        parts = sorted(part for part in Path(path).iterdir() if part.suffix.lower() in IMAGE_SUFFIXES)
        if not parts:
            raise DataError(f"mask folder {path} is empty")
        masks = [load_mask(str(part), size, threshold=threshold, crop=crop) for part in parts]
        if any(mask.shape != masks[0].shape for mask in masks):
            raise DataError(f"the masks in {path} are of different sizes")
        return np.logical_or.reduce(masks)
    with _naming("mask", path), Image.open(path) as opened:
        values = np.asarray(opened if opened.mode in {"P", "L", "1", "I;16", "I"} else opened.convert("L"))
    if crop is not None and crop.of > 1:
        top, bottom = crop.rows(len(values))
        values = values[top:bottom]
    if size is not None and (values.shape[1], values.shape[0]) != size:
        raise DataError(
            f"mask {path} is {values.shape[1]}x{values.shape[0]} pixels, its image {size[0]}x{size[1]}; "
            "give the mask of this image, at its size"
        )
    return values > threshold
