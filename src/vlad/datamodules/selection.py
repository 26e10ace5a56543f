"""Which rows of an index are used: split, categories, images per category; and what two parts have in common."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlad.datamodules.sources import Source
from vlad.errors import DataError, nearest
from vlad.types import Supervision

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "draw",
    "file_digest",
    "find_overlap",
    "part_split",
    "refuse_overlap",
    "select_images_per_category",
    "select_part",
    "select_supervised",
    "shared_rows",
]


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
        The rest, and one line that says what was left out, or "".

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


# -- the same images in two parts ------------------------------------------------------------------------------


def file_digest(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read image {path} ({error.strerror or error}); replace it or remove it") from error


def shared_rows(first: pd.DataFrame, second: pd.DataFrame) -> list[tuple[int, int]]:
    """Returns which rows of two indices are the same image by content, as pairs of positions.

    Only files whose size occurs in both are read. Images of one file are told apart by their row crop and frame.
    """
    if first.empty or second.empty:
        return []
    by_size: list[dict[int, list[int]]] = []
    for frame in (first, second):
        sizes: dict[int, list[int]] = defaultdict(list)
        for position, path in enumerate(frame["image_path"]):
            try:
                sizes[os.stat(path).st_size].append(position)
            except OSError:
                continue  # told where it is decoded
        by_size.append(sizes)
    digests: dict[str, str] = {}

    def identity(frame: pd.DataFrame, position: int) -> tuple[str, str, int]:
        row = frame.iloc[position]
        path = str(row["image_path"])
        if path not in digests:
            digests[path] = file_digest(path)
        return digests[path], str(row["row_crop"]), int(row["frame"])

    pairs = []
    for size in by_size[0].keys() & by_size[1].keys():
        known = {identity(first, position): position for position in by_size[0][size]}
        for position in by_size[1][size]:
            found = known.get(identity(second, position))
            if found is not None:
                pairs.append((found, position))
    return sorted(pairs)


def find_overlap(first: pd.DataFrame, second: pd.DataFrame) -> list[tuple[str, str]]:
    """Returns the images that two indices have in common by content, as pairs of paths."""
    paths = [frame["image_path"].tolist() for frame in (first, second)]
    return sorted((paths[0][one], paths[1][other]) for one, other in shared_rows(first, second))


def refuse_overlap(parts: Mapping[str, pd.DataFrame], pairs: Sequence[tuple[str, str]], *, allow: bool) -> list[str]:
    """Refuses images that are in two parts, or says so where that is allowed.

    Args:
        parts: Index by part: ``train``, ``val``, ``references``, ``test``, ``predict``.
        pairs: Which parts are compared.
        allow: Whether an overlap is told instead of refused.

    Returns:
        A line for each overlap that is allowed.

    Raises:
        DataError: Two parts share images.
    """
    told = []
    for one, other in pairs:
        if one not in parts or other not in parts:
            continue
        found = find_overlap(parts[one], parts[other])
        if not found:
            continue
        text = f"{len(found)} images are in data.{one} and in data.{other} (first: {found[0][0]} and {found[0][1]})"
        if not allow:
            raise DataError(f"{text}: results would mean nothing; take them out, or give --allow-overlap")
        told.append(text)
    return told
