"""An index as ``meta.json``, the format of AdaCLIP, AnomalyCLIP and their relatives, and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.datamodules.index import finish
from vlad.datamodules.layouts import META, meta_rows
from vlad.datamodules.masks import AUTOMATIC
from vlad.datamodules.masks_of import split_masks
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["from_meta", "to_meta"]


def to_meta(frame: pd.DataFrame, root: Path) -> dict[str, Any]:
    """Makes the content of a ``meta.json`` of an index.

    Args:
        frame: An index.
        root: Folder that the file will lie in; paths are written relative to it.

    Raises:
        DataError: The index holds what the format cannot: unknown labels, parts of files, or frames of videos.
    """
    for column, plain, what in (("label", (0, 1), "unknown labels"), ("row_crop", ("",), "row crops of images")):
        if not frame[column].isin(plain).all():
            raise DataError(f"meta.json cannot hold {what}; write a table instead (-o index.csv)")
    if (frame["frame"] >= 0).any():
        raise DataError("meta.json cannot hold frames of videos; write a table instead (-o index.csv)")
    meta: dict[str, Any] = {"train": {}, "test": {}}
    for row in frame.to_dict("records"):
        mask = row["mask_path"]
        if mask and (Path(mask).is_dir() or len(split_masks(mask)) > 1):
            raise DataError("meta.json cannot hold several masks per image; write a table instead (-o index.csv)")
        meta.setdefault(row["split"], {}).setdefault(row["category"], []).append(
            {
                "img_path": Path(os.path.relpath(row["image_path"], root)).as_posix(),
                "mask_path": Path(os.path.relpath(mask, root)).as_posix() if mask else "",
                "cls_name": row["category"],
                "specie_name": row["defect_type"],
                "anomaly": int(row["label"]),
            }
        )
    for phase in ("train", "test"):  # published loaders look every category up in both
        for category in dict.fromkeys(frame["category"]):
            meta[phase].setdefault(category, [])
    return meta


def from_meta(file: Path, *, name: str | None = None) -> pd.DataFrame:
    """Makes an index of a ``meta.json``.

    Args:
        file: The file, or the folder that holds it.
        name: What to call the data set; the folder's name by default.

    Raises:
        DataError: No such file, a broken one, or images that are not there.
    """
    root = file if file.is_dir() else file.parent
    rows = meta_rows(root)
    if not rows:
        raise DataError(f"{root / META} does not exist or lists nothing")
    known = any(row["mask"] for row in rows)
    return finish(
        [
            {
                "dataset": name or root.resolve().name,
                "category": row["category"],
                "class_name": row["category"],
                "split": row["split"],
                "label": row["label"],
                "defect_type": row["defect_type"],
                "relative": row["image"],
                "image_path": str(root / row["image"]),
                "mask_path": str(root / row["mask"]) if row["mask"] else "",
                "has_mask": known and (row["label"] == 0 or bool(row["mask"])),
                "mask_threshold": AUTOMATIC,
            }
            for row in rows
        ]
    )
