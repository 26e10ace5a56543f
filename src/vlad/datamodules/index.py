"""From files to one table: the index that every data set, folder and table becomes."""

from __future__ import annotations

import os
from collections import Counter
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlad.datamodules.image_files import IMAGE_SUFFIXES, list_files, printable
from vlad.datamodules.layouts import META, layout_rows, meta_rows
from vlad.datamodules.record import Record
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "Found", "finish", "index_record", "plain_id"]

COLUMNS = (
    "dataset",
    "category",
    "class_name",
    "split",
    "label",
    "defect_type",
    "image_id",
    "image_path",
    "mask_path",
    "has_mask",
    "mask_threshold",
    "row_crop",
    "frame",
    "reader",
)
"""Columns of an index: label is 0, 1 or -1 (unknown); mask_path is "" where there is none; has_mask tells
whether the truth of the pixels is known; row_crop is the part "k/n" of the rows, "" for all; frame is the number of a
video's frame, else -1; reader as for :func:`vlad.datamodules.decode.load_image`."""


_NAMES = ("dataset", "category", "class_name", "defect_type", "image_id")


class Found(NamedTuple):
    """What a search found: every file is in one of the two.

    Attributes:
        frame: The index.
        ignored: Files that are no row of it: reason → paths.
    """

    frame: pd.DataFrame
    ignored: dict[str, list[str]]


def _without_suffix(path: str) -> str:
    return os.path.splitext(path)[0]


def plain_id(path: str) -> str:
    """Returns a path as the name of an image: a place below a folder, whatever the path."""
    return "/".join(part for part in path.split("/") if part not in {"", ".", ".."})


def finish(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Makes an index of rows: fills the columns and names each image uniquely within its category.

    The name (``image_id``), where a row has none, is the path below the root, or below the category's folder, without
    its suffix; where two images share it, with it. Names are made printable: escape codes in them reach no terminal.
    """
    import pandas as pd

    rows = [{**row, **{name: printable(row[name]) for name in _NAMES if row.get(name)}} for row in rows]

    def short(row: dict[str, Any]) -> tuple[str, str, str]:
        return (
            row["dataset"],
            row["category"],
            f"{_without_suffix(row['relative'])} {row.get('row_crop')} {row.get('frame')}",
        )

    times = Counter(short(row) for row in rows)
    finished, taken = [], {(row["dataset"], row["category"], row["image_id"]) for row in rows if row.get("image_id")}
    for row in rows:
        key = row["relative"] if times[short(row)] > 1 else _without_suffix(row["relative"])
        row = {"row_crop": "", "frame": -1, "reader": "", **row}
        finished.append(row)
        if row.get("image_id"):
            continue
        name = printable(plain_id(key))
        names = chain([name.removeprefix(f"{row['category']}/"), name], (f"{name}~{number}" for number in count(2)))
        ending = "_" + row["row_crop"].split("/")[0] if row["row_crop"] else ""
        ending += f"_{row['frame']:06}" if row["frame"] >= 0 else ""
        for name in names:  # a number tells paths apart that differ in their dots alone
            row["image_id"] = name + ending
            if (row["dataset"], row["category"], row["image_id"]) not in taken:
                break
        taken.add((row["dataset"], row["category"], row["image_id"]))
    try:
        return pd.DataFrame(finished, columns=list(COLUMNS))
    except UnicodeEncodeError:  # pandas' own kind of text holds no names that are not UTF-8
        columns = {name: [row.get(name) for row in finished] for name in COLUMNS}
        return pd.DataFrame({name: pd.Series(values, dtype=_kind(values)) for name, values in columns.items()})


def _kind(values: list[Any]) -> Any:
    return object if values and isinstance(values[0], str) else None


def index_record(
    record: Record, root: Path, *, class_names: dict[str, str] | None = None, reader: str = ""
) -> pd.DataFrame:
    """Indexes a data set of the catalogue.

    Args:
        record: The data set.
        root: Its folder.
        class_names: What to call a category in the prompts, in place of its own name.
        reader: As for :func:`vlad.datamodules.decode.load_image`.

    Returns:
        The index, in the order category, split, defect_type, file.

    Raises:
        DataError: The folder is missing or in none of the known layouts.
    """
    if not root.is_dir():
        raise DataError(
            f"{record.title}: folder {root} does not exist; give its place as data.root, or {record.steps} "
            f"({record.url})"
        )
    files = [file for file in list_files(root) if Path(file).suffix.lower() in IMAGE_SUFFIXES]
    rows = meta_rows(root, masks="pixel" in record.levels)
    for layout in record.layouts:
        rows = rows or layout_rows(record, layout, root, files)
    if not rows:
        tried = "; ".join(
            [f"{META} of AdaCLIP or AnomalyCLIP", *(f"{one.name}: {one.wanted}" for one in record.layouts)]
        )
        raise DataError(
            f"{record.title}: {root} is in none of the known layouts ({tried}); {record.steps} ({record.url})"
        )
    only = next(iter(record.categories)) if len(record.categories) == 1 else None
    names = class_names or {}
    indexed = []
    for row in rows:
        category = only or row.get("category") or record.name
        label = row["label"]
        indexed.append(
            {
                "dataset": record.name,
                "category": category,
                "class_name": names.get(category, category),
                "split": row.get("split") or "test",
                "label": label,
                "defect_type": row.get("defect_type") or "",
                "relative": row["image"],
                "image_path": str(root / row["image"]),
                "mask_path": str(root / row["mask"]) if row["mask"] else "",
                "has_mask": "pixel" in record.levels and (label == 0 or bool(row["mask"])),
                "mask_threshold": record.mask_threshold,
                "row_crop": row["row_crop"],
                "reader": reader,
            }
        )
    order = {category: position for position, category in enumerate(record.categories)}
    indexed.sort(
        key=lambda r: (
            order.get(r["category"], len(order)),
            r["category"],
            r["split"],
            r["defect_type"],
            r["relative"],
            r["row_crop"],
        )
    )
    return finish(indexed)
