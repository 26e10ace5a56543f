"""Raw maps at the size of their images, as files that other programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin

from vlad.datamodules.image_files import printable
from vlad.errors import DataError
from vlad.files import write_atomic

__all__ = ["MapFormat", "map_of_image", "read_map", "write_map"]

MapFormat = Literal["npy", "png16"]

_KEY = "vlad-map"
_CODES = 65535


def map_of_image(anomaly_map: np.ndarray, seen_size: tuple[int, int], original_size: tuple[int, int]) -> np.ndarray:
    """Returns a map at its image's own size.

    Args:
        anomaly_map: Map (h, w); minus infinity where nothing was inspected, else finite.
        seen_size: Height and width of the part of the image that the map covers, from the top left.
        original_size: Height and width of the image.

    Returns:
        The map (H, W), float32: bilinear over what it covers; its last row and column go on over the rest.

    Examples:
        >>> map_of_image(np.array([[1.0, 3.0]]), (2, 2), (3, 3))
        array([[1., 3., 3.],
               [1., 3., 3.],
               [1., 3., 3.]], dtype=float32)
    """
    values = torch.from_numpy(np.array(anomaly_map, np.float32))[None, None]
    seen = torch.isfinite(values)
    if not seen.all():
        least = values[seen].min() if seen.any() else torch.tensor(0.0)
        inspected = F.interpolate(seen.float(), size=seen_size, mode="nearest-exact")
        values = F.interpolate(torch.where(seen, values, least), size=seen_size, mode="bilinear")
        values[inspected < 0.5] = -torch.inf
    else:
        values = F.interpolate(values, size=seen_size, mode="bilinear")
    rest = [(0, max(0, whole - part)) for whole, part in zip(original_size, seen_size, strict=True)]
    return np.pad(values[0, 0].numpy(), rest, mode="edge")[: original_size[0], : original_size[1]]


def write_map(path: Path, values: np.ndarray, kind: MapFormat) -> dict[str, float]:
    """Writes a map; the file is whole or not there.

    ``npy`` holds the values themselves. ``png16`` holds codes: 0 where nothing was inspected, else 1 to 65,535 in even
    steps from the map's lowest to its highest value, which stand in the PNG's text ``vlad-map`` as
    ``{"low": …, "high": …}``: value = low + (code - 1) / 65534 · (high - low).

    Args:
        path: The file.
        values: Map (H, W), float32; minus infinity where nothing was inspected, else finite.
        kind: ``npy`` or ``png16``.

    Returns:
        ``low`` and ``high`` of the map.
    """
    seen = np.isfinite(values)
    low, high = (float(values[seen].min()), float(values[seen].max())) if seen.any() else (0.0, 0.0)
    if kind == "npy":

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.save(file, values, allow_pickle=False)

    else:
        step = (high - low) / (_CODES - 1) or 1.0
        codes = np.zeros(values.shape, np.uint16)
        codes[seen] = 1 + np.rint((values[seen].astype(np.float64) - low) / step)
        about = PngImagePlugin.PngInfo()
        about.add_text(_KEY, json.dumps({"low": low, "high": high}))

        def write(partial: Path) -> None:
            Image.fromarray(codes).save(partial, format="PNG", pnginfo=about, compress_level=1)

    write_atomic(path, write)
    return {"low": low, "high": high}


def read_map(path: str | Path) -> np.ndarray:
    """Reads a map that :func:`write_map` wrote.

    Returns:
        The map (H, W), float32; minus infinity where nothing was inspected. Values of a 16-bit PNG are within
        (high - low) / 131,068 of the map's.

    Raises:
        DataError: It is no map, or damaged.
    """
    if not Path(path).is_file():  # a FIFO would be waited for
        raise DataError(f"{path} is no file: there is no map")
    try:
        return _read_map(str(path))
    except Exception as error:  # numpy and Pillow have many kinds of error for damaged files
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is no map of vlad's, or is damaged ({printable(cause)})") from error


def _read_map(path: str) -> np.ndarray:
    if path.endswith(".npy"):
        values = np.load(path, mmap_mode="r", allow_pickle=False)  # of no larger size than the file's
        if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype != np.float32:
            raise ValueError("no float32 map of two dimensions")
        return np.array(values)
    with Image.open(path) as image:
        text = getattr(image, "text", {}).get(_KEY)
        codes = np.asarray(image).astype(np.float64)
    if text is None:
        raise ValueError(f"it has no text {_KEY}")
    scale = json.loads(text)
    values = float(scale["low"]) + (codes - 1) / (_CODES - 1) * (float(scale["high"]) - float(scale["low"]))
    return np.where(codes == 0, -np.inf, values).astype(np.float32)
