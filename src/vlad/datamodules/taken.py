"""What images were taken for, folder by folder."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from vlad.datamodules.image_files import printable
from vlad.datamodules.masks_of import split_masks

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LABELS", "Taken", "list_rows", "taken_for"]

LABELS = {0: "normal", 1: "anomalous", -1: "unknown"}
"""Labels in words."""


@dataclass(frozen=True)
class Taken:
    """What the images of one folder were taken for.

    Attributes:
        folder: The folder, below the one that all images are in.
        category: Their category.
        split: Their split.
        label: Their label in words.
        images: How many they are.
        masks: How many masks they have.
        example: One of them.
        mask: Its mask, or that of another one; "" where none has one.
    """

    folder: str
    category: str
    split: str
    label: str
    images: int
    masks: int
    example: str
    mask: str


def _common(frame: pd.DataFrame) -> str:
    """Returns the folder that all images are in."""
    parents = {os.path.dirname(path) for path in frame["image_path"]}
    try:
        return os.path.commonpath(parents) if parents else ""
    except ValueError:  # absolute and relative paths, or none of a folder
        return ""


def _below(path: str, base: str) -> str:
    return PurePath(os.path.relpath(path, base)).as_posix() if base and path else path


def taken_for(frame: pd.DataFrame) -> list[Taken]:
    """Returns what the images of each folder were taken for, in the order of the index."""
    base = _common(frame)
    groups: dict[tuple[str, str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in frame.to_dict("records"):
        groups[os.path.dirname(row["image_path"]), row["category"], row["split"], row["label"]].append(row)
    found = []
    for (folder, category, split, label), rows in groups.items():
        masked = [row for row in rows if row["mask_path"]]
        example = (masked or rows)[0]
        masks = split_masks(example["mask_path"])
        found.append(
            Taken(
                printable(_below(folder, base)),
                printable(category),
                split,
                LABELS[label],
                len(rows),
                len(masked),
                printable(os.path.basename(example["image_path"])),
                printable(_below(masks[0], base) + f" and {len(masks) - 1} more" * (len(masks) > 1)) if masks else "",
            )
        )
    return found


def list_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns what each image was taken for: path, image id, category, split, label, kind of defect and masks."""
    return [
        {
            "path": printable(row["image_path"]),
            "image_id": printable(row["image_id"]),
            "category": row["category"],
            "split": row["split"],
            "label": LABELS[row["label"]],
            "defect_type": row["defect_type"],
            "masks": [printable(mask) for mask in split_masks(row["mask_path"])],
        }
        for row in frame.to_dict("records")
    ]
