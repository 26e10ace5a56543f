"""One LightningDataModule for every data set, your own images and bare folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from vlad.datamodules.augment import build_augment
from vlad.datamodules.catalog import get_protocol, list_datasets
from vlad.datamodules.dataset import AnomalyDataset
from vlad.datamodules.decode import Reading
from vlad.datamodules.index import Found
from vlad.datamodules.overlap import file_digest, refuse_overlap
from vlad.datamodules.readable import check_files
from vlad.datamodules.references import check_shots, draw_references, given_references, with_rotations
from vlad.datamodules.roi import add_regions, regions_digest
from vlad.datamodules.sampling import build_loader, build_prediction_loader, build_training_loader
from vlad.datamodules.selection import Selection
from vlad.datamodules.sources import Locations, Sources, as_sources
from vlad.datamodules.textures import TexturePool
from vlad.errors import DataError, OptionError
from vlad.seeds import run_seed
from vlad.types import Requirements, Supervision

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AnomalyDataModule"]

_PARTS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
_COMPARED = (
    *(("train", "val"), ("train", "test"), ("val", "test")),
    *(("references", "val"), ("references", "test"), ("references", "predict")),
)


class AnomalyDataModule(LightningDataModule):
    """Data sets by name, your own folders and tables, and bare images, through one index.

    Size and normalisation of the images, and what training learns from, are the method's:
    ``datamodule.require(method.requirements)``.

    Attributes:
        frames: The index of each stage that was set up: ``train``, ``val``, ``test``, ``predict``; and ``references``.
        ignored: Files below the folders to predict that are no images, by reason.
        preview_height: Shorter side in pixels of the previews in a batch, for heat maps; 0 for none.
        preview_limit: How many images of a category have a preview; None for all.
        own_masks: Whether batches to validate and test on hold masks at the images' own resolution, too.
        leave_out: Gives the rows of ``predict`` that are scored already; None for none.
    """

    def __init__(
        self,
        root: str | None = None,
        train: Sources | None = None,
        val: Sources | None = None,
        test: Sources | None = None,
        predict: list[str] | str | None = None,
        categories: list[str] | str | None = None,
        class_name: str | None = None,
        split_protocol: str | None = None,
        class_name_style: Literal["raw", "natural"] = "raw",
        batch_size: int = 8,
        shuffle: bool = True,
        num_workers: int = 2,
        augment: list[dict[str, Any]] | None = None,
        textures: str | None = None,
        images_per_category: int | float | None = None,
        shots: int | None = None,
        references: list[str] | str | None = None,
        seed: int | None = None,
        allow_overlap: bool = False,
        fast_jpeg: bool = False,
        intensity_range: list[float] | None = None,
        max_pixels: int = Reading.max_pixels,
        roi: str | None = None,
        ignore: str | None = None,
    ) -> None:
        """Keeps the choice; files are looked at in :meth:`setup`.

        Args:
            root: Folder that holds the data sets, or the one data set used; also ``VLAD_DATA``.
            train: Data to train on: names, paths of folders or tables, or mappings with ``name``, ``root``,
                ``split``, ``categories``, ``class_names``, ``mosaic``. Methods that learn from auxiliary data take the
                test split, masks and all, as their papers do; one-class methods the normal images of the train split.
            val: Data to validate on while training, its validation split; none by default.
            test: Data to test on, its test split.
            predict: Images to score: files, folders, patterns, or a table.
            categories: Keep only these categories, in every data set that has them.
            class_name: What is in your own images, for the prompts.
            split_protocol: A paper's choice of ``train`` and ``test`` (``vlad data protocols``), for those not given.
            class_name_style: Words for the catalogue's classes: ``raw`` is what published checkpoints saw.
            batch_size: Images per batch and process.
            shuffle: Whether training batches are shuffled. CLIP-AD's published training does not.
            num_workers: Processes that read images.
            augment: albumentations transforms for training, as ``{name: HorizontalFlip, p: 0.5}``.
            textures: Folder of textures, such as DTD's, for methods that paint pseudo-anomalies.
            images_per_category: Train on so many images per category, or on a share of them (a float up to 1), drawn
                by the seed and repeated: an epoch keeps the steps that it has with all of them.
            shots: Few-shot: k normal reference images per category, drawn by the seed from the train split; where a
                data set has none, 8 are held out of its test split and every k, 0 too, is tested on the same rest.
            references: Reference images: a folder (with a sub-folder per category, or of one category), files, or a
                list of them (.txt, or .csv with image_path and category).
            seed: Seed of the draws and of the training order; by default that of ``seed_everything``, else 0.
            allow_overlap: Whether images may be in two parts of the run, such as training and test.
            fast_jpeg: Decode large JPEGs at a fraction of their size, never below one and a half
                times the method's size: faster, and not to the last bit what published code sees.
            intensity_range: Values that become black and white in images of more than 8 bits: [0, 4095] for 12 bits
                in 16. By default what the file says, else all of its type.
            max_pixels: Largest image in pixels; larger ones are taken for decompression bombs.
            roi: Region of interest in testing and prediction: a mask whose white pixels are inspected, at the size of
                the images, or a folder of masks named like the categories or the images.
            ignore: The like, of pixels that are not inspected.

        Raises:
            OptionError: An option is out of range.
        """
        super().__init__()
        check_shots(shots)
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if not isinstance(value, int) or value < least:
                raise OptionError(f"data.{name} is a whole number, at least {least}, not {value!r}")
        self.reading = _reading(intensity_range, max_pixels)
        if split_protocol is not None:
            published = get_protocol(split_protocol)
            train, test = train or published.get("train"), test or published["test"]
        self.sources: dict[str, Sources | None] = {"train": train, "val": val, "test": test}
        self.predict_sources = predict
        self.locations = Locations(root or os.environ.get("VLAD_DATA") or None, class_name, class_name_style)
        categories = [categories] if isinstance(categories, str) else categories
        seed = run_seed() if seed is None else seed
        self.selection = Selection(self.sources, self.locations, categories, images_per_category, seed)
        self.batch_size, self.shuffle, self.num_workers = batch_size, shuffle, num_workers
        self.augment, self.textures, self.fast_jpeg = augment, textures, fast_jpeg
        self.roi, self.ignore = roi, ignore
        self.shots, self.references, self.allow_overlap = shots, references, allow_overlap
        self.preview_height = 0
        self.own_masks = False
        self.preview_limit: int | None = None
        self.leave_out: Callable[[], Collection[int]] | None = None
        self.frames: dict[str, pd.DataFrame] = {}
        self.ignored: dict[str, list[str]] = {}
        self._to_predict: Found | None = None
        self._requirements: Requirements | None = None
        self._referenced = ""  # the stage that the references were selected for

    # -- what the method requires ------------------------------------------------------------------------------

    def require(self, requirements: Requirements) -> AnomalyDataModule:
        """Takes what the method requires of images: ``datamodule.require(method.requirements)``; returns itself."""
        if self._requirements is not None and self._requirements.supervision != requirements.supervision:
            self.frames.pop("train", None)
        self._requirements = requirements
        return self

    @property
    def requirements(self) -> Requirements:
        """What the method requires.

        Raises:
            DataError: It was not told.
        """
        if self._requirements is None:
            raise DataError(
                "the data module does not know what the method requires of images: call "
                "datamodule.require(method.requirements) first"
            )
        return self._requirements

    @property
    def _supervision(self) -> Supervision:
        if self.requirements.supervision is None:
            raise DataError("data.train is given and the method has nothing to train; run vlad test or vlad predict")
        return self.requirements.supervision

    # -- index -------------------------------------------------------------------------------------------------

    def look(self, stage: str) -> None:
        """Indexes what a stage reads, so that a wrong folder is told before a method is loaded.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            DataError: Nothing is asked for, or it is not there.
        """
        for part in _PARTS[stage]:
            if part == "predict":
                self._to_predict = self.locations.index_predict(self.predict_sources)
            elif not self.sources[part] and (part != "val" or stage == "validate"):
                raise DataError(f"data.{part} is not set: name a data set ({', '.join(list_datasets())}) or a folder")
            for source in as_sources(self.sources.get(part)):
                self.locations.index(source)

    def prepare_data(self) -> None:
        """Indexes once per machine; the other processes then find the index in the cache."""
        for part in _PARTS.get(getattr(self.trainer.state.fn, "value", "") if self.trainer else "", ()):
            for source in as_sources(self.sources.get(part)):
                self.locations.index(source)

    def setup(self, stage: str) -> None:
        """Indexes what the stage needs: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            DataError: Nothing is asked for or there, or an image is in two parts.
        """
        scored = stage if stage != "fit" and (self.shots is not None or self.references is not None) else ""
        if scored and scored != self._referenced:  # fitting takes validation data whole; other parts, other references
            self.frames.pop(_PARTS[stage][0], None)
        new = [part for part in _PARTS[stage] if part not in self.frames]
        for part in new:
            if part == "predict":
                found = self._to_predict or self.locations.index_predict(self.predict_sources)
                self.frames[part], self.ignored = found.frame, found.ignored
            elif self.sources[part]:
                self.frames[part] = self.selection.index(part, self._supervision if part == "train" else None)
            elif part != "val" or stage == "validate":
                raise DataError(f"data.{part} is not set: name a data set ({', '.join(list_datasets())}) or a folder")
            if scored:
                self._select_references(part)
                self._referenced = scored
            if part in {"test", "predict"} and (self.roi is not None or self.ignore is not None):
                self.frames[part], lines = add_regions(self.frames[part], self.roi, self.ignore)
                for line in lines:
                    rank_zero_warn(line)
        if not new:
            return
        compared = {**self.frames, **self._training_data(stage)}
        pairs = [pair for pair in _COMPARED if set(pair) & set(new)]
        pairs = [pair for pair in pairs if pair[0] != "references" or (scored and pair[1] in new)]
        # Prediction goes on without what it cannot read; all other runs are told all of it before they start.
        checked = [part for part in (*new, "references") if part != "predict" and part in self.frames]
        try:
            check_files([self.frames[part] for part in checked], self.reading)
            told = refuse_overlap(compared, pairs, allow=self.allow_overlap)
        except DataError:  # a second try is refused too
            self.frames = {part: frame for part, frame in self.frames.items() if part not in new}
            raise
        for line in told:
            rank_zero_warn(line)
        self.allow_zero_length_dataloader_with_multiple_devices = stage == "predict"

    def _training_data(self, stage: str) -> dict[str, pd.DataFrame]:
        """Indexes what was trained on, for comparison with what is scored; not being there keeps nobody from testing.

        The configuration of a run names its training data, which need not be on the machine that tests.
        """
        wanted = self.sources["train"] and self._requirements is not None and self._requirements.supervision
        if not wanted or stage == "fit" or "train" in self.frames:
            return {}
        try:
            return {"train": self.selection.index("train", self._supervision)}
        except DataError as error:
            rank_zero_warn(f"data.train is not compared with what is scored: {error}")
            return {}

    def _select_references(self, part: str) -> None:
        """Draws references for a part that is scored, and leaves held-out images out of it."""
        import pandas as pd

        if self.references is not None:
            self.frames["references"] = given_references(
                self.references, self.shots, self.selection.seed, self.frames[part]
            )
        elif self.shots is not None:
            if part == "predict":
                raise DataError("data.shots draws from a data set; for your own images give --references FOLDER")
            rows = self.selection.rows(part)
            drawn = [draw_references(whole, scored, self.shots, self.selection.seed) for whole, scored in rows]
            for _, _, told in drawn:
                if told:
                    rank_zero_warn(told)
            self.frames["references"] = pd.concat([references for references, _, _ in drawn], ignore_index=True)
            self.frames[part] = pd.concat([rest for _, rest, _ in drawn], ignore_index=True)

    # -- loaders -----------------------------------------------------------------------------------------------

    def dataset(self, part: str) -> AnomalyDataset:
        """Returns a part's dataset (``train``, ``val``, ``test``, ``predict`` or ``references``)."""
        train = part == "train"
        preprocess = self.requirements.preprocess
        turns = self.requirements.reference_rotations if part == "references" else 1
        return AnomalyDataset(
            with_rotations(self.frames[part], turns),
            preprocess,
            truth=part not in {"predict", "references"},
            augment=build_augment(self.augment) if self.augment and train else None,
            textures=TexturePool(self.textures, preprocess.size) if self.textures and train else None,
            fast_jpeg=self.fast_jpeg,
            reading=self.reading,
            tolerant=part == "predict",
            preview_height=self.preview_height if part in {"test", "predict"} else 0,
            preview_limit=self.preview_limit,
            seed=self.selection.seed,
            own_masks=self.own_masks and part in {"val", "test"},
            outputs=part in {"test", "predict"},
        )

    def _loader(self, part: str) -> DataLoader:
        return build_loader(self.dataset(part), batch_size=self.batch_size, num_workers=self.num_workers)

    def train_dataloader(self) -> DataLoader:
        """Training batches; their order, and what is drawn for an image, depend on seed and epoch alone."""
        return build_training_loader(
            self.dataset("train"),
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            num_workers=self.num_workers,
            seed=self.selection.seed,
            trainer=self.trainer,
        )

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Validation batches; an empty list where no validation data was asked for."""
        return self._loader("val") if "val" in self.frames else []

    def test_dataloader(self) -> DataLoader:
        """Test batches."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Batches of images of which nothing is known: those that this process scores and that are not scored yet."""
        return build_prediction_loader(
            self.dataset("predict"),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            leave_out=self.leave_out() if self.leave_out is not None else (),
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )

    @property
    def scoring_options(self) -> dict[str, Any]:
        """Options that change what a method sees of an image."""
        regions = [regions_digest(self.frames[part]) for part in ("test", "predict") if part in self.frames]
        return {
            "intensity_range": self.reading.intensity_range and list(self.reading.intensity_range),
            "fast_jpeg": self.fast_jpeg,
            "roi": "".join(regions),
        }

    def references_digest(self) -> str:
        """Returns a digest of the files of the references and their categories, whatever their order; "" for none."""
        if "references" not in self.frames:
            return ""
        records = self.reference_records()
        lines = sorted(records["dataset"] + "/" + records["category"] + " " + records["sha256"])
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def reference_dataloader(self) -> DataLoader | None:
        """Batches of the few-shot references; None where there are none."""
        frame = self.frames.get("references")
        return None if frame is None or frame.empty else self._loader("references")

    def reference_records(self) -> pd.DataFrame:
        """Returns what the references are: data set, category, image id, path, and SHA-256 of the file."""
        frame = self.frames["references"]
        records = frame[["dataset", "category", "image_id"]].assign(path=frame["image_path"])
        return records.assign(sha256=[file_digest(path) for path in frame["image_path"]])


def _reading(intensity_range: list[float] | None, max_pixels: int) -> Reading:
    """Returns the options of decoding.

    Raises:
        OptionError: A range that is none, or no pixels.
    """
    if intensity_range is not None and len(intensity_range) != 2:
        raise OptionError(f"data.intensity_range is two values, the lower first ([0, 4095]), not {intensity_range}")
    if intensity_range is None:
        return Reading(max_pixels=max_pixels)
    return Reading((float(intensity_range[0]), float(intensity_range[1])), max_pixels)
