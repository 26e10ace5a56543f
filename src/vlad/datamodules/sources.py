"""What is asked for and where it lies: a data set of the catalogue, a folder, a table or bare images, as one index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlad import __version__
from vlad.datamodules.cache import cached
from vlad.datamodules.catalog import get_record, list_datasets
from vlad.datamodules.custom import index_folder, index_images, index_table
from vlad.datamodules.image_files import printable
from vlad.datamodules.index import COLUMNS, Found, index_record
from vlad.datamodules.meta import from_meta
from vlad.datamodules.record import Record
from vlad.datamodules.tables import is_table
from vlad.errors import DataError, nearest
from vlad.rendered.benchmark import render_dataset

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Locations", "Source", "Sources", "as_sources"]


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


def _as_source(item: Source | str | Path | dict[str, Any]) -> Source:
    if isinstance(item, Source):
        return _placed(item)
    if isinstance(item, dict):
        wrong = [key for key in item if key not in Source.__dataclass_fields__]
        if wrong or "name" not in item:
            fault = f"has no field '{wrong[0]}'; {nearest(str(wrong[0]), Source.__dataclass_fields__)}" if wrong else ""
            raise DataError(f"the data source {item} {fault or 'needs a name'}")
        return _placed(Source(**item))
    if not isinstance(item, str | Path):
        raise DataError(f"a data source is a name, a path or a mapping with a name, not {item!r}")
    return _placed(Source(str(item)))


def _placed(source: Source) -> Source:
    """Makes a source whose name is a path one of a folder or table.

    Raises:
        DataError: A path where nothing is.
    """
    name, path = source.name, Path(source.name).expanduser()
    if name in {"folder", "table"} or name in list_datasets() or path.suffix.lower() == ".toml" or source.root:
        return source
    if path.is_dir():
        return replace(source, name="folder", root=str(path))
    if is_table(path):
        return replace(source, name="table", root=str(path))
    if path.is_file():
        raise DataError(f"data {printable(name)} is no folder, table (.csv, .jsonl, …) or record (.toml) of a data set")
    if "/" in name or name.startswith((".", "~")):
        raise DataError(f"data folder {printable(name)} does not exist")
    return source


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
            return self._own(Path(root).expanduser(), source.name)
        record = get_record(source.name)
        place = self._place(record, source)
        natural = dict(record.categories) if self.class_name_style == "natural" else {}
        names = {**natural, **source.class_names}
        key = f"{__version__} {record} {names} {source.reader} {COLUMNS}"
        return cached(key, place, lambda: index_record(record, place, class_names=names, reader=source.reader))

    def _own(self, path: Path, kind: str) -> pd.DataFrame:
        """Indexes a folder or table of one's own."""
        if path.name == "meta.json" or (kind == "folder" and path.is_file() and path.suffix == ".json"):
            return from_meta(path)
        if kind == "folder" and not is_table(path):
            return index_folder(path, class_name=self.class_name)
        return (index_folder if path.is_dir() else index_table)(path, class_name=self.class_name)

    def _place(self, record: Record, source: Source) -> Path:
        """Returns the folder of a data set: its own root, a usual name below the common one, or what is rendered.

        A record of your own (.toml) may lie beside its data.
        """
        if source.root:
            return Path(source.root).expanduser()
        place = record.find_root(Path(self.root)) if self.root else None
        if place is None and source.name.endswith(".toml"):
            beside = [Path(source.name).expanduser().absolute().parent / folder for folder in record.folders]
            place = next((folder for folder in beside if folder.is_dir()), None)
        if record.rendered and (place is None or place == Path(str(self.root))):
            return render_dataset(record.name)
        if place is None:
            raise DataError(
                f"where is {record.title}? Give data.root (or set VLAD_DATA): the folder that holds "
                f"{' or '.join(record.folders[:2])}; {record.steps} ({record.url})"
            )
        return place

    def index_predict(self, given: list[str] | str | None) -> Found:
        """Returns the index of images of which nothing is known, and what was ignored.

        Args:
            given: Files, folders, patterns, tables, or a list of these.

        Raises:
            DataError: Nothing was given, or nothing is there.
        """
        import pandas as pd

        if not given:
            raise DataError("nothing to predict: name images or folders (vlad predict FOLDER --model sdp)")
        items = [str(item) for item in ([given] if isinstance(given, str | Path) else given)]
        tables = [Path(item).expanduser() for item in items if is_table(item) and not Path(item).is_dir()]
        images = [item for item in items if not is_table(item) or Path(item).is_dir()]
        frames = [index_table(table, class_name=self.class_name, scored=True) for table in tables]
        ignored: dict[str, list[str]] = {}
        if images:
            found = index_images(images, class_name=self.class_name or "object")
            ignored = found.ignored
            frames.append(found.frame)
        frame = pd.concat(frames, ignore_index=True)
        twice = frame.duplicated(["image_path", "row_crop", "frame"])
        if twice.any():
            ignored.setdefault("given twice", []).extend(frame["image_path"][twice])
            frame = frame[~twice].reset_index(drop=True)
        return Found(frame, ignored)
