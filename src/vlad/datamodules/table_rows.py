"""The rows of a table as an index: paths, labels, masks, categories and splits, all problems told at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.datamodules.columns import EMPTY, parse_label, with_own_names
from vlad.datamodules.image_files import printable
from vlad.datamodules.index import finish, plain_id
from vlad.datamodules.masks import AUTOMATIC
from vlad.datamodules.masks_of import join_masks, split_masks
from vlad.datamodules.notes import Note, say, say_notes
from vlad.datamodules.tables import read_table, with_new_names
from vlad.datamodules.words import label_of, label_of_word, split_of
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Table", "index_table", "read_rows"]


@dataclass
class Table:
    """What a table was taken for.

    Attributes:
        frame: The index.
        notes: What was guessed, left out or left open.
        columns: Column of the table → what it was read as.
    """

    frame: pd.DataFrame
    notes: list[Note] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)


def index_table(
    file: Path, *, root: Path | None = None, class_name: str | None = None, scored: bool = False
) -> pd.DataFrame:
    """Indexes a table of images: CSV, TSV, JSON, JSON lines or parquet; says in a line each what it does not read.

    Columns, in any spelling and by their usual other names: ``image_path`` (required); ``label`` (0/1/-1, good/bad and
    the like; where missing, 1 if there is a mask, else -1); ``mask_path`` (several as a JSON list); ``category`` or
    ``class``; ``split`` (default test); ``dataset``; ``class_name`` (for the prompts); ``image_id`` (by default the
    path); ``defect_type``; and what ``vlad data index`` writes beside them: ``row_crop``, ``frame``, ``reader``,
    ``mask_threshold``.

    Args:
        file: The table.
        root: Folder that relative paths start from; defaults to the table's own.
        class_name: What is in the images, for the prompts; defaults to each row's ``class_name`` or category.
        scored: Whether the images are only scored: then wrong labels and missing masks do not matter, and an image that
            is not there stays a row, which fails on its own.

    Raises:
        DataError: Unreadable table, or problems in its rows: all are reported together, five examples each.
    """
    table = read_rows(file, root=root, class_name=class_name, scored=scored)
    say_notes(table.notes, f"table {printable(file)}")
    return table.frame


def read_rows(file: Path, *, root: Path | None = None, class_name: str | None = None, scored: bool = False) -> Table:
    """Indexes a table and tells what it was taken for; see :func:`index_table`."""
    table, columns = with_own_names(with_new_names(read_table(file), file), file)
    base = root or file.parent
    if "image_path" not in table.columns:
        has = [printable(name) for name in table.columns]
        fix = "the first line names the columns: image_path, label, …"
        raise DataError(f"table {printable(file)} has no column image_path; it has {has} ({fix})")
    reader = _Rows(file, base, class_name, scored)
    for number, line in enumerate(table.to_dict("records"), start=1):
        reader.add(number, {str(name): str(value).strip() for name, value in line.items()})
    reader.refuse()
    if not reader.rows:
        raise DataError(f"table {printable(file)} lists no images")
    masked = {(row["dataset"], row["category"]) for row in reader.rows if row["mask_path"]}
    for row in reader.rows:
        known = row.pop("known", (row["dataset"], row["category"]) in masked)
        row["has_mask"] = bool(row["mask_path"]) or (known and row["label"] == 0)
    notes = [*reader.notes(bool(masked)), Note("columns are not read", columns.unknown, named=True)]
    if columns.guessed:
        told = ", ".join(f"{printable(name)} as {ours}" for name, ours in columns.guessed.items())
        say(f"table {printable(file)}: columns are read by their values: {told}")
    return Table(finish(reader.rows), [note for note in notes if note.paths], columns.names)


class _Rows:
    """Makes rows of an index of a table's lines, and keeps what is wrong with them."""

    def __init__(self, file: Path, base: Path, class_name: str | None, scored: bool) -> None:
        self.file, self.base, self.class_name, self.scored = file, base, class_name, scored
        self.rows: list[dict[str, Any]] = []
        self.problems: dict[str, list[str]] = {}
        self.gone = 0
        self.unlabelled: list[str] = []
        self.doubled: list[str] = []
        self.images: set[tuple[str, str, int]] = set()
        self.ids: set[tuple[str, str, str]] = set()
        self.elsewhere = ""

    def problem(self, kind: str, number: int, text: str) -> None:
        self.problems.setdefault(kind, []).append(f"row {number}: {printable(text)}")

    def add(self, number: int, line: dict[str, str]) -> None:
        """Adds a line."""
        relative, row_crop, frame = self._image(number, line), line.get("row_crop", ""), _number(line.get("frame"), -1)
        if not re.fullmatch(r"(\d+/[1-9]\d*)?", row_crop):
            self.problem("row crops that are not k/n", number, row_crop)
        key = (os.path.normpath(self.base / relative), row_crop, frame)
        if key in self.images:
            if self.scored:
                self.doubled.append(relative)
                return
            self.problem("duplicate images", number, relative)
        self.images.add(key)
        masks = self._masks(number, line)
        label, defect_type = self._label(number, line, bool(masks))
        category = _category(relative, line)
        row: dict[str, Any] = {
            "dataset": line.get("dataset") or self.file.stem,
            "category": category,
            "class_name": self.class_name or line.get("class_name") or category,
            "split": self._split(number, line),
            "label": label,
            "defect_type": defect_type,
            "relative": Path(relative).as_posix(),
            "image_path": str(self.base / relative),
            "mask_path": join_masks([str(self.base / mask) for mask in masks]),
            "mask_threshold": _number(line.get("mask_threshold"), AUTOMATIC),
            "row_crop": row_crop,
            "frame": frame,
            "reader": line.get("reader", ""),
            "image_id": printable(plain_id(line.get("image_id", ""))),
        }
        if "has_mask" in line:  # what vlad data index wrote: where a category has masks, normal images have none
            row["known"] = parse_label(line["has_mask"]) == 1
        name = (row["dataset"], category, row["image_id"])
        if row["image_id"] and name in self.ids:
            if self.scored:
                row["image_id"] = ""
            else:
                self.problem("duplicate image ids", number, row["image_id"])
        self.ids.add(name)
        self.rows.append(row)

    def _image(self, number: int, line: dict[str, str]) -> str:
        relative = line["image_path"]
        if not relative or "\0" in relative:
            self.problem("missing images", number, relative or "(empty)")
        elif not os.path.lexists(self.base / relative):
            turned = relative.replace("\\", "/")
            if os.path.lexists(self.base / turned):
                return turned
            self.gone += 1
            if os.path.lexists(relative):
                self.elsewhere = relative
            if not self.scored:
                self.problem("missing images", number, relative)
        return relative

    def _masks(self, number: int, line: dict[str, str]) -> list[str]:
        found = []
        for mask in split_masks(line.get("mask_path", "")):
            if mask.casefold() in EMPTY:
                continue
            turned = next((m for m in (mask, mask.replace("\\", "/")) if os.path.exists(self.base / m)), "")
            if not turned and not self.scored:
                self.problem("missing masks", number, mask)
            found += [turned] if turned else []
        return found

    def _label(self, number: int, line: dict[str, str], masked: bool) -> tuple[int, str]:
        """Returns the label and the kind of defect; a kind alone is a label too, as long as it is a word."""
        kind = line.get("defect_type", "")
        kind = "" if kind.casefold() in EMPTY else kind
        given = line.get("label", "")
        label = parse_label(given)
        if label is None and not self.scored:
            self.problem("unknown labels", number, given)
        if "label" not in line and kind:
            word = label_of_word(kind)
            label = word if word >= 0 else 1
        if label == -1 and masked:
            label = 1
        if label == -1:
            self.unlabelled.append(line["image_path"])
        return (-1 if label is None else label), kind

    def _split(self, number: int, line: dict[str, str]) -> str:
        text = line.get("split", "")
        if text.casefold() in EMPTY:
            return "test"
        split = split_of(text) or ("predict" if text == "predict" else "")
        if not split and not self.scored:
            self.problem("unknown splits", number, text)
        return split or "test"

    def refuse(self) -> None:
        """Raises one error for all that is wrong.

        Raises:
            DataError: Something is.
        """
        if self.scored and self.gone and self.gone == len(self.rows):
            self.problems["missing images"] = [f"row 1: {printable(self.rows[0]['relative'])}"] * self.gone
        if not self.problems:
            return
        parts = [
            f"{len(found)} {kind} ({'; '.join(_five(found))}{'; …' if len(found) > 5 else ''})"
            for kind, found in self.problems.items()
        ]
        hint = "; labels are 0 and 1, or words such as good and bad" if "unknown labels" in self.problems else ""
        hint += "; splits are train, val and test" if "unknown splits" in self.problems else ""
        if "missing images" in self.problems:
            hint += f"; relative paths start from {printable(self.base)}"
            hint += ", not from the working folder" if self.elsewhere else ""
        raise DataError(f"table {printable(self.file)}: {', '.join(parts)}{hint}")

    def notes(self, known: bool) -> list[Note]:
        """Returns what was left open."""
        lacking = [row["relative"] for row in self.rows if known and row["label"] == 1 and not row["mask_path"]]
        some = not self.scored and len(self.unlabelled) < len(self.rows)
        return [
            Note("anomalous images have no mask: their pixels are left out", lacking, True, True),
            Note("images have no label", self.unlabelled if some else [], False, True),
            Note("rows name an image again and are left out", self.doubled, False, True),
        ]


def _five(found: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(found))[:5]


def _category(relative: str, line: dict[str, str]) -> str:
    """Returns the category: the column, else the folder that the image is in, unless its name is a label."""
    parent = Path(relative).parent.name
    given = line.get("category") or ("" if label_of([parent]) >= 0 else parent)
    return given if given not in {"", ".", ".."} else "object"


def _number(value: Any, default: int) -> int:
    try:
        return int(float(str(value).replace(",", ".")))
    except (TypeError, ValueError, OverflowError):
        return default
