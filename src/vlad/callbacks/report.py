"""Writes the results of a test or prediction as one page to the run folder: ``report.html``."""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from vlad.callbacks.decide import Decide
from vlad.callbacks.evaluator import Evaluator
from vlad.callbacks.per_image import PerImage, inspected
from vlad.callbacks.results import find_callback, published_beside
from vlad.checkpoint import class_path_of
from vlad.drawing.pool import usable_cpus
from vlad.drawing.scale import Scale, choose_scale
from vlad.errors import MethodError, OptionError, OutputError
from vlad.files import output_errors
from vlad.names import output_names
from vlad.registry import discover
from vlad.report import Group, MediaStore, Page, encode_media, write_page
from vlad.report.card import protocol_card
from vlad.report.content import Content, compare_rows, content_of_prediction, content_of_test
from vlad.report.store import Kept, media_key
from vlad.results.compare import read_scores
from vlad.runs.pointers import resolve_run
from vlad.types import Batch, Prediction

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Report"]

_HEIGHT = 144  # of previews, where no heat maps are drawn
_FILE = "report.html"


class Report(PerImage):
    """``report.html`` of a test or prediction: summary, tables, curves, an adjustable threshold, images, protocol.

    It opens from disk without a network and contains thumbnails of a few kB per image. They are made from the data
    module's previews during scoring and stored on disk, so that memory does not grow with the dataset. See
    docs/report.md.
    """

    def __init__(
        self, enabled: bool = True, copy: bool = False, limit: int = 10_000, against: str | None = None
    ) -> None:
        """Configures the page.

        Args:
            enabled: Whether to write the page.
            copy: Whether to copy the original images into the run folder (``originals/``), so that the folder can be
                moved; otherwise they are linked at their location.
            limit: Number of images shown: the first ones, and those with the highest scores. All are counted.
            against: Run folder of another test on the same images: the gallery can be ordered by how differently the
                two runs rank an image.

        Raises:
            DataError: The folder of ``against`` has no test.
            OptionError: A number is out of range.
        """
        if limit < 1:
            raise OptionError(f"report.limit is {limit}: give 1 or more, or --report.enabled false for no report")
        super().__init__()
        self.enabled, self.copy, self.limit, self.against = enabled, copy, limit, against
        if against is not None:
            self._other()  # told here, and not once everything has been scored
        self._store: MediaStore | None = None
        self._problem: OutputError | None = None
        self._began = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Asks the data module for previews, where no heat maps do."""
        super().setup(trainer, pl_module, stage)
        self._store, self._problem, self._began = None, None, time.monotonic()
        data: Any = getattr(trainer, "datamodule", None)
        if self._log_dir is not None and getattr(data, "preview_height", None) == 0:
            data.preview_height, data.preview_limit = _HEIGHT, None

    def begin(self, trainer: Trainer, folder: Path) -> None:
        """Opens the store; a test starts afresh, a prediction goes on with what was left there."""
        self._store = MediaStore(folder, rank=trainer.global_rank, limit=self.limit)
        if trainer.state.fn == "test":
            if trainer.is_global_zero:
                self._store.clear()
            trainer.strategy.barrier("vlad: report")

    # -- one batch ---------------------------------------------------------------------------------------------

    def add(self, trainer: Trainer, batch: Batch, prediction: Prediction, rows: list[int]) -> None:
        """Keeps the thumbnails of a batch; they are on disk when this returns."""
        assert self._store is not None
        if "preview" not in batch:
            return
        scores = prediction.image_score.detach().float().cpu().tolist()
        rows = [i for i in rows if batch["preview"][i].numel() and math.isfinite(scores[i])]
        rows = [i for i in rows if self._store.wants(scores[i])]
        if not rows:
            return
        maps = inspected(batch, prediction.anomaly_map).cpu()
        with ThreadPoolExecutor(min(len(rows), usable_cpus())) as pool:
            kept = list(pool.map(partial(_kept, batch, maps), rows))
        try:
            self._store.add(kept)
        except OutputError as error:
            if trainer.state.fn != "test" or trainer.world_size > 1:  # a prediction is continued later
                raise
            rank_zero_warn("no report; the test goes on for its metrics")
            self._begun, self._problem = False, error

    # -- the end -----------------------------------------------------------------------------------------------

    def finish(self, trainer: Trainer, folder: Path, *, progress: bool) -> None:
        """Writes the page; a collective call, on every rank."""
        store = self._store or MediaStore(folder, rank=trainer.global_rank, limit=self.limit)
        self._store = None
        store.close()
        trainer.strategy.barrier("vlad: report")
        problem: BaseException | None = None
        if trainer.is_global_zero:
            try:
                self._write(trainer, folder, store)
            except Exception as error:  # a process that fails must not leave the others waiting for it
                problem = error
        trainer.strategy.barrier("vlad: report")
        if problem is not None:
            raise problem

    def _write(self, trainer: Trainer, folder: Path, store: MediaStore) -> None:
        store.join()
        places = store.places()
        tested = trainer.state.fn == "test"
        found = _tested(trainer) if tested else content_of_prediction(folder / "predictions.csv", _data_name(trainer))
        wanted = [places.get(key) for key in found.keys]
        originals = _copy_originals(found, folder) if self.copy else {}
        scales = _scales(folder, store, wanted, found)
        groups = [
            Group(name, (scale.floor, scale.low, scale.high), found.thresholds.get(key), found.curves.get(key, {}))
            for key, name, scale in zip(found.groups, found.names, scales, strict=True)
        ]
        if tested and self.against is not None:
            compare_rows(found, read_scores(folder), self._other())
        record = _read_json(folder / "run.json")
        page = Page(
            f"{'Test' if tested else 'Prediction'}: {_method_name(trainer)} on {found.data}",
            "test" if tested else "predict",
            f"run {folder.name}",
            groups,
            found.tables,
            protocol_card(record, _settings(trainer), _data(trainer), self._evaluation(trainer)),
            found.summary,
            found.notes,
            self.against if tested and self.against else "",
        )
        original = partial(_linked, originals)
        write_page(folder / _FILE, page, found.rows, lambda: store.read(wanted), original=original)
        if tested:
            store.clear()
        print(f"report: {folder / _FILE}", flush=True)

    def _other(self) -> pd.DataFrame:
        """Returns the scores of the run that this one is compared with."""
        return read_scores(Path(resolve_run(str(self.against))))

    def _evaluation(self, trainer: Trainer) -> dict[str, Any]:
        """Returns how was measured, and what it took."""
        evaluator = find_callback(trainer, Evaluator)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 30 if sys.platform == "darwin" else 1 << 20)
        found: dict[str, Any] = {}
        if evaluator is not None and trainer.state.fn == "test":
            found |= evaluator.evaluation.settings
            own = evaluator.resolution == "own"
            found["resolution"] = "of each image" if own else "maps and masks at the method's own image size"
        found["seconds"] = f"{time.monotonic() - self._began:.0f}"
        found["memory of this process"] = f"{memory:.2f} GiB at most"
        if torch.cuda.is_available():
            found["memory of the GPU"] = f"{torch.cuda.max_memory_allocated() / (1 << 30):.2f} GiB at most"
        return found

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waits for :meth:`teardown`: nothing that goes wrong with a page may cost a test its tables."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the page of a test, its metrics and heat maps being written.

        Raises:
            OutputError: It could not be written.
        """
        if stage == "test" and self._begun:
            self._finish(trainer, Path(str(self._log_dir)), progress=False)
        super().teardown(trainer, pl_module, stage)
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the rest to the continuation of the run."""
        if self._store is not None:
            self._store.close()


def _kept(batch: Batch, maps: torch.Tensor, i: int) -> tuple[str, Kept]:
    """Returns by what an image's thumbnails are found, and the thumbnails."""
    seen = (1.0, 1.0)
    if "seen_size" in batch and "original_size" in batch:
        sizes = zip(batch["seen_size"][i].tolist(), batch["original_size"][i].tolist(), strict=True)
        height, width = (min(1.0, part / whole) for part, whole in sizes)
        seen = (height, width)
    mask = batch["mask_preview"][i].cpu().numpy() if "mask_preview" in batch else None
    media = encode_media(
        batch["preview"][i].cpu().numpy(), maps[i], mask if mask is not None and mask.size else None, seen
    )
    values = maps[i][maps[i] != -torch.inf]
    finite = bool(len(values)) and bool(torch.isfinite(values).all())
    maximum = float(values.max()) if finite else None
    level = float(values[:: max(1, len(values) // 4096)].median()) if finite else None
    panel = batch["output"][i] if "output" in batch else ""
    return media_key(batch["category"][i], batch["image_id"][i], batch["path"][i]), Kept(media, panel, maximum, level)


def _tested(trainer: Trainer) -> Content:
    evaluator, decide = find_callback(trainer, Evaluator), find_callback(trainer, Decide)
    result = evaluator.result if evaluator is not None else None
    if evaluator is None or result is None:
        raise MethodError("a report of a test needs vlad.callbacks.Evaluator() among the callbacks, before Report()")
    images = result.images if decide is None else decide.decision_columns(result.images)
    data = getattr(trainer, "datamodule", None)
    published = published_beside(result, trainer.lightning_module, data, evaluator)
    return content_of_test(result, images, published)


def _scales(folder: Path, store: MediaStore, wanted: Sequence[int | None], found: Content) -> list[Scale]:
    """Returns the colours' scale of each category: that of the heat maps, where some were drawn."""
    recorded = _read_json(folder / "heatmaps" / "scale.json")
    by_category = {key: Scale.of_dict(one) for key, one in recorded.get("categories", {}).items()}
    by_category |= {key.rpartition("/")[2]: one for key, one in by_category.items()}
    run: Scale | None = None
    with suppress(KeyError, TypeError, ValueError):
        run = Scale.of_dict(recorded)
    if run is None:
        facts = [
            (one.maximum, one.level, row.label)
            for one, row in zip(store.read(wanted), found.rows, strict=True)
            if one is not None and one.maximum is not None
        ]
        maxima, levels, labels = np.array(facts, float).T if facts else np.array([[1.0], [0.0], [-1]])
        run = choose_scale(maxima, levels, labels)
    return [by_category.get(key, run) for key in found.groups]


def _copy_originals(found: Content, folder: Path) -> dict[str, str]:
    """Copies original images into the run folder; returns the copy of each path."""
    first: dict[str, tuple[str, str, str]] = {}
    for row in found.rows:
        if row.score is not None:
            dataset, _, category = found.groups[row.group].rpartition("/")
            first.setdefault(row.path, (dataset or category, category, row.name))
    copies = {}
    for path, name in zip(first, output_names(first.values()), strict=True):
        target = folder / "originals" / f"{name}{Path(path).suffix}"
        if not target.is_file():
            with output_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        copies[path] = str(target)
    return copies


def _linked(originals: Mapping[str, str], path: str) -> str:
    return originals.get(path, path)


def _method_name(trainer: Trainer) -> str:
    """Returns the registered name of the method; its class's where it has none."""
    cls = type(trainer.lightning_module)
    names = [name for name, plugin in discover().items() if plugin.class_path == class_path_of(cls)]
    return names[0] if names else cls.__name__


def _settings(trainer: Trainer) -> dict[str, Any]:
    return {name: value for name, value in trainer.lightning_module.hparams.items() if value is not None}


def _data_name(trainer: Trainer) -> str:
    given = getattr(getattr(trainer, "datamodule", None), "hparams", {}).get("predict")
    paths = given if isinstance(given, list) else [given]
    return ", ".join(str(path) for path in paths[:3] if path) + (", …" if len(paths) > 3 else "")


def _data(trainer: Trainer) -> dict[str, Any]:
    """Returns what is known of the data beside counts."""
    data: Any = getattr(trainer, "datamodule", None)
    if data is None:
        return {}
    selection = getattr(data, "selection", None)
    return {"shots": data.shots, "references": data.references, "seed": getattr(selection, "seed", None)}


def _read_json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}
