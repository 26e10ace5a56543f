"""From a row of the index to a sample: decode, augment, resize, normalise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from vlad.errors import DataError
from vlad.types import Preprocess

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AnomalyDataset", "collate", "load_image", "load_mask"]

Augment = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def load_image(path: str) -> Image.Image:
    """Decodes a picture by its content, whatever its suffix, to RGB.

    Raises:
        DataError: The file cannot be read as a picture.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist (any more)") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read image {path} ({_cause(error)}); replace it or remove it") from error


def _cause(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def load_mask(path: str, size: tuple[int, int], *, threshold: int = 0) -> np.ndarray:
    """Decodes a mask to bool (H, W): True where a pixel's grey value is above the threshold.

    Args:
        path: Mask file; palette and class-id images are read by their raw values.
        size: Width and height of the image it belongs to.
        threshold: Largest value that still means normal.

    Raises:
        DataError: Unreadable, or of another size than its image.
    """
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture if picture.mode in {"P", "L", "1", "I;16", "I"} else picture.convert("L"))
    except FileNotFoundError as error:
        raise DataError(f"mask {path} does not exist (any more)") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read mask {path} ({_cause(error)}); replace it or remove it") from error
    if (values.shape[1], values.shape[0]) != size:
        raise DataError(
            f"mask {path} is {values.shape[1]}x{values.shape[0]} pixels, its image {size[0]}x{size[1]}; "
            "give the mask of this image, at its size"
        )
    return values > threshold


class AnomalyDataset(Dataset[dict[str, Any]]):
    """The rows of an index as samples.

    The arithmetic is that of the published code: PIL bicubic to S × S without keeping the aspect ratio, RGB in
    [0, 1], normalised; masks 0/255, PIL bilinear to S × S, then above one half.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        preprocess: Preprocess,
        *,
        truth: bool = True,
        augment: Augment | None = None,
    ) -> None:
        """Keeps the index.

        Args:
            frame: The index.
            preprocess: Size and normalisation.
            truth: Whether samples hold label and mask.
            augment: Changes picture (H, W, 3) uint8 and mask (H, W) bool together, before the resize.
        """
        self.rows = frame.to_dict("records")
        self.preprocess = preprocess
        self.truth = truth
        self.augment = augment
        self._mean = torch.tensor(preprocess.mean).view(3, 1, 1)
        self._std = torch.tensor(preprocess.std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        image = load_image(row["image_path"])
        sample = {name: row[name] for name in ("class_name", "dataset", "category", "key")}
        sample |= {"path": row["image_path"], "index": index}
        if self.truth:
            mask = self._mask(row, image)
            if self.augment is not None:
                pixels, mask = self.augment(np.asarray(image), mask)
                image = Image.fromarray(pixels)
            sample |= {
                "mask": self._resize_mask(mask),
                "has_mask": bool(row["has_mask"]),
                "label": int(row["label"]),
                "mask_path": row["mask_path"],
                "mask_threshold": int(row["mask_threshold"]),
            }
        return {"image": self._normalise(image), **sample}

    def _mask(self, row: dict[str, Any], image: Image.Image) -> np.ndarray:
        if row["mask_path"]:
            return load_mask(row["mask_path"], image.size, threshold=row["mask_threshold"])
        return np.zeros((image.height, image.width), dtype=bool)

    def _normalise(self, image: Image.Image) -> torch.Tensor:
        size = (self.preprocess.size, self.preprocess.size)
        pixels = np.array(image.resize(size, Image.Resampling.BICUBIC))
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)
        return tensor.sub_(self._mean).div_(self._std)

    def _resize_mask(self, mask: np.ndarray) -> torch.Tensor:
        side = self.preprocess.size
        if not mask.any():
            return torch.zeros(side, side, dtype=torch.bool)
        resized = Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized) > 127)


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins samples to a :class:`vlad.types.Batch`: tensors are stacked, names listed."""
    batch: dict[str, Any] = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if isinstance(first, torch.Tensor):
            batch[name] = torch.stack(values)
        elif isinstance(first, str):
            batch[name] = values
        else:
            batch[name] = torch.tensor(values)
    return batch
