"""What a data set on disk is taken for, and what is wrong: counts, files left out, unreadable files, masks, copies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlad.datamodules.decode import Reading, RowCrop, load_image, load_mask
from vlad.datamodules.image_files import printable
from vlad.datamodules.masks_of import split_masks
from vlad.datamodules.notes import BYSTANDERS, Note
from vlad.datamodules.overlap import file_digest
from vlad.datamodules.pages_of import pages_of
from vlad.datamodules.taken import Taken, taken_for
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from vlad.datamodules.record import Record

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
        taken: Per folder: what its images were taken for.
        findings: What is wrong or worth knowing.
        left_out: How many files have no effect though they may be meant to.
    """

    counts: list[dict[str, Any]] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    left_out: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing serious was found and nothing was left out."""
        return not self.left_out and not any(finding.serious for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {"sound": self.sound, **asdict(self)}


def check_index(
    frame: pd.DataFrame,
    record: Record | None = None,
    *,
    others: Sequence[pd.DataFrame] = (),
    notes: Sequence[Note] = (),
    ignored: Mapping[str, Sequence[str]] | None = None,
    reading: Reading | None = None,
) -> Report:
    """Reads every file of an index and says what is wrong.

    Args:
        frame: The index.
        record: What the data set should hold, if it is one of the catalogue.
        others: Indices of other data sets, to find images that are in both.
        notes: What was guessed or left open when the index was made.
        ignored: Files that are not in the index: reason → paths.
        reading: The rules that images are read by.
    """
    report = Report(taken=taken_for(frame))
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
    for note in notes:
        found[note.serious, note.kind] += note.paths
        report.left_out += len(note.paths) * note.left_out
    for reason, paths in (ignored or {}).items():
        meant = reason not in BYSTANDERS
        found[False, f"left out: {reason}" if meant else f"no images: {reason}"] += paths
        report.left_out += len(paths) * meant
    if record is not None:
        _compare_counts(frame, record, found)
        if "pixel" in record.levels:
            lacking = [row["image_path"] for row in rows if row["label"] == 1 and not row["mask_path"]]
            found[True, "anomalous images without a mask"] += lacking
    with ThreadPoolExecutor(4) as pool:  # decoding and hashing leave Python's lock
        for problems in pool.map(lambda row: _read_row(row, reading or Reading()), rows):
            for kind, text in problems:
                found[kind in _SERIOUS, kind].append(text)
    _duplicates(rows, [row for other in others for row in other.to_dict("records")], found)
    report.findings = [
        Finding(kind, serious, len(texts), [printable(text) for text in texts[:5]])
        for (serious, kind), texts in ((key, list(dict.fromkeys(texts))) for key, texts in sorted(found.items())[::-1])
        if texts
    ]
    return report


_UNREADABLE, _MASK, _EMPTY, _GREY = (
    "unreadable images",
    "unreadable masks, or masks of another size than their image",
    "masks without an anomalous pixel",
    "masks with values besides two: where the threshold lies changes their area",
)
_TURNED = "images are turned as their EXIF data say, and their masks with them"
_PAGES = "images of several pages, of which the first is taken"
_KINDS = (("train", 0, "normal"), ("test", 0, "normal"), ("test", 1, "anomalous"))
_SERIOUS = {_UNREADABLE, _MASK, _EMPTY}


def _read_row(row: dict[str, Any], reading: Reading) -> list[tuple[str, str]]:
    problems = []
    path, frame, size, crop = row["image_path"], int(row["frame"]), None, RowCrop.parse(row["row_crop"])
    try:
        size = load_image(path, crop=crop, frame=frame, reader=row["reader"], reading=reading).size
        if frame < 0 and pages_of(Path(path)) > 1:
            problems.append((_PAGES, path))
        with Image.open(path) as opened:
            if opened.getexif().get(0x0112, 1) not in {0, 1}:
                problems.append((_TURNED, path))
    except DataError as error:
        problems.append((_UNREADABLE, str(error)))
    except Exception:  # a video or a TIFF that only our own reader opens; its metadata do not matter
        pass
    if row["mask_path"]:
        threshold = int(row["mask_threshold"])
        try:
            if not load_mask(
                row["mask_path"], size, threshold=threshold, crop=crop, frame=frame, reading=reading
            ).any():
                problems.append((_EMPTY, row["mask_path"]))
        except DataError as error:
            problems.append((_MASK, str(error)))
        else:
            problems += [(_GREY, text) for text in map(_values, split_masks(row["mask_path"])) if text]
    return problems


def _values(mask: str) -> str:
    """Returns how many values a mask has, if it has more than two, else ""."""
    if not Path(mask).is_file():
        return ""
    with Image.open(mask) as opened:
        values = np.unique(np.asarray(opened if opened.mode in {"P", "L", "1"} else opened.convert("L")))
    return f"{mask} ({len(values)} values)" if len(values) > 2 else ""


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
        return file_digest(path)
    except DataError:  # told already, as unreadable
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
