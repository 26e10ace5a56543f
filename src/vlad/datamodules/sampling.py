"""Seeded draws of images per category, the same on every machine."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["select_images_per_category", "select_references"]


def _draw(frame: pd.DataFrame, count: int | float, seed: int, key: str) -> pd.DataFrame:
    """Draws rows per category; each category's draw depends on the seed and its own name alone."""
    chosen: list[int] = []
    for (dataset, category), group in frame.groupby(["dataset", "category"], sort=False):
        number = count if isinstance(count, int) else max(1, round(count * len(group)))
        if len(group) < number:
            raise DataError(f"{dataset}/{category} has {len(group)} training images, data.{key} asks for {number}")
        generator = np.random.default_rng([seed, zlib.crc32(f"{dataset}/{category}".encode())])
        chosen += group.index[np.sort(generator.permutation(len(group))[:number])].tolist()
    return frame.loc[chosen].reset_index(drop=True)


def select_references(frame: pd.DataFrame, shots: int, seed: int) -> pd.DataFrame:
    """Draws normal training images per category.

    Args:
        frame: An index with training rows.
        shots: Images per category, without replacement.
        seed: Each category's draw depends on the seed and its own name alone.

    Raises:
        DataError: A category has fewer normal training images than asked for.
    """
    normal = frame[(frame["split"] == "train") & (frame["label"] == 0)]
    if normal.empty:
        raise DataError("few-shot references need normal images in a train split; there are none")
    return _draw(normal, shots, seed, "shots")


def select_images_per_category(frame: pd.DataFrame, few: int | float, seed: int) -> pd.DataFrame:
    """Draws some of the training images of each category.

    Args:
        frame: An index of what would be trained on.
        few: Images per category, or the share of them (a float up to 1).
        seed: As for :func:`select_references`; fewer images are a part of more.

    Raises:
        DataError: A number or share out of range, or a category with fewer images.
    """
    if not (few >= 1 if isinstance(few, int) else 0 < few <= 1):
        raise DataError(f"data.few is a number of images per category (4), or a share of them (0.25), not {few}")
    return _draw(frame, few, seed, "few")
