"""From a row of the index to a sample: decode, augment, resize, normalise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from vlad.datamodules.decode import RowCrop, image_size, load_image, load_mask
from vlad.types import Preprocess

if TYPE_CHECKING:
    import pandas as pd

    from vlad.datamodules.textures import TexturePool

__all__ = ["AnomalyDataset", "collate", "fitted_size"]

Augment = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class AnomalyDataset(Dataset[dict[str, Any]]):
    """The rows of an index as samples.

    The arithmetic is that of the published code: PIL bicubic to S × S without keeping the aspect ratio, RGB in
    [0, 1], normalised; masks 0/255, PIL bilinear to S × S, then above one half.

    Where the index has a column ``mosaic``, an image becomes with that probability a mosaic of four of its category,
    anomalous if one of them is; all else in the sample is the image's own.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        preprocess: Preprocess,
        *,
        truth: bool = True,
        augment: Augment | None = None,
        textures: TexturePool | None = None,
        fast_jpeg: bool = False,
        preview_height: int = 0,
        preview_limit: int | None = None,
    ) -> None:
        """Keeps the index.

        Args:
            frame: The index.
            preprocess: Size and normalisation.
            truth: Whether samples hold label and mask.
            augment: Changes image (H, W, 3) uint8 and mask (H, W) bool together, before the resize.
            textures: Where the textures of samples come from, or None.
            fast_jpeg: Whether large JPEGs are decoded at a fraction of their size.
            preview_height: Height in pixels of the samples' previews; 0 for none.
            preview_limit: How many images of a category, in their order, have a preview; None for all. Others have one
                of no pixels.
        """
        self.rows = frame.to_dict("records")
        self.preprocess = preprocess
        self.truth = truth
        self.augment = augment
        self.textures = textures
        self.fast_jpeg = fast_jpeg
        self.preview_height = preview_height
        numbers = frame.groupby(["dataset", "category"]).cumcount().tolist()
        self._has_preview = [preview_limit is None or number < preview_limit for number in numbers]
        self._alike: dict[tuple[str, str], list[int]] = {}
        if "mosaic" in frame:
            for number, row in enumerate(self.rows):
                self._alike.setdefault((row["dataset"], row["category"]), []).append(number)
        self._mean = torch.tensor(preprocess.mean).view(3, 1, 1)
        self._std = torch.tensor(preprocess.std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        sample = {name: row[name] for name in ("class_name", "dataset", "category", "image_id")}
        sample |= {"path": row["image_path"], "index": index}
        rows = [row]
        if self._alike and float(torch.rand(())) < row["mosaic"]:
            alike = self._alike[row["dataset"], row["category"]]
            rows = [self.rows[alike[int(number)]] for number in torch.randint(len(alike), (4,))]
        parts = [self._read(one, whole=len(rows) > 1) for one in rows]
        image, mask = parts[0] if len(parts) == 1 else _mosaic(parts)
        if self.augment is not None and self.truth:
            pixels, mask = self.augment(np.asarray(image), mask)
            image = Image.fromarray(pixels)
        if self.truth:
            known = all(bool(one["has_mask"]) for one in rows)
            sample |= {
                "mask": self._resize_mask(mask),
                "has_mask": known,
                "label": max(int(one["label"]) for one in rows),
            }
        if self.textures is not None:
            sample["texture"] = self.textures.draw()
        if self.preview_height:
            outline = mask if self.truth and row["has_mask"] else None
            sample |= self._preview(image, outline) if self._has_preview[index] else _NO_PREVIEW
        return {"image": self._normalise(image), **sample}

    def sizes(self) -> list[tuple[int, int]]:
        """Returns the height and width that each sample will have, from the files' headers alone."""
        found = []
        for row in self.rows:
            width, height = image_size(row["image_path"], frame=int(row["frame"]))
            top, bottom = RowCrop.parse(row["row_crop"]).rows(height)
            found.append(fitted_size(bottom - top, width, self.preprocess))
        return found

    def _read(self, row: dict[str, Any], *, whole: bool) -> tuple[Image.Image, np.ndarray]:
        """Decodes a row's image and mask; at full size where asked for, or where both are augmented together."""
        crop = RowCrop.parse(row["row_crop"])
        near = self.preprocess.size if self.fast_jpeg and self.augment is None and not whole else 0
        image = load_image(row["image_path"], crop=crop, frame=int(row["frame"]), reader=row["reader"], near=near)
        if not (self.truth and row["mask_path"]):
            return image, np.zeros((image.height, image.width), dtype=bool)
        size = None if near else image.size
        return image, load_mask(row["mask_path"], size, threshold=row["mask_threshold"], crop=crop)

    def _fit(self, image: Image.Image, filter_: Image.Resampling) -> Image.Image:
        """Resizes to the size that the method wants."""
        wanted = self.preprocess
        if wanted.aspect == "squash":
            return image.resize((wanted.size, wanted.size), filter_)
        height, width = _resized(image.height, image.width, wanted.size)
        rows, columns = fitted_size(image.height, image.width, wanted)
        return image.resize((width, height), filter_).crop((0, 0, columns, rows))

    def _normalise(self, image: Image.Image) -> torch.Tensor:
        pixels = np.array(self._fit(image, Image.Resampling.BICUBIC))
        tensor = torch.empty(3, *pixels.shape[:2]).copy_(torch.from_numpy(pixels).permute(2, 0, 1))
        return tensor.div_(255).sub_(self._mean).div_(self._std)

    def _resize_mask(self, mask: np.ndarray) -> torch.Tensor:
        if not mask.any():
            return torch.zeros(*fitted_size(mask.shape[0], mask.shape[1], self.preprocess), dtype=torch.bool)
        resized = self._fit(Image.fromarray(mask.astype(np.uint8) * 255), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized) > 127)

    def _seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Returns the part of an image that the method sees (left, top, right, bottom): all but what is cut off."""
        if self.preprocess.aspect == "squash":
            return 0, 0, width, height
        kept = fitted_size(height, width, self.preprocess)
        resized = _resized(height, width, self.preprocess.size)
        return 0, 0, width * kept[1] / resized[1], height * kept[0] / resized[0]

    def _preview(self, image: Image.Image, mask: np.ndarray | None) -> dict[str, torch.Tensor]:
        """Returns the image, and the mask if it is known, at the height of a heat map: what the method sees of them."""
        height = self.preview_height
        seen = self._seen(image.width, image.height)
        size = (round(height * min(max(seen[2] / seen[3], 1 / 3), 3)), height)
        small = np.array(image.resize(size, Image.Resampling.LANCZOS, seen, reducing_gap=2.0))
        outline = np.zeros((0, 0), dtype=bool)
        if mask is not None:
            outline = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST, seen))
        return {"preview": torch.from_numpy(small), "mask_preview": torch.from_numpy(outline)}


_NO_PREVIEW = {"preview": torch.zeros(0, 0, 3, dtype=torch.uint8), "mask_preview": torch.zeros(0, 0, dtype=torch.bool)}


def fitted_size(height: int, width: int, wanted: Preprocess) -> tuple[int, int]:
    """Returns the height and width that an image of a size gets.

    Examples:
        >>> fitted_size(96, 128, Preprocess(98, (), (), aspect="keep", multiple=14))
        (98, 126)
        >>> fitted_size(96, 128, Preprocess(98, (), ()))
        (98, 98)
    """
    if wanted.aspect == "squash":
        return wanted.size, wanted.size
    rows, columns = (side // wanted.multiple * wanted.multiple for side in _resized(height, width, wanted.size))
    return rows, columns


def _resized(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns height and width where the shorter side becomes ``size`` and the aspect ratio is kept."""
    short = min(height, width)
    rows, columns = (size if side == short else int(size * side / short) for side in (height, width))
    return rows, columns


def _mosaic(parts: list[tuple[Image.Image, np.ndarray]]) -> tuple[Image.Image, np.ndarray]:
    """Joins four images and their masks to squares of two by two, each at the first one's size."""
    width, height = parts[0][0].size
    whole, mask = Image.new("RGB", (2 * width, 2 * height)), np.zeros((2 * height, 2 * width), dtype=bool)
    for number, (image, part) in enumerate(parts):
        row, column = divmod(number, 2)
        whole.paste(image.resize((width, height), Image.Resampling.BICUBIC), (column * width, row * height))
        resized = np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.NEAREST))
        mask[row * height : (row + 1) * height, column * width : (column + 1) * width] = resized
    return whole, mask


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins samples to a :class:`vlad.types.Batch`: tensors are stacked, names and previews listed."""
    batch: dict[str, Any] = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if isinstance(first, str) or name in {"preview", "mask_preview"}:
            batch[name] = values
        elif isinstance(first, torch.Tensor):
            batch[name] = torch.stack(values)
        else:
            batch[name] = torch.tensor(values)
    return batch
