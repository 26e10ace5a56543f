"""The catalogue: one record of plain data per data set, in ``records/*.toml``. No torch, no pandas.

Records of your own: a path ending in ``.toml`` wherever a data set is named, or an entry point of the group
``vlad.datasets`` that gives the path of one.
"""

from __future__ import annotations

import re
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from vlad.datamodules.image_files import printable
from vlad.datamodules.record_checks import MOST_BYTES, check_record, check_types
from vlad.errors import DataError, nearest
from vlad.files import read_plain
from vlad.plugins import entries

__all__ = [
    "Download",
    "Layout",
    "Record",
    "get_protocol",
    "get_record",
    "list_datasets",
    "list_protocols",
    "read_record",
]

GROUP = "vlad.datasets"
_RENAMED = {"shares": "overlaps", "bands": "row_crops", "species": "defect_type"}


@dataclass(frozen=True)
class Layout:
    """One way in which a data set's files may lie; all paths are POSIX and relative to the root.

    Attributes:
        name: What the error calls it when no layout fits.
        image: Regular expression over a file's path without its suffix; groups ``category``, ``split``,
            ``defect_type`` (the kind of defect, or the normal folder) and ``stem`` are read where present.
        suffixes: Only files with these suffixes are images (lower case, with the dot); all by default.
        masks: Paths of the mask without suffix, tried in order, filled with the groups. With a suffix, that file
            alone; with a ``/`` at the end, all files of a folder together.
        label: What makes an image anomalous: its ``defect_type`` is not normal; it ``has_mask``; its ``mask`` holds
            anomalous pixels (masks are read); or all are ``anomalous``.
        normal: Defect types that are normal, such as ``good``.
        unlabelled: Defect types of which nothing is known.
        splits: Name in the path → ``train``, ``val`` or ``test``.
        split: Split where the path tells none.
        normal_test: Share of the normal images, drawn with seed 42, that are test; the others train. 0: not drawn.
        row_crops: Cut images into so many crops of rows, each an image of its own.
        labels: A CSV with one label per stem: ``file``, ``key`` column, ``value`` column (1 is anomalous).
        table: A CSV that lists every image, in place of ``image``.
        json: Pattern of JSON files ``{"train": [...], "test": [...]}`` that list every image.
        base: Folder that the paths of those files start from, tried in order, filled with ``category``.
        columns: The CSV's columns or the JSON's keys for ``category``, ``split``, ``defect_type``, ``image``, ``mask``.
    """

    name: str
    image: str = ""
    suffixes: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    label: Literal["defect_type", "has_mask", "mask", "anomalous"] = "defect_type"
    normal: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    splits: Mapping[str, str] = field(default_factory=dict)
    split: Literal["train", "val", "test"] = "test"
    normal_test: float = 0.0
    row_crops: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    table: str = ""
    json: str = ""
    base: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def wanted(self) -> str:
        """What is looked for, in words for an error."""
        return self.table or self.json or re.sub(r"\(\?P<(\w+)>(?:[^()]|\([^()]*\))*\)", r"<\1>", self.image)


@dataclass(frozen=True)
class Download:
    """A file that may be fetched directly.

    Attributes:
        url: Open direct link.
        checksum: ``sha256:…`` or ``md5:…``, as published.
        size: Bytes, about; 0 where not known.
        folder: Folder below the data root that it is unpacked into; the data set's own by default.
    """

    url: str
    checksum: str
    size: int = 0
    folder: str = ""


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
        counts: Category → normal training, normal test and anomalous test images.
        downloads: Open direct links with checksums, for ``vlad data get``.
        overlaps: Data set → what it has in common with this one, so that one must not train what the other tests.
        rendered: Whether vlad makes the images itself, into its cache, where no root is given.
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
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    downloads: tuple[Download, ...] = ()
    overlaps: Mapping[str, str] = field(default_factory=dict)
    rendered: bool = False

    def find_root(self, data_root: Path) -> Path:
        """Returns the set's folder below a common data root: the first usual name that exists, or the root itself."""
        for folder in self.folders:
            if (data_root / folder).is_dir():
                return data_root / folder
        return data_root


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
