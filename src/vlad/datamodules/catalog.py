"""The catalogue: one record of plain data per data set, in ``records/*.toml``. No torch, no pandas."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from vlad.errors import DataError, nearest

__all__ = ["Layout", "Record", "get_record", "list_datasets"]


@dataclass(frozen=True)
class Layout:
    """One way in which a data set's files may lie; all paths are POSIX and relative to the root.

    Attributes:
        name: What the error calls it when no layout fits.
        image: Regular expression over a file's path without its suffix; groups ``category``, ``split``,
            ``species`` (the kind of defect, or the normal folder) and ``stem`` are read where present.
        masks: Paths of the mask without suffix, tried in order, filled with the groups.
        normal: Species that are normal.
        labels: A CSV with one label per stem: ``file``, ``key`` column, ``value`` column (1 is anomalous).
        table: A CSV that lists every image, in place of ``image``.
        columns: That table's columns for ``category``, ``split``, ``species``, ``image`` and ``mask``.
    """

    name: str
    image: str = ""
    masks: tuple[str, ...] = ()
    normal: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    table: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What is known of a data set.

    Attributes:
        name: Name in configs.
        title: Name in print.
        domain: ``"industrial"`` or ``"medical"``.
        levels: At which levels there is ground truth: ``"image"``, ``"pixel"``.
        folders: Usual folder names below a common data root, tried in order.
        categories: Category → natural words for it. The category itself is what published checkpoints saw.
        layouts: Known layouts, tried in order.
        licence: Licence of the data.
        url: Where it comes from.
        steps: How to get it into place.
        citation: Paper.
        mask_threshold: A mask pixel above this value is anomalous.
        expected: Official counts, split → ``normal``/``anomalous``.
        rendered: Whether vlad makes the pictures itself, into its cache, where no root is given.
    """

    name: str
    title: str
    domain: Literal["industrial", "medical"]
    levels: tuple[str, ...]
    folders: tuple[str, ...]
    categories: Mapping[str, str]
    layouts: tuple[Layout, ...]
    licence: str = ""
    url: str = ""
    steps: str = ""
    citation: str = ""
    mask_threshold: int = 0
    expected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rendered: bool = False

    def find_root(self, data_root: Path) -> Path:
        """Returns the set's folder below a common data root: the first usual name that exists, or the root itself."""
        for folder in self.folders:
            if (data_root / folder).is_dir():
                return data_root / folder
        return data_root


def _record(data: dict[str, Any]) -> Record:
    def fixed(table: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}

    layouts = tuple(Layout(**fixed(layout)) for layout in data.pop("layouts"))
    return Record(layouts=layouts, **fixed(data))


@cache
def _records() -> dict[str, Record]:
    folder = resources.files(__package__) / "records"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    records = [_record(tomllib.loads(file.read_text())) for file in files]
    return {record.name: record for record in records}


def list_datasets() -> list[str]:
    """Returns the names of the data sets in the catalogue, sorted.

    Examples:
        >>> "mvtec_ad" in list_datasets()
        True
    """
    return sorted(_records())


def get_record(name: str) -> Record:
    """Returns the record of a data set.

    Raises:
        DataError: Unknown name; the message lists the nearest ones.
    """
    records = _records()
    if name not in records:
        known = [*records, "folder", "table"]
        raise DataError(f"no data set is named '{name}'; {nearest(name, known)} (vlad datasets lists them)")
    return records[name]
