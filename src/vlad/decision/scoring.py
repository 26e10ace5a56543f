"""Scores calibration images with the same loop as prediction and test."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vlad.datamodules.datamodule import AnomalyDataModule
from vlad.datamodules.readable import check_files
from vlad.datamodules.roi import add_regions
from vlad.errors import OptionError
from vlad.tiling import requirements_of
from vlad.types import Batch, Prediction, known_masks

if TYPE_CHECKING:
    import pandas as pd

    from vlad.methods.base import Method

__all__ = ["Scored", "score_images"]


class Scored(NamedTuple):
    """Scores of a method for a list of images.

    Attributes:
        scores: Image scores (n,), float32; NaN if an image has none.
        maxima: Maxima of the maps (n,).
        levels: Medians of the maps (n,).
        errors: Why an image has no score, by position.
        pixel_thresholds: Threshold of the best pixel F1 for each category with masks.
        precision: Lightning's name of the precision used.
    """

    scores: np.ndarray
    maxima: np.ndarray
    levels: np.ndarray
    errors: dict[int, str]
    pixel_thresholds: dict[str, float]
    precision: str


class _Data(AnomalyDataModule):
    """A data module whose indices are given."""

    def prepare_data(self) -> None:
        """Does nothing: all images are indexed."""

    def setup(self, stage: str) -> None:
        """Does nothing."""


class _Collector(Callback):
    """Keeps what is needed of each prediction."""

    def __init__(self, categories: list[str]) -> None:
        count = len(categories)
        self.categories = categories
        self.scores, self.maxima, self.levels = (np.full(count, np.nan, np.float32) for _ in range(3))
        self.errors: dict[int, str] = {}
        self.pixels: dict[str, Any] = {}

    def _keep(self, outputs: Any, batch: Batch) -> None:
        self.errors |= dict(batch.get("failed", []))
        if not isinstance(outputs, Prediction):
            return
        rows = batch["index"].cpu().numpy()
        maps = outputs.anomaly_map.float()
        self.scores[rows] = outputs.image_score.float().cpu().numpy()
        self.maxima[rows] = maps.amax((1, 2)).cpu().numpy()
        self.levels[rows] = maps.flatten(1).median(1).values.cpu().numpy()
        for row in rows.tolist():
            if not np.isfinite(self.scores[row]) or not np.isfinite(self.maxima[row]):
                self.errors[row] = f"the method's score is not finite ({self.scores[row]})"
        if "mask" in batch:
            self._add_pixels(maps, batch)

    def _add_pixels(self, maps: torch.Tensor, batch: Batch) -> None:
        from vlad.metrics.pixel import PixelMetrics

        known = known_masks(batch).tolist()
        for place, row in enumerate(batch["index"].tolist()):
            if known[place] and row not in self.errors:
                metric = self.pixels.setdefault(self.categories[row], PixelMetrics())
                metric.update(maps[place].cpu(), batch["mask"][place].cpu())

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._keep(outputs, batch)

    on_test_batch_end = on_predict_batch_end

    def thresholds(self) -> dict[str, float]:
        """Returns the threshold of the best pixel F1 of each category that has masks."""
        found = {}
        for category, metric in self.pixels.items():
            metric.compute()
            threshold = metric.result().f1_threshold
            if np.isfinite(threshold):
                found[category] = float(np.float32(threshold))
        return found


def score_images(
    method: Method,
    frame: pd.DataFrame,
    references: pd.DataFrame | None = None,
    *,
    precision: str = "32-true",
    accelerator: str = "auto",
    masks: bool = False,
    data: Mapping[str, Any] | None = None,
) -> tuple[Scored, dict[str, Any]]:
    """Fits a method on references and scores images with it, as ``vlad predict`` does.

    Args:
        method: The method; it is fitted on the references in place.
        frame: Index of the images.
        references: Index of the references, or None to leave the method unchanged.
        precision: Lightning's name of the precision.
        accelerator: Lightning's name of the device.
        masks: Whether to read masks, for pixel thresholds.
        data: Options of :class:`vlad.AnomalyDataModule`.

    Returns:
        The scores, and the options of the data that they depend on.
    """
    from vlad.callbacks.evaluator import Evaluator
    from vlad.callbacks.references import References

    part = "test" if masks else "predict"
    module = _Data(**dict(data or {}))
    module.require(requirements_of(method))
    module.frames[part] = frame.reset_index(drop=True)
    if references is not None:
        module.frames["references"] = references.reset_index(drop=True)
    if module.roi is not None or module.ignore is not None:
        module.frames[part], told = add_regions(module.frames[part], module.roi, module.ignore)
        print("\n".join(told), end="\n" if told else "")
    check_files([one for name, one in module.frames.items() if name != "predict"], module.reading)
    collector = _Collector(frame["category"].tolist())
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer([collector, References(), Evaluator(("image",))], folder, precision, accelerator)
        if masks:
            trainer.test(method, datamodule=module, verbose=False)
        else:
            trainer.predict(method, datamodule=module, return_predictions=False)
    found = Scored(
        collector.scores,
        collector.maxima,
        collector.levels,
        collector.errors,
        collector.thresholds(),
        str(trainer.precision),
    )
    return found, module.scoring_options


def _trainer(callbacks: list[Callback], folder: str, precision: str, accelerator: str) -> Trainer:
    """Returns a trainer that leaves nothing behind.

    Raises:
        OptionError: There is no such device, or it cannot compute with this precision.
    """
    try:
        return Trainer(
            accelerator=accelerator,
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            callbacks=callbacks,
            logger=False,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        cause = str(error).splitlines()[0]
        raise OptionError(f"--accelerator {accelerator}, --precision {precision}: {cause}") from error
