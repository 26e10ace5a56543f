"""From a layout to rows: matching paths, tables and JSON lists, then labels, masks, row crops and splits."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlad.datamodules.record import Layout, Record
from vlad.errors import DataError
from vlad.files import read_plain

__all__ = ["META", "layout_rows", "meta_rows"]

META = "meta.json"
"""The index that AdaCLIP's and AnomalyCLIP's preparation scripts write into a data set's folder."""

Row = dict[str, Any]


def _without_suffix(path: str) -> str:
    return path[: len(path) - len(Path(path).suffix)]


def layout_rows(record: Record, layout: Layout, root: Path, files: Sequence[str]) -> list[Row]:
    """Returns a row per image of a layout; [] if the layout is another one.

    Args:
        record: The data set.
        layout: One of its layouts.
        root: Its folder.
        files: All image files below it, relative, sorted.

    Returns:
        Rows with ``image``, ``mask`` (a file, a folder, or ""), ``label`` (0, 1, -1), ``row_crop`` ("k/n" or ""),
        and ``category``, ``split``, ``defect_type`` where known.
    """
    if layout.table:
        rows = _table_rows(layout, root)
    elif layout.json:
        rows = _json_rows(layout, root, record)
    else:
        rows = _matched_rows(layout, root, files)
    for row in rows:
        row.setdefault("row_crop", "")
        row["split"] = layout.splits.get(row.get("split") or "", row.get("split")) or layout.split
        if row.get("defect_type") in layout.unlabelled:
            row["label"] = -1
    if layout.row_crops:
        rows = [{**row, "row_crop": f"{k}/{layout.row_crops}"} for row in rows for k in range(layout.row_crops)]
    if layout.label == "mask":
        _label_by_mask(rows, root, record.mask_threshold)
    if layout.normal_test:
        _draw_normals(rows, layout.normal_test)
    return rows


def _matched_rows(layout: Layout, root: Path, files: Sequence[str]) -> list[Row]:
    pattern = re.compile(layout.image)
    by_name: dict[str, str] = {}
    for file in files:
        by_name[file.lower()] = file
        by_name.setdefault(_without_suffix(file).lower(), file)
    folders = {str(Path(file).parent).lower(): str(Path(file).parent) for file in files} if layout.masks else {}
    labels = _read_labels(layout, root)
    rows = []
    for file in files:
        match = pattern.fullmatch(_without_suffix(file))
        if match is None or (layout.suffixes and Path(file).suffix.lower() not in layout.suffixes):
            continue
        groups: Row = match.groupdict()
        if layout.labels:
            stem = str(groups["stem"]).lstrip("0") or "0"
            if labels is None or stem not in labels:
                continue
            groups["label"] = labels[stem]
        else:
            groups["label"] = int(layout.label != "defect_type" or groups.get("defect_type") not in layout.normal)
        groups["image"], groups["mask"] = file, ""
        if groups["label"] == 1:
            for template in layout.masks:
                wanted = template.format(**{key: value or "" for key, value in groups.items()}).lower()
                found = folders.get(wanted[:-1]) if wanted.endswith("/") else by_name.get(wanted)
                if found and found != file:
                    groups["mask"] = found
                    break
        if layout.label == "has_mask":
            groups["label"] = int(bool(groups["mask"]))
        rows.append(groups)
    return rows


def _read_labels(layout: Layout, root: Path) -> dict[str, int] | None:
    """Reads a label table: stem without leading zeros → 0 or 1; None if there is no such file."""
    if not layout.labels or not (root / layout.labels["file"]).is_file():
        return None
    found = {}
    for number, line in enumerate(
        _read_csv(root / layout.labels["file"], [layout.labels["key"], layout.labels["value"]]), start=2
    ):
        try:
            found[line[layout.labels["key"]].lstrip("0") or "0"] = int(line[layout.labels["value"]])
        except ValueError as error:
            raise DataError(f"{root / layout.labels['file']}, line {number}: label {error.args[0]!r}") from error
    return found


