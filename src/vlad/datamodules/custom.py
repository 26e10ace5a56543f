"""Your own images: folders with or without labels and masks, tables, and plain lists for prediction."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.datamodules.image_files import IMAGE_SUFFIXES, list_files
from vlad.datamodules.index import finish, plain_id
from vlad.datamodules.tables import read_table, with_new_names
from vlad.datamodules.video import VIDEO_SUFFIXES, count_frames
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["index_folder", "index_images", "index_table", "label_of"]

NORMAL = frozenset({"good", "ok", "normal", "no", "free", "pass", "negative", "healthy"})
ANOMALOUS = frozenset(
    {
        "bad",
        "ng",
        "ko",
        "defect",
        "defects",
        "defective",
        "anomaly",
        "anomalous",
        "anomalies",
        "abnormal",
        "ungood",
    }
    | {"yes", "fail", "positive", "broken", "damaged"}
)
MASKS = frozenset({"mask", "masks", "ground_truth", "groundtruth", "gt"})
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_MASK_ENDINGS = ("", "_mask", "_label", "_gt", "_segmentation", "-mask")


def _folders(file: str) -> set[str]:
    """Returns the lower-case names of the folders above a file, below the root."""
    return {part.lower() for part in Path(file).parts[:-1]}


def label_of(parts: Sequence[str]) -> int:
    """Returns 0, 1 or -1 by the names of the folders above an image, the nearest first."""
    for part in reversed(parts):
        if part in NORMAL:
            return 0
        if part in ANOMALOUS:
            return 1
    return -1


def index_folder(root: Path, *, class_name: str | None = None) -> pd.DataFrame:
    """Indexes a folder of good and bad images, masks optional.

    Folders named good, ok, normal, … hold normal images; bad, ng, defect, … anomalous ones. Beside a
    folder of good images, any other folder below ``test`` counts as a kind of defect (MVTec's layout).
    ``train``, ``val`` and ``test`` folders give the split, ``test`` where there are none. Masks lie in a
    folder named masks, ground_truth, … and pair with images by stem, ``_mask`` and the like allowed.

    Args:
        root: The folder.
        class_name: What is in the images, for the prompts; defaults to the folder's name.

    Raises:
        DataError: Missing folder, no images, or no folder that tells good from bad.
    """
    if not root.is_dir():
        raise DataError(f"folder {root} does not exist; give its place as data.root")
    files = list_files(root)
    masks: dict[str, list[str]] = {}
    images = []
    for file in files:
        folders = [part.lower() for part in Path(file).parts[:-1]]
        if MASKS & _folders(file):
            masks.setdefault(Path(file).stem.lower(), []).append(file)
        else:
            images.append((file, folders))
    if not images:
        raise DataError(f"folder {root} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    has_good = any(label_of(folders) == 0 for _, folders in images)
    name = root.resolve().name
    rows, unlabelled = [], []
    for file, folders in images:
        split = next((SPLITS[part] for part in folders if part in SPLITS), "test")
        label = label_of(folders)
        if label < 0 and has_good and "test" in folders[:-1]:
            label = 1
        if label < 0:
            unlabelled.append(file)
        mask = _mask_for(file, folders, masks) if label == 1 else ""
        rows.append(
            _row(
                name,
                class_name or name,
                split,
                label,
                folders[-1] if folders else "",
                file,
                root / file,
                mask and root / mask,
            )
        )
    if len(unlabelled) == len(rows):
        raise DataError(
            f"folder {root} does not tell good from bad: put images in folders named good and bad (first: "
            f"{unlabelled[0]}), or run vlad predict, which needs no labels"
        )
    known = any(row["mask_path"] for row in rows)
    for row in rows:
        row["has_mask"] = known and (row["label"] == 0 or bool(row["mask_path"]))
    return finish(rows)


def _mask_for(file: str, folders: Sequence[str], masks: dict[str, list[str]]) -> str:
    """Returns the mask of an image: same stem, up to a known ending; of several, the one in the like folder."""
    stem = Path(file).stem.lower()
    found = [mask for ending in _MASK_ENDINGS for mask in masks.get(stem + ending, [])]
    if len(found) <= 1:
        return found[0] if found else ""
    alike = [mask for mask in found if folders and folders[-1] in (part.lower() for part in Path(mask).parts[:-1])]
    return (alike or found)[0]


def _row(
    dataset: str,
    class_name: str,
    split: str,
    label: int,
    defect_type: str,
    relative: str,
    image: Path,
    mask: Path | str,
) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "category": dataset,
        "class_name": class_name,
        "split": split,
        "label": label,
        "defect_type": defect_type,
        "relative": relative,
        "image_path": str(image),
        "mask_path": str(mask) if mask else "",
        "has_mask": bool(mask),
        "mask_threshold": 0,
    }


def index_images(sources: str | Path | Iterable[str | Path], *, class_name: str = "object") -> pd.DataFrame:
    """Indexes images of which nothing is known, for prediction.

    Args:
        sources: An image, a video, a folder (searched with its subfolders, those of masks left out), a glob,
            or a list of these. Of a video every frame is a row.
        class_name: What is in the images, for the prompts.

    Raises:
        DataError: A source does not exist or holds no images.
    """
    import glob

    rows: list[dict[str, Any]] = []
    for source in [sources] if isinstance(sources, str | Path) else sources:
        path = Path(source)
        if path.is_dir():
            files = list_files(path, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
            found = [(file, path / file) for file in files if not MASKS & _folders(file)]
            if not found:
                raise DataError(f"folder {path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        elif path.is_file():
            found = [(path.name, path)]
        else:
            found = [(Path(file).name, Path(file)) for file in sorted(glob.glob(str(source), recursive=True))]
            if not found:
                raise DataError(f"no image, folder or pattern {source}: nothing is there")
        for relative, file in found:
            row = _row("images", class_name, "predict", -1, "", relative, file, "")
            if file.suffix.lower() in VIDEO_SUFFIXES:
                rows += [{**row, "frame": frame} for frame in range(count_frames(file))]
            else:
                rows.append(row)
    for row in rows:
        row["category"] = class_name
    return finish(rows)


_LABELS = {"0": 0, "1": 1, "-1": -1, "": -1, "nan": -1, "false": 0, "true": 1}


def _parse_label(value: Any) -> int | None:
    text = str(value).strip().lower().removesuffix(".0")
    if text in _LABELS:
        return _LABELS[text]
    label = label_of([text])
    return label if label >= 0 else None


def index_table(file: Path, *, root: Path | None = None, class_name: str | None = None) -> pd.DataFrame:
    """Indexes a table of images: CSV, JSON lines or parquet.

    Columns: ``image_path`` (required); ``label`` (0/1/-1, good/bad and the like; where missing, 1 if there is
    a mask, else -1); ``mask_path``; ``category`` or ``class``; ``split`` (default test); ``dataset``;
    ``class_name`` (for the prompts); ``image_id`` (by default the path); and what ``vlad data index`` writes beside
    them: ``row_crop``, ``frame``, ``reader``, ``mask_threshold``.

    Args:
        file: The table.
        root: Folder that relative paths start from; defaults to the table's own.
        class_name: What is in the images, for the prompts; defaults to each row's ``class_name`` or category.

    Raises:
        DataError: Unreadable table, or problems in its rows: all are reported together, five examples each.
    """
    table = with_new_names(read_table(file), file)
    base = root or file.parent
    if "image_path" not in table.columns:
        raise DataError(f"table {file} has no column image_path; it has {list(table.columns)}")
    problems: dict[str, list[str]] = {}
    rows, seen, names = [], set(), set()
    for number, line in enumerate(table.fillna("").to_dict("records"), start=1):
        relative = str(line["image_path"]).strip()
        image, mask = base / relative, str(line.get("mask_path", "")).strip()
        label = _parse_label(line.get("label", ""))
        if label is None:
            problems.setdefault("unknown labels", []).append(f"row {number}: {line['label']}")
        if not relative or not os.path.isfile(image):
            problems.setdefault("missing images", []).append(f"row {number}: {relative or '(empty)'}")
        if mask and not os.path.exists(base / mask):  # MVTec LOCO's are folders
            problems.setdefault("missing masks", []).append(f"row {number}: {mask}")
        row_crop, frame = str(line.get("row_crop", "")), _number(line.get("frame"), -1)
        if not re.fullmatch(r"(\d+/[1-9]\d*)?", row_crop):
            problems.setdefault("row crops that are not k/n", []).append(f"row {number}: {row_crop}")
        if (relative, row_crop, frame) in seen:
            problems.setdefault("duplicate images", []).append(f"row {number}: {relative}")
        seen.add((relative, row_crop, frame))
        label = 1 if label == -1 and mask else label if label is not None else -1
        parent = Path(relative).parent.name
        category = str(line.get("category") or line.get("class") or ("" if label_of([parent.lower()]) >= 0 else parent))
        category = category or "object"
        prompt = class_name or str(line.get("class_name") or category)
        row = _row(str(line.get("dataset") or file.stem), prompt, "", label, "", relative, image, "")
        row |= {
            "category": category,
            "split": str(line.get("split") or "test"),
            "defect_type": str(line.get("defect_type", "")),
        }
        row["mask_path"] = str(base / mask) if mask else ""
        row |= {"row_crop": row_crop, "frame": frame, "reader": str(line.get("reader", ""))}
        row["mask_threshold"] = _number(line.get("mask_threshold"), 0)
        row["image_id"] = plain_id(str(line.get("image_id", "")))
        name = (row["dataset"], category, row["image_id"])
        if row["image_id"] and name in names:
            problems.setdefault("duplicate image ids", []).append(f"row {number}: {row['image_id']}")
        names.add(name)
        rows.append(row)
    if problems:
        parts = [
            f"{len(found)} {kind} ({'; '.join(found[:5])}{'; …' if len(found) > 5 else ''})"
            for kind, found in problems.items()
        ]
        raise DataError(f"table {file}: {', '.join(parts)}")
    known = any(row["mask_path"] for row in rows)
    for row in rows:
        row["has_mask"] = bool(row["mask_path"]) or (known and row["label"] == 0)
    return finish(rows)


def _number(value: Any, default: int) -> int:
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        return default
