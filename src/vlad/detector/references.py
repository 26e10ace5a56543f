"""Finds, fits and records reference images given from Python."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vlad.datamodules.overlap import image_digest
from vlad.detector.images import GivenImages
from vlad.detector.inputs import Found, as_class_names, find, is_path
from vlad.errors import DataError
from vlad.tiling import fit_references
from vlad.types import Batch

if TYPE_CHECKING:
    from vlad.methods.base import Method

__all__ = ["find_references", "fit", "recorded", "rotated_copies"]


def find_references(images: Any, class_name: str | None, shots: int | None, seed: int) -> Found:
    """Finds reference images by the rules of ``--references``.

    Args:
        images: Normal images of one class, as for :func:`find`; or a mapping from class names to them.
        class_name: Their class name; None for ``object``, or for a mapping.
        shots: Number of images drawn per class; None uses all.
        seed: Seed of the draw.

    Raises:
        DataError: No image is found, the type is unknown, there are too few, or some are in folders of anomalies.
    """
    import pandas as pd

    from vlad.datamodules.references import check_shots
    from vlad.datamodules.selection import draw

    check_shots(shots)
    if isinstance(images, Mapping):
        if class_name is not None:
            raise DataError("class_name and a mapping from class names to references: give one of them")
        groups = {str(as_class_names(name)): group for name, group in images.items()}
    else:
        name = as_class_names(class_name)
        if not (name is None or isinstance(name, str)):
            raise DataError("references of several classes are a mapping: references={'bottle': 'good/bottle', …}")
        groups = {name or "object": images}
    found = [_of_class(group, name) for name, group in groups.items()]
    if not found:
        raise DataError("there are no references: the mapping is empty")
    frame = pd.concat([part.frame for part in found], ignore_index=True)
    in_memory = [pixels for part in found for pixels in part.in_memory]
    if shots is not None:
        frame = draw(frame.assign(place=range(len(frame))), shots, seed, "given references", "shots")
        in_memory = [in_memory[place] for place in frame.pop("place")]
    return Found(frame, in_memory, {})


def _of_class(images: Any, class_name: str) -> Found:
    """Finds the references of one class."""
    import pandas as pd

    from vlad.datamodules.references import given_references

    paths = [images] if is_path(images) else images
    if isinstance(paths, list | tuple) and paths and all(map(is_path, paths)):
        wanted = pd.DataFrame([{"dataset": "images", "category": class_name, "class_name": class_name}])
        frame = given_references([os.fspath(path) for path in paths], None, 0, wanted)
        return Found(frame, [None] * len(frame), {})
    parts = list(find(images, class_name, size=64))
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    named = {"dataset": "images", "category": class_name, "class_name": class_name, "label": 0}
    return Found(frame.assign(**named), [pixels for part in parts for pixels in part.in_memory], {})


def rotated_copies(found: Found, count: int) -> Found:
    """Repeats every reference ``count`` times, rotated by equal angles, as a method requires."""
    from vlad.datamodules.references import with_rotations

    in_memory = [pixels for pixels in found.in_memory for _ in range(count)]
    return Found(with_rotations(found.frame, count), in_memory, found.ignored)


def fit(method: Method, dataset: GivenImages, batch_size: int) -> tuple[list[dict[str, str]], dict[bytes, str]]:
    """Fits a method on references.

    Args:
        method: The method.
        dataset: The references.
        batch_size: Number of images per batch.

    Returns:
        A record of each reference, and their names by :func:`image_digest`.

    Raises:
        MethodError: The method does not support references.
        DataError: An image cannot be read.
    """
    records: list[dict[str, str]] = []
    known: dict[bytes, str] = {}

    def batches() -> Iterator[Batch]:
        for batch in dataset.batches(batch_size):
            for _, reason in batch["failed"]:
                raise DataError(f"a reference cannot be used: {reason}")
            for i, image in enumerate(batch["image"]):
                known[image_digest(image)] = batch["path"][i] or f"number {batch['image_id'][i]}"
                row = dataset.rows[int(batch["index"][i])]
                if row.get("rotation"):
                    continue  # the image itself is recorded
                record = {"dataset": row["dataset"], "category": row["category"], "image_id": row["image_id"]}
                records.append({**record, "path": row["image_path"], "sha256": batch["digest"][i]})
            yield batch

    fit_references(method, batches())
    return records, known


def recorded(run: str | None) -> list[dict[str, str]]:
    """Returns the references that a run recorded."""
    from vlad.decision.records import run_folder

    folder = run_folder(run)
    if folder is None or not (folder / "references.csv").is_file():
        return []
    with (folder / "references.csv").open(encoding="utf-8", newline="") as file:
        return [{str(key): str(value) for key, value in row.items()} for row in csv.DictReader(file)]