def _read_csv(file: Path, columns: Any) -> list[dict[str, str]]:
    """Reads a CSV with a header; blanks around names and values are dropped.

    Raises:
        DataError: Not text, or columns or values that are missing.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.reader(stream))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    header = [name.strip() for name in lines[0]] if lines else []
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{file} lacks the columns {missing}; it has {header}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        if len(line) != len(header):
            raise DataError(f"{file}, line {number}: {len(line)} values for {len(header)} columns")
        rows.append({name: value.strip() for name, value in zip(header, line, strict=True)})
    return rows


def _table_rows(layout: Layout, root: Path) -> list[Row]:
    if not (root / layout.table).is_file():
        return []
    rows: list[Row] = []
    for line in _read_csv(root / layout.table, layout.columns.values()):
        row: Row = {ours: line[theirs] for ours, theirs in layout.columns.items()}
        row["label"] = int(row["defect_type"] not in layout.normal)
        rows.append(row)
    return rows


def _load_json(file: Path) -> Any:
    try:
        return json.loads(read_plain(file))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {str(error).splitlines()[0]}") from error


def _json_rows(layout: Layout, root: Path, record: Record) -> list[Row]:
    rows: list[Row] = []
    for file in sorted(root.glob(layout.json)):
        category = file.stem
        if category not in record.categories:
            continue
        data = _load_json(file)
        bases = [base.format(category=category) for base in layout.base]
        base = next((base for base in bases if (root / base).is_dir()), None)
        if base is None:
            continue  # listed, but not downloaded
        for split in ("train", "test"):
            lines = data.get(split) if isinstance(data, dict) else None
            for line in lines if isinstance(lines, list) else []:
                try:
                    values = {ours: line[theirs] or "" for ours, theirs in layout.columns.items()}
                except (KeyError, TypeError) as error:
                    raise DataError(f"{file}: an entry of '{split}' lacks {error}") from error
                row: Row = {**values, "category": category, "split": split}
                row["label"] = int(row["defect_type"] not in layout.normal)
                row |= {name: row[name] and f"{base}/{row[name]}" for name in ("image", "mask")}
                rows.append(row)
    return rows


def meta_rows(root: Path, *, masks: bool = True) -> list[Row]:
    """Returns the rows of a ``meta.json``, in any of its published dialects; [] if there is none.

    Phases are matched whatever their case; absolute paths of another machine are looked for below the root by
    their longest existing end.

    Args:
        root: Folder of the file.
        masks: Whether masks are wanted.

    Raises:
        DataError: Broken file, or images that are not there.
    """
    file = root / META
    if not file.is_file():
        return []
    data = _load_json(file)
    splits = {"train": "train", "test": "test", "validation": "val", "val": "val"}
    rows: list[Row] = []
    missing: list[str] = []
    try:
        for phase, categories in data.items():
            for category, lines in categories.items():
                for line in lines:
                    image, mask = _below(root, line["img_path"]), ""
                    if masks and line.get("mask_path"):
                        mask = _below(root, line["mask_path"]) or ""
                    if image is None:
                        missing.append(line["img_path"])
                        continue
                    row: Row = {"image": image, "mask": mask, "category": category, "row_crop": ""}
                    row |= {"split": splits[phase.lower()], "defect_type": line.get("specie_name", "")}
                    label = int(line["anomaly"])
                    if label not in (-1, 0, 1):
                        raise ValueError(f"anomaly {label}")
                    rows.append({**row, "label": label})
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{file} is not in the format of AdaCLIP or AnomalyCLIP ({error!r}); correct or remove it"
        ) from error
    if missing:
        raise DataError(
            f"{file} names {len(missing)} images that are not there (first: {', '.join(missing[:5])}); correct it, "
            "or remove it and the folders are read instead"
        )
    return rows


def _below(root: Path, path: str) -> str | None:
    """Returns a listed path relative to the root if the file is there, else None."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in {"", "."}]
    absolute = path.startswith("/") or (len(path) > 1 and path[1] == ":")
    for start in range(len(parts) if absolute else 1):
        tail = parts[start:]
        if ".." not in tail and os.path.isfile(root / "/".join(tail)):
            return "/".join(tail)
    return None


def _label_by_mask(rows: list[Row], root: Path, threshold: int) -> None:
    from vlad.datamodules.decode import RowCrop, load_mask

    for row in rows:
        row["label"] = 0
        if row["mask"]:
            mask = load_mask(str(root / row["mask"]), threshold=threshold, crop=RowCrop.parse(row["row_crop"]))
            row["label"] = int(mask.any())
        if not row["label"]:
            row["mask"] = ""


def _draw_normals(rows: list[Row], share: float) -> None:
    """Splits: anomalous images test; of the sorted normal ones, a seeded share tests and the others train."""
    from sklearn.model_selection import train_test_split

    normal = [row for row in rows if row["label"] == 0]
    for row in rows:
        row["split"] = "test"
    if len(normal) > 1:
        train, _ = train_test_split(range(len(normal)), test_size=share, random_state=42)
        for place in train:
            normal[place]["split"] = "train"
