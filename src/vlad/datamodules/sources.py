"""What is asked for and where it lies: a data set of the catalogue, a folder, a table or bare images, as one index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlad import __version__
from vlad.datamodules.cache import cached
from vlad.datamodules.catalog import Record, get_record, list_datasets
from vlad.datamodules.custom import index_folder, index_images, index_table
from vlad.datamodules.index import COLUMNS, index_record
from vlad.errors import DataError, nearest
from vlad.rendered.benchmark import render_dataset

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Locations", "Source", "Sources", "as_sources"]

_TABLES = {".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"}


@dataclass
class Source:
    """A data set, and which part of it.

    Attributes:
        name: A data set of the catalogue (``vlad datasets``), ``folder`` or ``table``.
        root: Its folder (the file, for ``table``); by default below ``data.root``.
        split: Which split is taken; by default the one of the stage: test data the test split, validation data the
            validation split, training data what the method learns from.
        categories: Which categories are taken; by default all.
        class_names: What to call a category in the prompts.
        mosaic: Probability that a training image becomes a mosaic of four of its category (AdaCLIP, on MVTec AD).
        reader: ``red`` reads CVC-ClinicDB's malformed TIFFs in grey, as the published code of AdaCLIP and CLIP-AD.
    """

    name: str
    root: str | None = None
    split: Literal["train", "val", "test", "all"] | None = None
    categories: list[str] | None = None
    class_names: dict[str, str] = field(default_factory=dict)
    mosaic: float = 0.0
    reader: Literal["", "red"] = ""


Sources = list[Source | str] | Source | str


def as_sources(given: Sources | Sequence[Any] | dict[str, Any] | None) -> list[Source]:
    """Returns what is asked for as a list of sources.

    Args:
        given: Names, paths of folders or tables, mappings with the fields of :class:`Source`, or a list of these.

    Raises:
        DataError: A folder that does not exist, or a mapping without a name or with an unknown field.
    """
    if given is None:
        return []
    items: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    return [_as_source(item) for item in items]


def _as_source(item: Source | str | dict[str, Any]) -> Source:
    if isinstance(item, Source):
        return item
    if isinstance(item, dict):
        wrong = [key for key in item if key not in Source.__dataclass_fields__]
        if wrong or "name" not in item:
            fault = f"has no field '{wrong[0]}'; {nearest(wrong[0], Source.__dataclass_fields__)}" if wrong else ""
            raise DataError(f"the data source {item} {fault or 'needs a name'}")
        return Source(**item)
    path = Path(str(item))
    if item in list_datasets() or path.suffix == ".toml":
        return Source(str(item))
    if path.suffix in _TABLES:
        return Source("table", root=str(path))
    if path.is_dir():
        return Source("folder", root=str(path))
    if "/" in str(item) or str(item).startswith("."):
        raise DataError(f"data folder {item} does not exist")
    return Source(str(item))


@dataclass
class Locations:
    """Finds and indexes sources; every source once.

    Attributes:
        root: Folder that holds the data sets, or the one data set used.
        class_name: What is in your own images, for the prompts.
        class_name_style: Words for the catalogue's classes: ``raw`` is what published checkpoints saw.
    """

    root: str | None = None
    class_name: str | None = None
    class_name_style: Literal["raw", "natural"] = "raw"
    _known: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    def index(self, source: Source) -> pd.DataFrame:
        """Returns the index of a source, all splits and categories.

        Raises:
            DataError: It is not there, or in none of the known layouts.
        """
        key = f"{source.name} {source.root or self.root} {sorted(source.class_names.items())} {source.reader}"
        if key not in self._known:
            self._known[key] = self._index(source)
        return self._known[key]

    def _index(self, source: Source) -> pd.DataFrame:
        root = source.root or self.root
        if source.name in {"folder", "table"}:
            if root is None:
                raise DataError(
                    f"data set '{source.name}' needs a root: its {'folder' if source.name == 'folder' else 'file'}"
                )
            index = index_folder if source.name == "folder" else index_table
            return index(Path(root), class_name=self.class_name)
        record = get_record(source.name)
        place = self._place(record, source)
        natural = dict(record.categories) if self.class_name_style == "natural" else {}
        names = {**natural, **source.class_names}
        key = f"{__version__} {record} {names} {source.reader} {COLUMNS}"
        return cached(key, place, lambda: index_record(record, place, class_names=names, reader=source.reader))

    def _place(self, record: Record, source: Source) -> Path:
        """Returns the folder of a data set: its own root, a usual name below the common one, or what is rendered."""
        if source.root:
            return Path(source.root)
        place = record.find_root(Path(self.root)) if self.root else None
        if record.rendered and (place is None or place == Path(str(self.root))):
            return render_dataset(record.name)
        if place is None:
            raise DataError(
                f"where is {record.title}? Give data.root (or set VLAD_DATA): the folder that holds "
                f"{' or '.join(record.folders[:2])}; {record.steps} ({record.url})"
            )
        return place

    def index_predict(self, given: list[str] | str | None) -> pd.DataFrame:
        """Returns the index of images of which nothing is known.

        Args:
            given: Files, folders, patterns, tables, or a list of these.

        Raises:
            DataError: Nothing was given, or nothing is there.
        """
        import pandas as pd

        if not given:
            raise DataError("nothing to predict: name images or folders (vlad predict FOLDER --model sdp)")
        items = [given] if isinstance(given, str) else given
        tables = [item for item in items if Path(item).suffix in _TABLES]
        images = [item for item in items if item not in tables]
        frames = [index_table(Path(table), class_name=self.class_name) for table in tables]
        frames += [index_images(images, class_name=self.class_name or "object")] if images else []
        return pd.concat(frames, ignore_index=True)
