"""What is wrong with a data set on disk: counts, unreadable files, masks, duplicates."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlad.datamodules.decode import RowCrop, load_image, load_mask
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from vlad.datamodules.catalog import Record

__all__ = ["Finding", "Report", "check_index"]


@dataclass(frozen=True)
class Finding:
    """Something that was found.

    Attributes:
        kind: What, in a few words.
        serious: Whether results would be wrong; otherwise it is good to know.
        count: How many.
        examples: The first five.
    """

    kind: str
    serious: bool
    count: int
    examples: list[str]


@dataclass
class Report:
    """What a check saw.

    Attributes:
        counts: Per category and split: normal, anomalous, unknown, and masks.
        findings: What is wrong or worth knowing.
    """

    counts: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing serious was found."""
        return not any(finding.serious for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {"sound": self.sound, **asdict(self)}


def check_index(frame: pd.DataFrame, record: Record | None = None, *, others: Sequence[pd.DataFrame] = ()) -> Report:
    """Reads every file of an index and says what is wrong.

    Args:
        frame: The index.
        record: What the data set should hold, if it is one of the catalogue.
        others: Indices of other data sets, to find images that are in both.
    """
    report = Report()
    rows = frame.to_dict("records")
    for (category, split), group in frame.groupby(["category", "split"], sort=False):
        labels = group["label"]
        report.counts.append(
            {
                "category": category,
                "split": split,
                "normal": int((labels == 0).sum()),
                "anomalous": int((labels == 1).sum()),
                "unknown": int((labels == -1).sum()),
                "masks": int((group["mask_path"] != "").sum()),
            }
        )
    found: dict[tuple[bool, str], list[str]] = defaultdict(list)
    if record is not None:
        _compare_counts(frame, record, found)
        if "pixel" in record.levels:
            lacking = [row["image_path"] for row in rows if row["label"] == 1 and not row["mask_path"]]
            found[True, "anomalous images without a mask"] += lacking
    with ThreadPoolExecutor(4) as pool:  # decoding and hashing leave Python's lock
        for problems in pool.map(_read_row, rows):
            for kind, text in problems:
                found[kind in _SERIOUS, kind].append(text)
    _duplicates(rows, [row for other in others for row in other.to_dict("records")], found)
    report.findings = [
        Finding(kind, serious, len(texts), texts[:5])
        for (serious, kind), texts in sorted(found.items(), reverse=True)
        if texts
    ]
    return report


_UNREADABLE, _MASK, _EMPTY, _GREY = (
    "unreadable images",
    "unreadable masks, or masks of another size than their image",
    "masks without an anomalous pixel",
    "masks with values besides two: where the threshold lies changes their area",
)
_KINDS = (("train", 0, "normal"), ("test", 0, "normal"), ("test", 1, "anomalous"))
_SERIOUS = {_UNREADABLE, _MASK, _EMPTY}


def _read_row(row: dict[str, Any]) -> list[tuple[str, str]]:
    problems = []
    size, crop = None, RowCrop.parse(row["row_crop"])
    try:
        size = load_image(row["image_path"], crop=crop, frame=int(row["frame"]), reader=row["reader"]).size
    except DataError as error:
        problems.append((_UNREADABLE, str(error)))
    if row["mask_path"]:
        try:
            if not load_mask(row["mask_path"], size, threshold=row["mask_threshold"], crop=crop).any():
                problems.append((_EMPTY, row["mask_path"]))
            if Path(row["mask_path"]).is_file():
                with Image.open(row["mask_path"]) as opened:
                    values = np.unique(np.asarray(opened if opened.mode in {"P", "L", "1"} else opened.convert("L")))
                if len(values) > 2:
                    problems.append((_GREY, f"{row['mask_path']} ({len(values)} values)"))
        except DataError as error:
            problems.append((_MASK, str(error)))
    return problems


def _compare_counts(frame: pd.DataFrame, record: Record, found: dict[tuple[bool, str], list[str]]) -> None:
    missing = [category for category in record.categories if category not in set(frame["category"])]
    if missing:
        found[True, "categories that are missing"] += missing
    unknown = [category for category in dict.fromkeys(frame["category"]) if category not in record.categories]
    if unknown:
        found[False, "categories that the data set does not have"] += unknown
    for category, counts in record.counts.items():
        one = frame[frame["category"] == category]
        for (split, label, kind), number in zip(_KINDS, counts if len(one) else (), strict=False):
            have = int(((one["split"] == split) & (one["label"] == label)).sum())
            if have != number:
                text = f"{category} {split} {kind}: {have} here, {number} officially"
                found[True, "counts that differ from the official ones"].append(text)
    for split, expected in record.expected.items():
        if record.counts:
            break  # said already, category by category
        here = frame[frame["split"] == split]
        seen = {"normal": int((here["label"] == 0).sum()), "anomalous": int((here["label"] == 1).sum())}
        seen["total"] = len(here)
        for kind, number in expected.items():
            if seen[kind] != number:
                text = f"{split} {kind}: {seen[kind]} here, {number} officially"
                found[True, "counts that differ from the official ones"].append(text)


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def _duplicates(
    rows: list[dict[str, Any]], others: list[dict[str, Any]], found: dict[tuple[bool, str], list[str]]
) -> None:
    """Finds files of the same bytes: across splits, with different labels, or across data sets is serious."""
    by_size: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in {row["image_path"]: row for row in [*others, *rows]}.values():
        try:
            by_size[Path(row["image_path"]).stat().st_size].append(row)
        except OSError:
            continue
    same: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for group in by_size.values():
        for row in group if len(group) > 1 else []:
            same[_digest(row["image_path"])].append(row)
    own = {row["image_path"] for row in rows}
    for digest, group in same.items():
        if not digest or len(group) < 2 or not any(row["image_path"] in own for row in group):
            continue
        text = " = ".join(row["image_path"] for row in group)
        if len({row["dataset"] for row in group}) > 1:
            kind = (True, "images that another data set has too, byte for byte")
        elif len({row["label"] for row in group}) > 1:
            kind = (True, "the same image with different labels")
        elif len({row["split"] for row in group}) > 1:
            kind = (True, "the same image in different splits")
        else:
            kind = (False, "the same image several times")
        found[kind].append(text)
