"""One LightningDataModule for every data set, your own images and bare folders."""

from __future__ import annotations

import os
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
from vlad.datamodules.custom import index_folder, index_images, index_table
from vlad.datamodules.dataset import AnomalyDataset, collate
from vlad.datamodules.index import index_record
from vlad.datamodules.sampling import select_images_per_category, select_references
from vlad.errors import DataError, nearest
from vlad.rendered.benchmark import render_dataset
from vlad.types import Preprocess

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AnomalyDataModule", "Source"]

_TABLES = {".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"}
_PARTS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
_OPENAI = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


@dataclass
class Source:
    """A data set, and which part of it.

    Attributes:
        name: A data set of the catalogue (``vlad datasets``), ``folder`` or ``table``.
        root: Its folder (the file, for ``table``); by default looked for below ``data.root``.
        split: Which split is taken. By default the test split, for training too: most detectors of this field are
            trained on the test split, masks and all, of an auxiliary data set. Methods that learn from normal
            images alone train on the train split.
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


class AnomalyDataModule(LightningDataModule):
    """Data sets by name, your own folders and tables, and bare images, through one index.

    The size and normalisation of the images come from the method that the trainer runs.

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
        few: int | float | None = None,
        shots: int = 0,
        seed: int = 0,
        image_size: int | None = None,
        fast_jpeg: bool = False,
    ) -> None:
        """Keeps the choice; files are looked at in :meth:`setup`.

        Args:
            root: Folder that holds the data sets, or the one data set used; also ``VLAD_DATA``.
            train: Auxiliary data to train on: names, paths of folders or tables, or mappings with ``name``,
                ``root``, ``split``, ``categories``, ``class_names``, ``mosaic``. The test split by default, or what
                the method learns from.
            val: Data to validate on while training; none by default.
            test: Data to test on.
            predict: Images to score: files, folders, patterns, or a table.
            categories: Keep only these categories, in every data set that has them.
            class_name: What is in your own images, for the prompts.
            protocol: A paper's choice of ``train`` and ``test`` (``vlad data protocols``), for those not given.
            texts: Words for the catalogue's classes: ``raw`` is what published checkpoints saw.
            batch_size: Images per batch and process.
            shuffle: Whether training batches are shuffled. CLIP-AD's published training does not.
            num_workers: Processes that read images.
            augment: albumentations transforms for training, as ``{name: HorizontalFlip, p: 0.5}``.
            few: Train on so many images per category, or on a share of them (a float up to 1), drawn by the seed and
                repeated: an epoch keeps the steps that it has with all of them.
            shots: Normal reference images per category, for few-shot methods.
            seed: Seed of the draws; follows ``seed_everything``.
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
        self.few = few
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
            raise DataError("nothing to predict: name images or folders (vlad predict FOLDER --model sdp)")
        if isinstance(sources, str) and Path(sources).suffix in _TABLES:
            return index_table(Path(sources), class_name=self.class_name)
        return index_images(sources, class_name=self.class_name or "object")

    def _index(self, part: str) -> pd.DataFrame:
        import pandas as pd

        given = self.sources[part]
        sources = [self._as_source(item) for item in (given if isinstance(given, list) else [given])]
        self._warn_of_leaks(part, sources)
        frames = [self._select(self._index_source(source), source, part) for source in sources]
        if part == "train" and any(source.mosaic for source in sources):
            frames = [frame.assign(mosaic=source.mosaic) for frame, source in zip(frames, sources, strict=True)]
        frame = pd.concat(frames, ignore_index=True)
        return self._choose_training(frame) if part == "train" else frame

    def _choose_training(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Leaves out what the method cannot learn from; draws a few of the rest where asked for."""
        normal = self._learns_from == "normal"
        usable = frame["label"] == 0 if normal else frame["label"] >= 0
        if not usable.all():
            what = "not normal" if normal else "not labelled"
            if not usable.any():
                raise DataError(f"the images of data.train are all {what}: this method cannot learn from them")
            rank_zero_warn(
                f"{int((~usable).sum())} images of data.train are {what} and are left out (first: "
                f"{frame['image_path'][~usable].iloc[0]}): this method cannot learn from them"
            )
            frame = frame[usable].reset_index(drop=True)
        if self.few is None:
            return frame
        few = select_images_per_category(frame, self.few, self.seed)
        return few.loc[np.resize(np.arange(len(few)), len(frame))].reset_index(drop=True)

    @property
    def _learns_from(self) -> str:
        return getattr(getattr(self.trainer, "lightning_module", None), "learns_from", "labelled")

    def _split(self, source: Source, part: str) -> str:
        return source.split or ("train" if part == "train" and self._learns_from == "normal" else "test")

    def _warn_of_leaks(self, part: str, sources: list[Source]) -> None:
        """Says so where what is tested has been trained on."""
        given = self.sources["train"] if part != "train" else None
        for trained in given if isinstance(given, list) else [given] if given else []:
            other = self._as_source(trained)
            for source in sources:
                overlaps = get_record(source.name).overlaps if source.name in list_datasets() else {}
                if other.name in overlaps:
                    rank_zero_warn(f"{part} on {source.name}, train on {other.name}: {overlaps[other.name]}")
                elif other.name == source.name and self._split(other, "train") == self._split(source, part):
                    both = {*(other.categories or self.categories or [""])}
                    if both & {*(source.categories or self.categories or [""])}:
                        rank_zero_warn(f"{part} and train are the same images of {source.name}")

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
        split = self._split(source, part)
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
        """Batches of images of which nothing is known."""
        return self._loader(self.dataset("predict"))

    def reference_dataloader(self) -> DataLoader:
        """Batches of the few-shot references."""
        return self._loader(AnomalyDataset(self.references(), self.preprocess))
