"""From the values that a file holds to RGB of 8 bits: one stated rule for each kind of image."""

from __future__ import annotations

import math
import mmap
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from vlad.datamodules.image_files import printable
from vlad.datamodules.opening import Reading
from vlad.errors import DataError

__all__ = ["is_deep_colour", "scaled", "tell_dark", "tell_once", "to_rgb", "told_maximum", "values_to_rgb"]

_KINDS = ("twelve", "integers", "floats")
_told = mmap.mmap(-1, len(_KINDS))  # shared with processes that are forked: each kind is told once, not by each worker

_WHOLE_MAXIMA = {1, 255, 1023, 4095, 16383, 65535}
"""Maxima that say what a sensor gives. Others are statistics of one image, and would differ within a run."""


def tell_once(kind: str, text: str) -> None:
    """Warns of something that had to be guessed, once for a program and the processes that it forks."""
    place = _KINDS.index(kind)
    if not _told[place]:
        _told[place] = 1
        warnings.warn(text, stacklevel=2)


def to_rgb(image: Image.Image, path: str, reading: Reading, *, maximum: int = 0, inverted: bool = False) -> Image.Image:
    """Converts an image that is loaded to RGB.

    8 bits are what they are; alpha is dropped, CMYK is converted without a profile. Of 16 bits the upper 8 count.

    Args:
        image: The image, of any mode.
        path: Its file, for messages.
        reading: The rule of the run.
        maximum: The largest value of the sensor, where the file's metadata tells; else 0.
        inverted: Whether 0 is white.

    Raises:
        DataError: Values that nothing tells the range of.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image.convert("RGB")
    whole = getattr(image, "format", "") in {"PNG", "PPM"}  # modes of 32 bits, that hold 16
    grey = values_to_rgb(np.asarray(image), path, reading, maximum=maximum, whole=whole or image.mode != "I")
    return grey.point(lambda value: 255 - value) if inverted else grey


def values_to_rgb(
    values: np.ndarray, path: str, reading: Reading, *, maximum: int = 0, whole: bool = True
) -> Image.Image:
    """Converts values of more than 8 bits to RGB.

    Args:
        values: Grey (H, W) or RGB (H, W, 3), integers or floats.
        path: Their file, for messages.
        reading: The rule of the run.
        maximum: The largest value of the sensor, where the file's metadata tells; else 0.
        whole: Whether integers are of 16 bits without a sign, whatever holds them here.

    Raises:
        DataError: Nothing tells the range of the values.
    """
    if np.issubdtype(values.dtype, np.floating):
        mapped = _floats(values, path, reading, maximum)
    else:
        if not whole and not maximum:
            _check_integers(values, path, reading)
        mapped = _integers(values, path, reading, maximum)
    return Image.fromarray(mapped).convert("RGB")


def is_deep_colour(image: ImageFile.ImageFile) -> bool:
    """Whether an image that is not loaded yet has over 8 bits per colour, of which Pillow would keep the upper 8."""
    return (
        image.mode not in {"F", "I"}
        and not image.mode.startswith("I;")
        and any(";16" in str(tile[3]) for tile in image.tile)
    )


def told_maximum(image: Image.Image) -> int:
    """Returns the largest value that the sensor gives, as a TIFF's metadata tells it; 0 where nothing does.

    What counts are bits per sample below 16 and, where they are that of whole bits, SMaxSampleValue and MaxSampleValue.
    """
    tags: Any = getattr(image, "tag_v2", None)
    if not tags:
        return 0

    def largest(tag: int) -> float:
        value = tags.get(tag, 0)
        try:
            return float(max(value) if isinstance(value, tuple) else value)
        except (TypeError, ValueError):
            return math.nan

    bits = largest(258)
    if 8 < bits < 16:
        return int(2**bits) - 1
    for low, high in ((340, 341), (280, 281)):
        if largest(low) == 0 and largest(high) in _WHOLE_MAXIMA:
            return int(largest(high))
    return 0


def tell_dark(path: str, largest: int) -> None:
    """Warns that an image of 16 bits uses the lower ones only."""
    likely = next(whole for whole in (255, 1023, 4095) if largest <= whole)
    tell_once(
        "twelve",
        f"image {printable(path)} has 16 bits, and no value above {largest}: it is read as 0 to 65535, as all images "
        f"of 16 bits are, and so is dark. If the camera gives fewer bits: --data.intensity_range '[0, {likely}]'",
    )


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps low to 0 and high to 255, uint8; what lies beyond is cut off."""
    mapped = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low)) + np.float32(0.5)
    return np.clip(mapped, 0, 255).astype(np.uint8)


def _integers(values: np.ndarray, path: str, reading: Reading, maximum: int) -> np.ndarray:
    if reading.intensity_range is not None:
        return scaled(values, *reading.intensity_range)
    if 0 < maximum < 256:
        return scaled(values, 0, maximum)
    largest = 0 if maximum else int(values.max(initial=0))
    if 0 < largest < 4096:
        tell_dark(path, largest)
    return np.clip(values >> ((maximum.bit_length() or 16) - 8), 0, 255).astype(np.uint8)


def _check_integers(values: np.ndarray, path: str, reading: Reading) -> None:
    """Takes images of 32 bits, or of 16 with a sign, for 16 bits where their values allow it."""
    if reading.intensity_range is not None:
        return
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > 65535:
        raise DataError(
            f"image {printable(path)} holds integers from {low} to {high}, and nothing tells which are black and "
            f"white; give --data.intensity_range '[{low}, {high}]' or what suits all images of the run"
        )
    tell_once(
        "integers",
        f"image {printable(path)} holds integers of 32 bits and does not tell its range: it is read as 0 to 65535; "
        "else give --data.intensity_range '[LOW, HIGH]'",
    )


def _floats(values: np.ndarray, path: str, reading: Reading, maximum: int) -> np.ndarray:
    if not np.isfinite(values).all():
        raise DataError(f"image {printable(path)} holds values that are no numbers (NaN or infinite); replace them")
    if reading.intensity_range is not None:
        return scaled(values, *reading.intensity_range)
    if maximum:
        return scaled(values, 0, maximum)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if low < 0 or high > 1:
        raise DataError(
            f"image {printable(path)} holds floats from {low:.6g} to {high:.6g}, and nothing tells which are black and "
            f"white; give --data.intensity_range '[{low:.6g}, {high:.6g}]' or what suits all images of the run"
        )
    tell_once(
        "floats",
        f"image {printable(path)} holds floats and does not tell its range: it is read as 0 to 1; "
        "else give --data.intensity_range '[LOW, HIGH]'",
    )
    return scaled(values, 0, 1)
