"""The catalogue: one record of plain data per data set, in ``records/*.toml``. No torch, no pandas.

Records of your own: a path ending in ``.toml`` wherever a data set is named, or an entry point of the group
``vlad.datasets`` that gives the path of one.
"""

from __future__ import annotations

import re
import tomllib
import warnings
from dataclasses import fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from vlad.datamodules.image_files import printable
from vlad.datamodules.record import Download, Layout, Record
from vlad.datamodules.record_checks import MOST_BYTES, check_record, check_types
from vlad.errors import DataError, nearest
from vlad.files import read_plain
from vlad.plugins import entries

__all__ = [
    "get_protocol",
    "get_record",
    "list_datasets",
    "list_protocols",
    "read_record",
]

GROUP = "vlad.datasets"
_RENAMED = {"shares": "overlaps", "bands": "row_crops", "species": "defect_type"}


def read_record(text: str, origin: str) -> Record:
    """Makes a record of TOML text.

    Args:
        text: Keys as the attributes of :class:`Record`; ``[[layouts]]`` and ``[[downloads]]`` as those of theirs.
        origin: Where the text comes from, for errors.

    Raises:
        DataError: Broken TOML, unknown, missing or renamed keys, or a broken regular expression.
    """

    def renamed(old: str, where: str) -> DataError:
        return DataError(f"{origin}: '{old}'{where} is called '{_RENAMED[old]}' now; rename it")

    def build(cls: Any, table: dict[str, Any], where: str) -> Any:
        known = {one.name for one in fields(cls)}
        for key in table:
            if key in _RENAMED:
                raise renamed(key, where)
            if key not in known:
                raise DataError(f"{origin}: unknown key '{key}'{where}; {nearest(key, known)}")
        if table.get("label") in list(_RENAMED):
            raise renamed(table["label"], f" in layout '{table.get('name')}'")
        check_types(cls, table, f"{origin}:{where}" if where else origin)
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()})

    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{origin} is no TOML: {error}") from error
    for key, kind in (("layouts", Layout), ("downloads", Download)):
        tables = data.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
            raise DataError(f"{origin}: give '{key}' as [[{key}]]")
        data[key] = [build(kind, one, f" in a {key.removesuffix('s')}") for one in tables]
    record: Record = build(Record, data, "")
    check_record(record, origin)
    for layout in record.layouts:
        for old in _RENAMED:
            if old in {*re.compile(layout.image).groupindex, *layout.columns}:
                raise renamed(old, f" in layout '{layout.name}'")
    return record


@cache
def _records() -> dict[str, Record]:
    folder = resources.files(__package__) / "records"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    records = {record.name: record for record in (read_record(file.read_text(), file.name) for file in files)}
    for point in sorted(entries(GROUP), key=lambda point: point.name):
        try:
            path = Path(point.load())
            record = read_record(path.read_text(), str(path))
        except (Exception, SystemExit) as error:
            warnings.warn(f"data set '{point.name}' ({point.value}) is left out: {error}", stacklevel=3)
            continue
        records.setdefault(record.name, record)
    return records


def list_datasets() -> list[str]:
    """Returns the names of the data sets in the catalogue, sorted.

    Examples:
        >>> "mvtec_ad" in list_datasets()
        True
    """
    return sorted(_records())


def get_record(name: str) -> Record:
    """Returns the record of a data set.

    Args:
        name: A name of the catalogue, or the path of a record of your own (``.toml``).

    Raises:
        DataError: Unknown name, the message lists the nearest ones; or a record that cannot be read.
    """
    if name.endswith(".toml"):
        return _read_own(Path(name))
    records = _records()
    if name not in records:
        known = [*records, "folder", "table"]
        raise DataError(f"no data set is named '{name}'; {nearest(name, known)} (vlad data list shows them)")
    return records[name]


def _read_own(file: Path) -> Record:
    if not file.is_file():
        raise DataError(f"record {printable(file)} does not exist")
    try:
        text = read_plain(file, MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"record {printable(file)} cannot be read: {error}") from error
    return read_record(text, printable(file))


@cache
def _protocols() -> dict[str, dict[str, Any]]:
    return tomllib.loads((resources.files(__package__) / "protocols.toml").read_text())


def list_protocols() -> list[str]:
    """Returns the names of the papers' choices of training and test data."""
    return list(_protocols())


def get_protocol(name: str) -> dict[str, Any]:
    """Returns which sets a paper trains (``train``, may be missing) and tests (``test``) on, and its ``title``.

    Raises:
        DataError: Unknown name; the message lists the nearest ones.
    """
    protocols = _protocols()
    if name not in protocols:
        raise DataError(f"no protocol is named '{name}'; {nearest(name, protocols)}")
    return dict(protocols[name])
