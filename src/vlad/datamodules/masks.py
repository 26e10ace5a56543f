"""Masks from files: which pixels of an image are anomalous."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from vlad.datamodules.image_files import IMAGE_SUFFIXES, printable
from vlad.datamodules.masks_of import split_masks
from vlad.datamodules.opening import PLAIN, Reading, check_pixels, identify, load, naming, source
from vlad.datamodules.orientation import orientation, upright
from vlad.datamodules.pages import numbers_of_pages
from vlad.errors import DataError

__all__ = ["AUTOMATIC", "RowCrop", "load_mask"]

AUTOMATIC = -1
"""Threshold of a mask whose file tells where it lies."""

_AS_STORED = {"P", "L", "1", "I;16", "I"}


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


def load_mask(
    path: str | Sequence[str],
    size: tuple[int, int] | None = None,
    *,
    threshold: int = AUTOMATIC,
    crop: RowCrop | None = None,
    frame: int = -1,
    reading: Reading = PLAIN,
) -> np.ndarray:
    """Decodes a mask to bool (H, W): True where a pixel is anomalous.

    Args:
        path: Mask file; or a folder, whose masks are united (MVTec LOCO), or several files, which are too: as a list,
            or as the JSON list of an index's cell.
        size: Width and height of the image it belongs to, for the check that they agree.
        threshold: Largest grey value that still means normal, as published code compares it: palette and class-id
            images are read by their raw values. :data:`AUTOMATIC`: by the file. That is any value above 0; above half
            of the largest one where the format is lossy; the alpha channel of a mask drawn on a transparent background;
            the colours of one drawn on white.
        crop: Row crop that is wanted; ``size`` is then that of the crop.
        frame: Page of a mask that has several; one of a single page serves for all.
        reading: How many pixels a mask may have.

    Raises:
        DataError: Unreadable, or of another size than its image.
    """
    if isinstance(path, str) and len(several := split_masks(path)) > 1:
        path = several
    if not isinstance(path, str) or Path(path).is_dir():
        parts, where = _parts(path)
        masks = [load_mask(part, size, threshold=threshold, crop=crop, frame=frame, reading=reading) for part in parts]
        if any(mask.shape != masks[0].shape for mask in masks):
            raise DataError(f"the masks in {where} are of different sizes")
        return np.logical_or.reduce(masks)
    with naming("mask", path), source(path, kind="mask") as file:
        image = identify(file, path)
        numbers = numbers_of_pages(image) if frame > 0 else [0]
        if len(numbers) > 1:
            if frame >= len(numbers):
                raise DataError(f"mask {printable(path)} has {len(numbers)} pages: there is none for frame {frame}")
            image.seek(numbers[frame])
        check_pixels(image, path, reading, "mask")
        mask = _anomalous(image, threshold)
    if crop is not None and crop.of > 1:
        top, bottom = crop.rows(len(mask))
        mask = mask[top:bottom]
    if size is not None and (mask.shape[1], mask.shape[0]) != size:
        turned = mask.shape == size
        raise DataError(
            f"mask {printable(path)} is {mask.shape[1]}x{mask.shape[0]} pixels, its image {size[0]}x{size[1]}; "
            + ("give the mask of the image as it is seen: turned as its EXIF data say" if turned else "")
            + ("" if turned else "give the mask of this image, at its size")
        )
    return mask


def _parts(path: str | Sequence[str]) -> tuple[list[str], str]:
    """Returns the files of a mask in parts, and how to name them together."""
    if not isinstance(path, str):
        if not path:
            raise DataError("a list of masks is empty")
        return list(path), " and ".join(printable(part) for part in path)
    names = sorted(
        part.name
        for part in Path(path).iterdir()
        if part.suffix.lower() in IMAGE_SUFFIXES and not part.name.startswith(".")
    )
    if not names:
        raise DataError(f"mask folder {printable(path)} is empty")
    return [str(Path(path) / name) for name in names], printable(path)


def _anomalous(image: ImageFile.ImageFile, threshold: int) -> np.ndarray:
    """Decodes the pixels and tells which of them are anomalous, turned as a viewer shows them."""
    lossy = threshold <= AUTOMATIC and _is_lossy(image)
    load(image)
    turned = orientation(image)
    if threshold > AUTOMATIC:
        values = np.asarray(image if image.mode in _AS_STORED else image.convert("L"))
        mask = values > threshold
    else:
        values = _values(image)
        mask = values > (_above_noise(values) if lossy else 0)
    return mask if turned == 1 else np.asarray(upright(Image.fromarray(mask), turned))


def _above_noise(values: np.ndarray) -> float:
    """Returns half of what a mask is drawn with, as compression leaves noise around zero."""
    largest = float(values.max(initial=0))
    return largest // 2 if largest >= 32 else 127  # else nothing is drawn: there is only noise


def _is_lossy(image: ImageFile.ImageFile) -> bool:
    if image.format == "WEBP" and image.fp is not None:
        image.fp.seek(0)
        return b"VP8 " in image.fp.read(4096)
    return image.format in {"JPEG", "MPO", "JPEG2000", "AVIF"}


def _values(image: ImageFile.ImageFile) -> np.ndarray:
    """Returns the channel that a mask is in, (H, W)."""
    palette = image.mode == "P"
    if palette and "transparency" not in image.info and not _is_swapped(image):
        return np.asarray(image)
    if not palette and (image.mode in _AS_STORED or image.mode == "F" or image.mode.startswith("I")):
        return np.asarray(image)
    if image.mode in {"CMYK", "YCbCr", "LAB"}:
        colours, alpha = np.asarray(image.convert("RGB")), None
    else:
        pixels = np.asarray((image.convert("LA") if image.mode == "La" else image).convert("RGBA"))
        colours, alpha = pixels[..., :3], pixels[..., 3]
    if alpha is None or alpha.min(initial=255) == alpha.max(initial=0):
        return _by_colour(colours)
    drawn = _by_colour(colours)
    # On a transparent background all that is drawn is the mask, unless a background is drawn as well.
    visible = drawn[alpha > 0]
    return np.where(alpha > 0, drawn, 0) if 0 < np.count_nonzero(visible) < visible.size else alpha


def _is_swapped(image: Image.Image) -> bool:
    """Whether a palette holds white, then black: programs that save few colours order them as they come."""
    used = np.unique(np.asarray(image)).tolist()
    palette = image.getpalette() or []
    if len(used) != 2:
        return False
    first, second = (palette[3 * number : 3 * number + 3] for number in used)
    return bool(first and second) and min(first) >= 250 and max(second) <= 5


def _by_colour(colours: np.ndarray) -> np.ndarray:
    """Returns how far pixels are from the background: black, or white where all that is drawn has colour."""
    highest, lowest = colours.max(axis=2), colours.min(axis=2)
    white = lowest == 255
    if white.any() and highest.min(initial=255) > 0:
        rest = ~white
        coloured = (highest[rest].astype(int) - lowest[rest]) > 32
        if coloured.size and coloured.mean() > 0.5:
            return 255 - lowest
    return highest
