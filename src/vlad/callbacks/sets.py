"""Collects all images of a category, for methods that score them together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vlad.errors import DataError
from vlad.types import Batch, Features, join_rows, known_masks, take_rows

__all__ = ["CategorySets"]

Complete = tuple[Batch, Features, tuple[int, int]]


class CategorySets:
    """Collects features batch by batch; hands a category out when the next one begins, as data come sorted by it."""

    def __init__(self) -> None:
        self._category = ""
        self._parts: list[Complete] = []
        self._seen: set[str] = set()

    def add(self, batch: Batch, features: Features) -> Iterator[Complete]:
        """Adds a batch; yields completed categories: batch without ``image``, features, and height and width of images.

        Raises:
            DataError: The images of a category are not consecutive, or differ in size.
        """
        categories = [f"{one}/{other}" for one, other in zip(batch["dataset"], batch["category"], strict=True)]
        size = (batch["image"].shape[-2], batch["image"].shape[-1])
        for category in dict.fromkeys(categories):
            rows = torch.tensor([row for row, other in enumerate(categories) if other == category])
            if category != self._category:
                yield from self.finish()
                if category in self._seen:
                    raise DataError(f"the images of {category} do not come one after another; do not shuffle the data")
                self._category = category
                self._seen.add(category)
            elif self._parts and self._parts[0][2] != size:
                raise DataError(f"the images of {category} differ in size and cannot be scored together")
            some = take_rows(features, rows.to(batch["image"].device))
            self._parts.append((_take(batch, rows), some, size))

    def finish(self) -> Iterator[Complete]:
        """Yields the last category, if there is one."""
        if self._parts:
            parts, self._parts = self._parts, []
            batches, features, sizes = zip(*parts, strict=True)
            yield _join(list(batches)), join_rows(features), sizes[0]


def _take(batch: Batch, rows: Tensor) -> Batch:
    """Returns some images of a batch, without their pixels."""
    whole: dict[str, Any] = {**batch, "has_mask": known_masks(batch)}
    whole.pop("image")
    taken = {
        name: value[rows.to(value.device)] if isinstance(value, Tensor) else [value[row] for row in rows.tolist()]
        for name, value in whole.items()
    }
    return Batch(**taken)  # type: ignore[typeddict-item]


def _join(batches: list[Batch]) -> Batch:
    """Returns batches as one."""
    parts: list[dict[str, Any]] = [dict(batch) for batch in batches]
    joined: dict[str, Any] = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        joined[name] = torch.cat(values) if isinstance(first, Tensor) else [one for value in values for one in value]
    return Batch(**joined)  # type: ignore[typeddict-item]
