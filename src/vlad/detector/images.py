"""A dataset of images in memory and in files, preprocessed exactly as in the data module."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image, ImageFile

from vlad.datamodules.dataset import AnomalyDataset, collate, rotated
from vlad.datamodules.decode import Reading
from vlad.datamodules.fitting import fitted_size
from vlad.datamodules.images import decoded
from vlad.datamodules.intensity import to_rgb
from vlad.datamodules.opening import naming
from vlad.datamodules.orientation import orientation, upright
from vlad.datamodules.sampling import build_prediction_loader
from vlad.detector.inputs import Found
from vlad.errors import DataError
from vlad.types import Batch, Preprocess

__all__ = ["GivenImages"]


class GivenImages(AnomalyDataset):
    """Images without labels, in files or in memory; an unreadable image is a sample with an error message."""

    def __init__(self, found: Found, preprocess: Preprocess, reading: Reading | None = None) -> None:
        """Creates the dataset.

        Args:
            found: What :func:`vlad.detector.inputs.find` yields.
            preprocess: Size and normalisation.
            reading: How values become intensities, and how many pixels an image may have.
        """
        super().__init__(found.frame, preprocess, truth=False, reading=reading, tolerant=True)
        self.frame, self.in_memory = found.frame, found.in_memory

    def batches(self, batch_size: int, num_workers: int = 0) -> Iterator[Batch]:
        """Yields the batches that ``vlad predict`` would score.

        Args:
            batch_size: Largest number of images per batch.
            num_workers: Number of processes that read images; with 0, PyTorch's random state does not change.
        """
        loader = build_prediction_loader(self, batch_size=batch_size, num_workers=num_workers)
        if num_workers:
            loader.generator = torch.Generator()
            yield from (self._told(batch, batch_size) for batch in loader)
            return
        for rows in loader.batch_sampler or ():
            yield self._told(collate([self[row] for row in rows]), batch_size)

    def _told(self, batch: Any, batch_size: int) -> Batch:
        """Returns a batch that says, of a whole image, how many of its tiles are scored together."""
        if self.preprocess.aspect == "whole":
            batch["tiles"] = batch_size
        return batch

    def open(self, index: int) -> Image.Image:
        """Returns the image of a row as it is scored: RGB and upright.

        Raises:
            DataError: The image cannot be read.
        """
        pixels = self.in_memory[index]
        if pixels is None:
            return self._read(self.rows[index], whole=False)[0]
        name = str(self.rows[index]["image_id"])
        with naming("image", name):
            image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
            if isinstance(image, ImageFile.ImageFile):
                return decoded(image, image.fp, image.tell(), name, self.reading)
            turned: Any = image  # images that were not opened from a file may have EXIF too
            return upright(to_rgb(image, name, self.reading), orientation(turned))

    def sizes(self) -> list[tuple[int, int]]:
        """Returns the height and width of each sample; (0, 0) for an unreadable image."""
        in_files = [pixels is None for pixels in self.in_memory]
        others = AnomalyDataset(self.frame[in_files], self.preprocess, truth=False, reading=self.reading, tolerant=True)
        known = iter(others.sizes())
        return [next(known) if in_file else self._fitted(row) for row, in_file in enumerate(in_files)]

    def _fitted(self, index: int) -> tuple[int, int]:
        try:
            image = self.open(index)
        except DataError:
            return 0, 0
        return fitted_size(image.height, image.width, self.preprocess)

    def _sample(self, index: int, epoch: int = 0) -> dict[str, Any]:
        if self.in_memory[index] is None:
            return super()._sample(index)
        row = self.rows[index]
        image = rotated(self.open(index), row.get("rotation", 0.0))
        _, _, right, bottom = self._seen(image.width, image.height)
        return {
            "image": self._normalise(image),
            **{name: row[name] for name in ("class_name", "dataset", "category", "image_id")},
            "path": "",
            "index": index,
            "digest": hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest(),
            "original_size": torch.tensor([image.height, image.width]),
            "seen_size": torch.tensor([round(bottom), round(right)]),
        }
