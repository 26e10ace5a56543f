"""Which rows of an index a part of a run takes: split, categories, what a method learns from, images per category."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from vlad.datamodules.overlap import file_digest, known_overlaps
from vlad.datamodules.sources import Locations, Source, Sources, as_sources
from vlad.errors import DataError, nearest
from vlad.types import Supervision

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Selection",
    "draw",
    "file_digest",
    "part_split",
    "select_images_per_category",
    "select_part",
    "select_supervised",
]


@dataclass
class Selection:
    """What is asked for, part by part.

    Attributes:
        sources: Data sets, folders and tables of ``train``, ``val`` and ``test``.
        locations: Where they are.
        categories: Categories to keep in every data set that has them; None for all.
        images_per_category: Train on so many images per category, or on a share of them; None for all.
        seed: Seed of the draws.
    """

    sources: Mapping[str, Sources | None]
    locations: Locations
    categories: list[str] | None = None
    images_per_category: int | float | None = None
    seed: int = 0

    def rows(self, part: str, supervision: Supervision | None = None) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
        """Returns the whole index of each source of a part, and the rows that the part takes.

        Raises:
            DataError: A source is not there, or has nothing that is asked for.
        """
        found = []
        for source in as_sources(self.sources[part]):
            whole = self.locations.index(source)
            rows = select_part(whole, source, part_split(source, part, supervision), part, self.categories)
            found.append((whole, rows.assign(mosaic=source.mosaic) if part == "train" and source.mosaic else rows))
        return found

    def index(self, part: str, supervision: Supervision | None = None) -> pd.DataFrame:
        """Returns the index of a part.

        Args:
            part: ``train``, ``val`` or ``test``.
            supervision: For ``train``: what the method learns from.

        Raises:
            DataError: A source is not there, or has nothing that is asked for.
        """
        import pandas as pd

        names = {one: [source.name for source in as_sources(self.sources[one])] for one in ("train", part)}
        for line in known_overlaps(part, names[part], names["train"]) if part != "train" else []:
            rank_zero_warn(line)
        frame = pd.concat([rows for _, rows in self.rows(part, supervision)], ignore_index=True)
        if "mosaic" in frame:
            frame["mosaic"] = frame["mosaic"].fillna(0.0)
        if part != "train":
            return frame
        frame, told = select_supervised(frame, supervision)
        if told:
            rank_zero_warn(told)
        if self.images_per_category is None:
            return frame
        return select_images_per_category(frame, self.images_per_category, self.seed)


def part_split(source: Source, part: str, supervision: Supervision | None = None) -> str:
    """Returns which split of a source a part takes.

    Args:
        source: The source; its own ``split`` takes precedence.
        part: ``train``, ``val`` or ``test``.
        supervision: What the method learns from. ``auxiliary``: the test split, masks and all, of auxiliary data sets,
            as most detectors of this field are trained; ``one-class``: the train split.
    """
    if source.split:
        return source.split
    if part == "train":
        return "train" if supervision == "one-class" else "test"
    return part


def select_part(frame: pd.DataFrame, source: Source, split: str, part: str, asked: list[str] | None) -> pd.DataFrame:
    """Keeps the split and the categories asked for.

    Args:
        frame: Index of a source.
        source: The source, whose own ``categories`` take precedence.
        split: ``train``, ``val``, ``test`` or ``all``.
        part: What it is for, for errors: ``train``, ``val`` or ``test``.
        asked: Categories to keep in every data set that has them; None for all.

    Raises:
        DataError: An unknown category, or nothing left.
    """
    known = list(dict.fromkeys(frame["category"]))
    asked = source.categories if source.categories is not None else asked
    if asked is not None:
        wrong = [category for category in asked if category not in known]
        if wrong and (source.categories is not None or len(wrong) == len(asked)):
            raise DataError(f"{source.name} has no category '{wrong[0]}'; {nearest(wrong[0], known)}")
        frame = frame[frame["category"].isin(asked)]
    chosen = frame if split == "all" else frame[frame["split"] == split]
    if chosen.empty:
        place = source.name if asked is None else f"{source.name}/{','.join(dict.fromkeys(frame['category']))}"
        counts = frame["split"].value_counts()
        splits = ", ".join(f"{name} {count}" for name, count in counts.items()) or "nothing"
        fix = "set split"
        if part == "val":
            fix = f"say which split to validate on: data.val: {{name: {source.name}, split: {counts.index[0]}}}"
        raise DataError(f"{place} has no images in its {split} split (it has: {splits}); {fix}")
    for category in asked or known[:0]:
        if category in known and not (chosen["category"] == category).any():
            raise DataError(
                f"{source.name}/{category} has no images in its {split} split; see data.{part} and its root"
            )
    return chosen


def select_supervised(frame: pd.DataFrame, supervision: Supervision | None) -> tuple[pd.DataFrame, str]:
    """Leaves out what a method cannot learn from.

    Returns:
        The rest, and one line that tells what was left out, or "".

    Raises:
        DataError: Nothing is left.
    """
    one_class = supervision == "one-class"
    usable = frame["label"] == 0 if one_class else frame["label"] >= 0
    if usable.all():
        return frame, ""
    what = "not normal" if one_class else "not labelled"
    if not usable.any():
        raise DataError(f"the images of data.train are all {what}: this method cannot learn from them")
    told = (
        f"{int((~usable).sum())} images of data.train are {what} and are left out (first: "
        f"{frame['image_path'][~usable].iloc[0]}): this method cannot learn from them"
    )
    return frame[usable].reset_index(drop=True), told


def draw(frame: pd.DataFrame, count: int | float, seed: int, what: str, option: str) -> pd.DataFrame:
    """Draws rows per category; each category's draw depends on the seed and its own name alone.

    Fewer rows are a part of more.

    Args:
        frame: An index.
        count: Rows per category, or the share of them (a float up to 1).
        seed: Seed of the draw.
        what: What the rows are, for errors.
        option: Which option asks for them, for errors.

    Raises:
        DataError: A category has fewer rows.
    """
    chosen: list[int] = []
    for (dataset, category), group in frame.groupby(["dataset", "category"], sort=False):
        number = count if isinstance(count, int) else max(1, round(count * len(group)))
        if len(group) < number:
            raise DataError(f"{dataset}/{category} has {len(group)} {what}, {option} asks for {number}")
        generator = np.random.default_rng([seed, zlib.crc32(f"{dataset}/{category}".encode())])
        chosen += group.index[np.sort(generator.permutation(len(group))[:number])].tolist()
    return frame.loc[chosen].reset_index(drop=True)


def select_images_per_category(frame: pd.DataFrame, count: int | float, seed: int) -> pd.DataFrame:
    """Draws some of the training images of each category and repeats them, so that an epoch keeps its length.

    Raises:
        DataError: A number or share out of range, or a category with fewer images.
    """
    if not (count >= 1 if isinstance(count, int) else 0 < count <= 1):
        raise DataError(f"data.images_per_category is a number of images (4), or a share of them (0.25), not {count}")
    some = draw(frame, count, seed, "training images", "data.images_per_category")
    return some.loc[np.resize(np.arange(len(some)), len(frame))].reset_index(drop=True)
