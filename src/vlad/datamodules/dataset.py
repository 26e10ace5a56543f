"""From a row of the index to a sample: decode, augment, resize, normalise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from vlad.datamodules.decode import Reading, RowCrop, image_size, load_image, load_mask, read_bytes
from vlad.datamodules.fitting import fit_image, fitted_size, normalised, seen_part
from vlad.datamodules.order import Drawn
from vlad.datamodules.overlap import file_digest
from vlad.datamodules.roi import load_roi
from vlad.errors import DataError
from vlad.names import output_names
from vlad.types import Preprocess

if TYPE_CHECKING:
    import pandas as pd

    from vlad.datamodules.textures import TexturePool

__all__ = ["AnomalyDataset", "collate", "rotated"]

Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]

_LONGEST = 1024
"""Longest side of a preview in pixels."""

_LISTED = {"preview", "mask_preview", "own_mask"}


class AnomalyDataset(Dataset[dict[str, Any]]):
    """The rows of an index as samples.

    The arithmetic is that of the published code: PIL bicubic to S × S without keeping the aspect ratio, RGB in
    [0, 1], normalised; masks 0/255, PIL bilinear to S × S, then above one half.

    Where the index has a column ``rotation``, in degrees, the image is turned at its full size; see :func:`rotated`.
    Where the index has a column ``mosaic``, an image becomes with that probability a mosaic of four of its category,
    anomalous if one of them is; all else in the sample is the image's own.

    What is drawn for a sample (mosaic, augmentation, texture) depends on the seed, the epoch and the index alone.
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
        reading: Reading | None = None,
        tolerant: bool = False,
        preview_height: int = 0,
        preview_limit: int | None = None,
        outputs: bool = False,
        own_masks: bool = False,
        seed: int = 0,
    ) -> None:
        """Keeps the index.

        Args:
            frame: The index.
            preprocess: Size and normalisation.
            truth: Whether samples hold label and mask.
            augment: Changes image (H, W, 3) uint8 and mask (H, W) bool together, before the resize.
            textures: Where the textures of samples come from, or None.
            fast_jpeg: Whether large JPEGs are decoded at a fraction of their size.
            reading: How values become intensities, and how many pixels an image may have.
            tolerant: Whether an image that cannot be read becomes a sample with the reason (``failed``) in place of
                an error; samples then hold the digest of the file.
            preview_height: Shorter side in pixels of the samples' previews; 0 for none.
            preview_limit: How many images of a category, spread evenly over it, have a preview; None for all. Others
                have one of no pixels.
            outputs: Whether samples hold the name of their files among those of a run (``output``).
            own_masks: Whether samples also hold the mask at the image's own resolution.
            seed: Seed of what is drawn for the samples.
        """
        self.seed = seed
        self.rows = frame.to_dict("records")
        self.preprocess = preprocess
        self.truth = truth
        self.augment = augment
        self.textures = textures
        self.fast_jpeg = fast_jpeg
        self.reading = reading or Reading()
        self.tolerant = tolerant
        self.preview_height, self.own_masks = preview_height, own_masks
        alike = frame.groupby(["dataset", "category"])
        ranks = zip(alike.cumcount().tolist(), alike["dataset"].transform("size").tolist(), strict=True)
        self._has_preview = [preview_limit is None or is_spread(rank, size, preview_limit) for rank, size in ranks]
        self._regions = "roi_path" in frame
        self._outputs: list[str] = []
        if outputs:
            names = (frame[column].tolist() for column in ("dataset", "category", "image_id"))
            self._outputs = output_names(zip(*names, strict=True))
        self._alike: dict[tuple[str, str], list[int]] = {}
        if "mosaic" in frame:
            for number, row in enumerate(self.rows):
                self._alike.setdefault((row["dataset"], row["category"]), []).append(number)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | Drawn) -> dict[str, Any]:
        index, epoch = index if isinstance(index, Drawn) else Drawn(index, 0)
        if not self.tolerant:
            return self._sample(index, epoch)
        try:
            return self._sample(index, epoch)
        except DataError as error:
            return {"index": index, "failed": str(error)}

    def _sample(self, index: int, epoch: int = 0) -> dict[str, Any]:
        row = self.rows[index]
        random = np.random.default_rng([self.seed, epoch, index])
        sample = {name: row[name] for name in ("class_name", "dataset", "category", "image_id")}
        sample |= {"path": row["image_path"], "index": index}
        if self._outputs:
            sample["output"] = self._outputs[index]
        rows = [row]
        if self._alike and random.random() < row["mosaic"]:
            alike = self._alike[row["dataset"], row["category"]]
            rows = [self.rows[alike[number]] for number in random.integers(len(alike), size=4)]
        content = None
        if self.tolerant and row["frame"] < 0:
            content = read_bytes(row["image_path"])  # once: for the digest and the pixels
            sample["digest"] = hashlib.sha256(content).hexdigest()
        elif self.tolerant:
            sample["digest"] = _digest_of_frames(row["image_path"])
        parts = [self._read(one, whole=len(rows) > 1, content=content) for one in rows]
        image, mask = parts[0] if len(parts) == 1 else _mosaic(parts)
        image = rotated(image, row.get("rotation", 0.0))
        sample["original_size"] = torch.tensor([image.height, image.width])
        _, _, right, bottom = self._seen(image.width, image.height)
        sample["seen_size"] = torch.tensor([round(bottom), round(right)])
        inside = load_roi(row, image.size, RowCrop.parse(row["row_crop"])) if self._regions else None
        if self._regions:
            sample["roi"] = self._fit_roi(inside, image)
        if self.augment is not None and self.truth:
            pixels, mask = self.augment(np.asarray(image), mask, random)
            image = Image.fromarray(pixels)
        if self.truth:
            known = all(bool(one["has_mask"]) for one in rows)
            sample |= {
                "mask": self._resize_mask(mask),
                "has_mask": known,
                "label": max(int(one["label"]) for one in rows),
            }
            if self.own_masks:
                rows_seen = round(mask.shape[0] * bottom / image.height)
                columns_seen = round(mask.shape[1] * right / image.width)
                sample["own_mask"] = torch.from_numpy(mask[:rows_seen, :columns_seen])
        if self.textures is not None:
            sample["texture"] = self.textures.draw(random)
        if self.preview_height:
            outline = mask if self.truth and row["has_mask"] else None
            sample |= self._preview(image, outline) if self._has_preview[index] else _NO_PREVIEW
        return {"image": self._normalise(image), **sample}

    def sizes(self) -> list[tuple[int, int]]:
        """Returns the height and width that each sample will have, from the files' headers alone.

        Of an image that cannot be read it is (0, 0) where those are tolerated.
        """
        found = []
        for row in self.rows:
            try:
                width, height = image_size(row["image_path"], frame=int(row["frame"]), reading=self.reading)
            except DataError:
                if not self.tolerant:
                    raise
                found.append((0, 0))
                continue
            top, bottom = RowCrop.parse(row["row_crop"]).rows(height)
            found.append(fitted_size(bottom - top, width, self.preprocess))
        return found

    def _read(
        self, row: dict[str, Any], *, whole: bool, content: bytes | None = None
    ) -> tuple[Image.Image, np.ndarray]:
        """Decodes a row's image and mask; at full size where asked for, or where both are augmented together."""
        crop = RowCrop.parse(row["row_crop"])
        small = self.fast_jpeg and self.augment is None and not whole and self.preprocess.aspect != "whole"
        near = self.preprocess.size if small else 0
        image = load_image(
            row["image_path"],
            crop=crop,
            frame=int(row["frame"]),
            reader=row["reader"],
            near=near,
            reading=self.reading,
            content=content,
        )
        if not (self.truth and row["mask_path"]):
            return image, np.zeros((image.height, image.width), dtype=bool)
        size = None if near else image.size
        return image, load_mask(
            row["mask_path"],
            size,
            threshold=row["mask_threshold"],
            crop=crop,
            frame=int(row["frame"]),
            reading=self.reading,
        )

    def _fit(self, image: Image.Image, filter_: Image.Resampling) -> Image.Image:
        return fit_image(image, filter_, self.preprocess)

    def _normalise(self, image: Image.Image) -> torch.Tensor:
        return normalised(image, self.preprocess)

    def _resize_mask(self, mask: np.ndarray) -> torch.Tensor:
        if not mask.any():
            return torch.zeros(*fitted_size(mask.shape[0], mask.shape[1], self.preprocess), dtype=torch.bool)
        resized = self._fit(Image.fromarray(mask.astype(np.uint8) * 255), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized) > 127)

    def _fit_roi(self, inside: np.ndarray | None, image: Image.Image) -> torch.Tensor:
        if inside is None:
            return torch.ones(*fitted_size(image.height, image.width, self.preprocess), dtype=torch.bool)
        fitted = np.array(self._fit(Image.fromarray(inside), Image.Resampling.NEAREST))
        if not fitted.any():
            raise DataError("the region of interest is too small for the method's image size")
        return torch.from_numpy(fitted)

    def _seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Returns the part of an image that the method sees (left, top, right, bottom): all but what is cut off."""
        bottom, right = seen_part(height, width, self.preprocess)
        return 0, 0, right, bottom

    def _preview(self, image: Image.Image, mask: np.ndarray | None) -> dict[str, torch.Tensor]:
        """Returns the image, and the mask if it is known, small: what the method sees of them, at their own aspect."""
        seen = self._seen(image.width, image.height)
        size = preview_size(seen[2], seen[3], self.preview_height)
        small = np.array(image.resize(size, Image.Resampling.BICUBIC, seen, reducing_gap=1.5))
        outline = np.zeros((0, 0), dtype=bool)
        if mask is not None:
            outline = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST, seen))
        return {"preview": torch.from_numpy(small), "mask_preview": torch.from_numpy(outline)}


def rotated(image: Image.Image, degrees: float) -> Image.Image:
    """Turns an image about its centre at its size, bilinear, its corners filled by reflection (AnomalyDINO)."""
    if not degrees:
        return image
    import cv2

    size = image.size
    turn = cv2.getRotationMatrix2D((size[0] / 2, size[1] / 2), degrees, 1.0)
    return Image.fromarray(cv2.warpAffine(np.asarray(image), turn, size, borderMode=cv2.BORDER_REFLECT_101))


def is_spread(rank: int, size: int, count: int) -> bool:
    """Returns whether one of ``size`` images, by its rank, is among ``count`` that are spread evenly over them.

    Examples:
        >>> [rank for rank in range(6) if is_spread(rank, 6, 2)]
        [1, 4]
    """
    return (2 * (rank + 1) * count + size) // (2 * size) > (2 * rank * count + size) // (2 * size)


def preview_size(width: float, height: float, shorter: int) -> tuple[int, int]:
    """Returns the width and height of an image's preview: the aspect ratio is kept, the longer side bounded.

    Examples:
        >>> preview_size(640, 480, 240)
        (320, 240)
        >>> preview_size(8000, 100, 240)
        (1024, 13)
    """
    scale = min(shorter / min(width, height), _LONGEST / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


@lru_cache(maxsize=4)
def _digest_of_frames(path: str) -> str:
    """Returns the digest of a file that many rows share."""
    return file_digest(path)


_NO_PREVIEW = {"preview": torch.zeros(0, 0, 3, dtype=torch.uint8), "mask_preview": torch.zeros(0, 0, dtype=torch.bool)}


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
    """Joins samples to a :class:`vlad.types.Batch`: tensors are stacked, names and previews listed.

    Samples that failed are listed apart; a batch of none but those has an ``image`` of no rows and no other lists.
    """
    failed = [(int(sample["index"]), str(sample["failed"])) for sample in samples if "failed" in sample]
    samples = [sample for sample in samples if "failed" not in sample]
    if not samples:
        return {"image": torch.zeros(0, 3, 1, 1), "failed": failed}
    batch: dict[str, Any] = {"failed": failed} if failed or "digest" in samples[0] else {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if isinstance(first, str) or name in _LISTED:
            batch[name] = values
        elif isinstance(first, torch.Tensor):
            batch[name] = torch.stack(values)
        else:
            batch[name] = torch.tensor(values)
    return batch
