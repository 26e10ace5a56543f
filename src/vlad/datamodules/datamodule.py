"""One LightningDataModule for every data set, your own pictures and bare folders."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from vlad import __version__
from vlad.datamodules.augment import build_augment
from vlad.datamodules.cache import cached
from vlad.datamodules.catalog import Record, get_protocol, get_record, list_datasets
from vlad.datamodules.custom import index_folder, index_pictures, index_table
from vlad.datamodules.dataset import AnomalyDataset, collate
from vlad.datamodules.index import index_record
from vlad.errors import DataError, nearest
from vlad.synthetic.benchmark import render_dataset
from vlad.types import Preprocess

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AnomalyDataModule", "Source", "select_references"]

_TABLES = {".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"}
_PARTS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
_OPENAI = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


@dataclass
class Source:
    """A data set, and which part of it.

    Attributes:
        name: A data set of the catalogue (``vlad datasets``), ``folder`` or ``table``.
        root: Its folder (the file, for ``table``); by default looked for below ``data.root``.
        split: Which split is taken; by default the test split, for training too: detectors of this field are
            trained on the test split, masks and all, of an auxiliary data set.
        categories: Which categories are taken; by default all.
        class_names: What to call a category in the prompts.
        reader: ``red`` reads CVC-ClinicDB's malformed TIFFs in grey, as the published code of AdaCLIP and CLIP-AD.
    """

    name: str
    root: str | None = None
    split: Literal["train", "val", "test", "all"] | None = None
    categories: list[str] | None = None
    class_names: dict[str, str] = field(default_factory=dict)
    reader: Literal["", "red"] = ""


Sources = list[Source | str] | Source | str


def select_references(frame: pd.DataFrame, shots: int, seed: int) -> pd.DataFrame:
    """Draws normal training images per category, the same on every machine.

    Args:
        frame: An index with training rows.
        shots: Images per category, without replacement.
        seed: Each category's draw depends on the seed and its own name alone.

    Raises:
        DataError: A category has fewer normal training images than asked for.
    """
    normal = frame[(frame["split"] == "train") & (frame["label"] == 0)]
    chosen: list[int] = []
    for (dataset, category), group in normal.groupby(["dataset", "category"], sort=False):
        if len(group) < shots:
            raise DataError(
                f"{dataset}/{category} has {len(group)} normal training images, {shots} shots were asked for"
            )
        generator = np.random.default_rng([seed, zlib.crc32(f"{dataset}/{category}".encode())])
        chosen += group.index[np.sort(generator.permutation(len(group))[:shots])].tolist()
    if not chosen:
        raise DataError("few-shot references need normal images in a train split; there are none")
    return frame.loc[chosen].reset_index(drop=True)


class AnomalyDataModule(LightningDataModule):
    """Data sets by name, your own folders and tables, and bare pictures, through one index.

    The size and normalisation of the pictures come from the method that the trainer runs.

    Attributes:
        frames: The index of each stage that was set up: ``train``, ``val``, ``test``, ``predict``.
    """

    def __init__(
        self,
        root: str | None = None,
        train: Sources | None = None,
        val: Sources | None = None,
        test: Sources | None = None,
        predict: list[str] | str | None = None,
        categories: list[str] | None = None,
        class_name: str | None = None,
        protocol: str | None = None,
        texts: Literal["raw", "natural"] = "raw",
        batch_size: int = 8,
        shuffle: bool = True,
        num_workers: int = 2,
        augment: list[dict[str, Any]] | None = None,
        shots: int = 0,
        seed: int = 0,
        image_size: int | None = None,
        fast_jpeg: bool = False,
    ) -> None:
        """Keeps the choice; files are looked at in :meth:`setup`.

        Args:
            root: Folder that holds the data sets, or the one data set used; also ``VLAD_DATA``.
            train: Auxiliary data to train on: names, paths of folders or tables, or mappings with ``name``,
                ``root``, ``split``, ``categories``, ``class_names``. The test split by default.
            val: Data to validate on while training; none by default.
            test: Data to test on.
            predict: Pictures to score: files, folders, patterns, or a table.
            categories: Keep only these categories, in every data set that has them.
            class_name: What is in your own pictures, for the prompts.
            protocol: A paper's choice of ``train`` and ``test`` (``vlad data protocols``), for those not given.
            texts: Words for the catalogue's classes: ``raw`` is what published checkpoints saw.
            batch_size: Images per batch and process.
            shuffle: Whether training batches are shuffled. CLIP-AD's published training does not.
            num_workers: Processes that read pictures.
            augment: albumentations transforms for training, as ``{name: HorizontalFlip, p: 0.5}``.
            shots: Normal reference images per category, for few-shot methods.
            seed: Seed of the reference draw; follows ``seed_everything``.
            image_size: Side in pixels, only for use without a trainer.
            fast_jpeg: Decode large JPEGs at a fraction of their size, never below one and a half
                times ``image_size``: faster, and not to the last bit what published code sees.
        """
        super().__init__()
        self.root = root or os.environ.get("VLAD_DATA") or None
        if protocol is not None:
            published = get_protocol(protocol)
            train, test = train or published.get("train"), test or published["test"]
        self.sources = {"train": train, "val": val, "test": test}
        self.predict_sources = predict
        self.categories = categories
        self.class_name = class_name
        self.texts = texts
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.augment = augment
        self.shots = shots
        self.seed = seed
        self.image_size = image_size
        self.fast_jpeg = fast_jpeg
        self.frames: dict[str, pd.DataFrame] = {}

    # -- index ---------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Indexes once per machine; the other processes then find the index in the cache."""
        for part in _PARTS.get(getattr(self.trainer.state.fn, "value", "") if self.trainer else "", ()):
            if part != "predict" and self.sources[part]:
                self._index(part)

    def setup(self, stage: str) -> None:
        """Indexes what the stage needs: ``fit``, ``validate``, ``test`` or ``predict``."""
        for part in _PARTS[stage]:
            if part in self.frames:
                continue
            if part == "predict":
                self.frames[part] = self._index_predict()
            elif self.sources[part]:
                self.frames[part] = self._index(part)
            elif part != "val" or stage == "validate":
                raise DataError(f"data.{part} is not set: name a data set ({', '.join(list_datasets())}) or a folder")

    def _index_predict(self) -> pd.DataFrame:
        sources = self.predict_sources
        if not sources:
            raise DataError("nothing to predict: name pictures or folders (vlad predict FOLDER --model sdp)")
        if isinstance(sources, str) and Path(sources).suffix in _TABLES:
            return index_table(Path(sources), class_name=self.class_name)
        return index_pictures(sources, class_name=self.class_name or "object")

    def _index(self, part: str) -> pd.DataFrame:
        import pandas as pd

        given = self.sources[part]
        sources = [self._as_source(item) for item in (given if isinstance(given, list) else [given])]
        self._warn_of_leaks(part, sources)
        frames = [self._select(self._index_source(source), source, part) for source in sources]
        return pd.concat(frames, ignore_index=True)

    def _warn_of_leaks(self, part: str, sources: list[Source]) -> None:
        """Says so where what is tested has been trained on."""
        given = self.sources["train"] if part != "train" else None
        for trained in given if isinstance(given, list) else [given] if given else []:
            other = self._as_source(trained)
            for source in sources:
                shares = get_record(source.name).shares if source.name in list_datasets() else {}
                if other.name in shares:
                    rank_zero_warn(f"{part} on {source.name}, train on {other.name}: {shares[other.name]}")
                elif other.name == source.name and (other.split or "test") == (source.split or "test"):
                    both = {*(other.categories or self.categories or [""])}
                    if both & {*(source.categories or self.categories or [""])}:
                        rank_zero_warn(f"{part} and train are the same pictures of {source.name}")

    @staticmethod
    def _as_source(item: Source | str | dict[str, Any] | None) -> Source:
        if isinstance(item, Source):
            return item
        if isinstance(item, dict):
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

    def _index_source(self, source: Source) -> pd.DataFrame:
        root = source.root or self.root
        if source.name in {"folder", "table"}:
            if root is None:
                raise DataError(
                    f"data set '{source.name}' needs a root: its {'folder' if source.name == 'folder' else 'file'}"
                )
            if source.name == "folder":
                return index_folder(Path(root), class_name=self.class_name)
            return index_table(Path(root), class_name=self.class_name)
        record = get_record(source.name)
        place = self._place(record, source)
        natural = dict(record.categories) if self.texts == "natural" else {}
        names = {**natural, **source.class_names}
        key = f"{__version__} {record} {names} {source.reader}"
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

    def _select(self, frame: pd.DataFrame, source: Source, part: str) -> pd.DataFrame:
        """Keeps the split and categories asked for; refuses an empty choice."""
        known = list(dict.fromkeys(frame["category"]))
        asked = source.categories if source.categories is not None else self.categories
        if asked is not None:
            wrong = [category for category in asked if category not in known]
            if wrong and (source.categories is not None or len(wrong) == len(asked)):
                raise DataError(f"{source.name} has no category '{wrong[0]}'; {nearest(wrong[0], known)}")
            frame = frame[frame["category"].isin(asked)]
        split = source.split or "test"
        chosen = frame if split == "all" else frame[frame["split"] == split]
        for category in asked or known[:0]:
            if category in known and not (chosen["category"] == category).any():
                raise DataError(
                    f"{source.name}/{category} has no images in its {split} split; see data.{part} and its root"
                )
        if chosen.empty:
            splits = ", ".join(f"{name} {count}" for name, count in frame["split"].value_counts().items())
            raise DataError(
                f"{source.name} has no images in its {split} split (it has: {splits or 'nothing'}); set split"
            )
        return chosen

    def references(self) -> pd.DataFrame:
        """Returns the index of the few-shot references: ``shots`` normal training images per test category.

        Raises:
            DataError: ``shots`` is 0, or a category has too few normal training images.
        """
        import pandas as pd

        if self.shots < 1:
            raise DataError("few-shot references need data.shots of 1 or more")
        given = self.sources["test"]
        frames = []
        for item in given if isinstance(given, list) else [given]:
            source = self._as_source(item)
            train = Source(source.name, source.root, "train", source.categories, source.class_names)
            frames.append(self._select(self._index_source(source), train, "test"))
        return select_references(pd.concat(frames, ignore_index=True), self.shots, self.seed)

    # -- loaders -------------------------------------------------------------------------------------------

    @property
    def preprocess(self) -> Preprocess:
        """Size and normalisation: the running method's, or ``image_size`` with CLIP's own normalisation.

        Raises:
            DataError: Neither is there.
        """
        method = getattr(self.trainer, "lightning_module", None)
        if method is not None and hasattr(method, "preprocess"):
            return method.preprocess
        if self.image_size is None:
            raise DataError("the data module is used without a trainer: give image_size")
        return Preprocess(self.image_size, **_OPENAI)

    def dataset(self, part: str) -> AnomalyDataset:
        """Returns a stage's dataset (``train``, ``val``, ``test`` or ``predict``)."""
        augment = build_augment(self.augment) if self.augment and part == "train" else None
        return AnomalyDataset(
            self.frames[part], self.preprocess, truth=part != "predict", augment=augment, fast_jpeg=self.fast_jpeg
        )

    def _loader(self, dataset: AnomalyDataset, *, shuffle: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=min(self.num_workers, max(1, len(dataset) // self.batch_size)) if self.num_workers else 0,
            collate_fn=collate,
            persistent_workers=shuffle and self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader:
        """Auxiliary training batches."""
        return self._loader(self.dataset("train"), shuffle=self.shuffle)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Validation batches; an empty list where no validation data was asked for."""
        return self._loader(self.dataset("val")) if "val" in self.frames else []

    def test_dataloader(self) -> DataLoader:
        """Test batches."""
        return self._loader(self.dataset("test"))

    def predict_dataloader(self) -> DataLoader:
        """Batches of pictures of which nothing is known."""
        return self._loader(self.dataset("predict"))

    def reference_dataloader(self) -> DataLoader:
        """Batches of the few-shot references."""
        return self._loader(AnomalyDataset(self.references(), self.preprocess))
