"""From files to one table: the index that every data set, folder and table becomes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.datamodules.catalog import Layout, Record
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "IMAGE_SUFFIXES", "finish", "index_record", "list_files"]

COLUMNS = (
    "dataset",
    "category",
    "class_name",
    "split",
    "label",
    "species",
    "key",
    "image_path",
    "mask_path",
    "has_mask",
    "mask_threshold",
)
"""Columns of an index: label is 0, 1 or -1 (unknown); mask_path is "" where there is none; has_mask tells
whether the truth of the pixels is known."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})


def list_files(root: Path) -> list[str]:
    """Returns all image files below a folder, as sorted POSIX paths relative to it; hidden ones are skipped."""
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        found += [
            (relative / file).as_posix()
            for file in files
            if not file.startswith(".") and Path(file).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def _without_suffix(path: str) -> str:
    return path[: -len(Path(path).suffix)]


def finish(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Makes an index of rows: fills the columns and names each image uniquely within its category.

    The name (``key``) is the path below the root, or below the category's folder, without its suffix; where two
    images share it, with it.
    """
    import pandas as pd

    def short(row: dict[str, Any]) -> tuple[str, str, str]:
        return row["dataset"], row["category"], _without_suffix(row["relative"])

    times = Counter(short(row) for row in rows)
    for row in rows:
        key = row["relative"] if times[short(row)] > 1 else _without_suffix(row["relative"])
        parts = [part for part in key.split("/") if part not in {"", ".", ".."}]
        row["key"] = "/".join(parts[1:] if len(parts) > 1 and parts[0] == row["category"] else parts)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def index_record(record: Record, root: Path, *, class_names: dict[str, str] | None = None) -> pd.DataFrame:
    """Indexes a data set of the catalogue.

    Args:
        record: The data set.
        root: Its folder.
        class_names: What to call a category in the prompts, in place of its own name.

    Returns:
        The index, in the order category, split, species, file.

    Raises:
        DataError: The folder is missing or in none of the known layouts.
    """
    if not root.is_dir():
        raise DataError(
            f"{record.title}: folder {root} does not exist; give its place as data.root, or {record.steps} "
            f"({record.url})"
        )
    files = list_files(root)
    for layout in record.layouts:
        rows = _table_rows(layout, root) if layout.table else _matched_rows(layout, root, files)
        if rows:
            break
    else:
        tried = "; ".join(f"{layout.name}: {layout.table or layout.image}" for layout in record.layouts)
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
                "species": row.get("species") or "",
                "relative": row["image"],
                "image_path": str(root / row["image"]),
                "mask_path": str(root / row["mask"]) if row["mask"] else "",
                "has_mask": "pixel" in record.levels and (label == 0 or bool(row["mask"])),
                "mask_threshold": record.mask_threshold,
            }
        )
    order = {category: position for position, category in enumerate(record.categories)}
    indexed.sort(
        key=lambda r: (
            order.get(r["category"], len(order)),
            r["category"],
            r["split"],
            r["species"],
            r["relative"],
        )
    )
    return finish(indexed)


def _matched_rows(layout: Layout, root: Path, files: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of a layout given as a regular expression; [] if no file matches."""
    files = list(files)
    pattern = re.compile(layout.image)
    by_stem = {_without_suffix(file).lower(): file for file in files}
    labels = _read_labels(layout, root)
    rows = []
    for file in files:
        match = pattern.fullmatch(_without_suffix(file))
        if match is None:
            continue
        groups: dict[str, Any] = match.groupdict()
        if layout.labels:
            stem = str(groups["stem"]).lstrip("0") or "0"
            if labels is None or stem not in labels:
                continue
            groups["label"] = labels[stem]
        else:
            groups["label"] = int(groups.get("species") not in layout.normal)
        candidates = [template.format(**groups).lower() for template in layout.masks]
        mask = next((by_stem[c] for c in candidates if c in by_stem), "") if groups["label"] == 1 else ""
        rows.append({**groups, "image": file, "mask": mask})
    return rows


def _read_labels(layout: Layout, root: Path) -> dict[str, int] | None:
    """Reads a label table: stem without leading zeros → 0 or 1; None if there is no such file."""
    if not layout.labels or not (root / layout.labels["file"]).is_file():
        return None
    import pandas as pd

    table = pd.read_csv(root / layout.labels["file"], skipinitialspace=True)
    table.columns = table.columns.str.strip()
    keys = table[layout.labels["key"]].astype(str).str.lstrip("0").replace("", "0")
    return dict(zip(keys, table[layout.labels["value"]].astype(int), strict=True))


def _table_rows(layout: Layout, root: Path) -> list[dict[str, Any]]:
    """Rows of a layout given as a CSV; [] if the file is not there."""
    if not (root / layout.table).is_file():
        return []
    import pandas as pd

    table = pd.read_csv(root / layout.table, dtype=str, keep_default_na=False)
    columns = dict(layout.columns)
    missing = [column for column in columns.values() if column not in table.columns]
    if missing:
        raise DataError(f"{root / layout.table} lacks the columns {missing}; it has {list(table.columns)}")
    rows = []
    for line in table.to_dict("records"):
        row = {ours: line[theirs] for ours, theirs in columns.items()}
        row["label"] = int(row["species"] not in layout.normal)
        rows.append(row)
    return rows
