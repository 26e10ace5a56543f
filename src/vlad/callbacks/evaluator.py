"""Computes the metrics of a validation or test run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vlad.callbacks.sets import CategorySets
from vlad.errors import MethodError, OptionError
from vlad.metrics.evaluation import Evaluation, finite_rows
from vlad.metrics.results import EvaluationResult
from vlad.types import Batch, Features, Prediction, Tags, map_tensors

__all__ = ["Evaluator"]


class Evaluator(Callback):
    """Metrics per category of a validation or test run, from the predictions that the method's steps return.

    The means are logged as ``val/image_auroc``, ``test/pixel_aupro`` … for checkpoints, early stopping and loggers;
    those of earlier stages of a method that refines its maps as ``val/initial/image_auroc``. The attribute
    ``result`` has all values; the callback :class:`vlad.callbacks.Results` writes it.

    A method that scores the images of a category together (``tags.transductive``) is called at the end of each
    category; other callbacks that have ``on_set_scored(trainer, pl_module, batch, prediction)`` are then handed what
    it said, with a batch of all images of the category that lacks ``image``.
    """

    def __init__(
        self,
        metrics: Sequence[str] = ("image", "pixel"),
        mode: Literal["streaming", "exact"] | None = None,
        pro_limits: Sequence[float] = (0.3, 0.05),
        evaluation_protocol: str = "mvtec",
        recalls: Sequence[float] = (0.95,),
        columns: Sequence[str] | None = None,
        resolution: Literal["method", "own"] = "method",
    ) -> None:
        """Selects the metrics and the pixel protocol.

        Args:
            metrics: Names of metrics: ours are image and pixel; packages can add more.
            mode: ``streaming`` (bounded memory, within 1e-4) or ``exact`` (keeps every score); by default what
                the protocol needs, streaming if both are possible.
            pro_limits: False-positive rates up to which AUPRO integrates.
            evaluation_protocol: Whose evaluation is reproduced: mvtec, adaclip, anomalyclip or april_gan.
            recalls: Recalls at which the false-positive rate is computed: ``image_fpr_at_0.95``, ``pixel_fpr_at_0.95``.
            columns: Columns of the printed table, such as image_auroc and pixel_aupimo; by default all but
                AUPIMO, IoU-max and false-positive rates, which files and report have.
            resolution: Resolution of the pixel metrics: the method's input size, as in the papers, or each image's
                original size, to which maps are upsampled (bilinear).

        Raises:
            OptionError: A rate is out of range, or there is no such resolution.
        """
        if not pro_limits or not all(0 < limit <= 1 for limit in pro_limits):
            raise OptionError(
                f"metrics.pro_limits are false-positive rates above 0 and up to 1, not {list(pro_limits)}"
            )
        if not all(0 < recall <= 1 for recall in recalls):
            raise OptionError(f"metrics.recalls are shares above 0 and up to 1, not {list(recalls)}")
        if resolution not in {"method", "own"}:
            raise OptionError(f"metrics.resolution is method or own, not {resolution!r}")
        # wrong settings: before a run
        self.evaluation = Evaluation(metrics, mode, pro_limits, evaluation_protocol, recalls)
        self.resolution = resolution
        self.columns = None if columns is None else list(columns)
        self._sets = CategorySets()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Asks the data module for masks at the images' own resolution, where pixels are compared there.

        Raises:
            MethodError: The data have none to give.
        """
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "own_masks"):
            data.own_masks = self.resolution == "own"
        elif self.resolution == "own":
            raise MethodError("metrics.resolution own needs masks of vlad's data module; leave it at method")

    @property
    def result(self) -> EvaluationResult | None:
        """The result of the last finished validation or test; None before."""
        return self.evaluation.result

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.evaluation.reset()
        self._sets = CategorySets()
        if _transductive(pl_module) == "features" and trainer.world_size > 1:
            raise MethodError(
                f"{type(pl_module).__name__} scores all test images of a category together and cannot be shared by "
                f"{trainer.world_size} processes: run it with one (--trainer.devices 1 --trainer.num_nodes 1)"
            )

    def _add(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch) -> None:
        if _transductive(pl_module) == "features" and isinstance(outputs, Features):
            for complete in self._sets.add(batch, outputs):
                self._score_set(trainer, pl_module, *complete)
        elif isinstance(outputs, Prediction):
            if trainer.state.fn == "fit" and not (finite := finite_rows(outputs)).all():
                path = batch["path"][int((~finite).nonzero()[0])]
                raise MethodError(
                    f"the scores of {path} are not finite (NaN or infinity): training has diverged; give a lower "
                    "learning rate, or another precision"
                )
            self.evaluation.update(batch, outputs, rank=trainer.global_rank, world_size=trainer.world_size)
        else:
            raise MethodError(
                f"the test and validation steps of {type(pl_module).__name__} must return a vlad.types.Prediction, "
                f"got {type(outputs).__name__}"
            )

    def _score_set(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Batch,
        features: Features,
        size: tuple[int, int],
    ) -> None:
        prediction: Prediction = pl_module.score_set(features, None, size).detached()  # type: ignore[operator]
        self.evaluation.update(batch, prediction)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            hook = getattr(callback, "on_set_scored", None)
            if callable(hook):
                hook(trainer, pl_module, batch, prediction)

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for complete in self._sets.finish():
            self._score_set(trainer, pl_module, *complete)
        kind = _transductive(pl_module)

        def combine(prediction: Prediction, size: tuple[int, int]) -> Prediction:
            here = map_tensors(lambda tensor: tensor.to(pl_module.device), prediction)
            with torch.no_grad():
                return pl_module.score_set(None, here, size)  # type: ignore[operator]

        result = self.evaluation.compute(combine if kind == "scores" else None, kind)
        parts = {stage: result} | {f"{stage}/{name}": found for name, found in result.stages.items()}
        for prefix, found in parts.items():
            mean = {f"{prefix}/{name}": value for name, value in found.mean.items() if not math.isnan(value)}
            # Every rank logs the same value, so that monitors work on all of them and there is nothing to reduce.
            pl_module.log_dict(mean, rank_zero_only=True)

    def exit_status(self, fail_on_anomaly: bool = False) -> int:
        """Returns the exit status of a run: 0; 3 if some images have no finite score; 1 if none has."""
        failed = 0 if self.result is None else len(self.result.failed)
        return 0 if self.result is None or not failed else 3 if failed < len(self.result.images) else 1

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the last evaluation."""
        self._start(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch."""
        self._add(trainer, pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes the metrics over the validation set."""
        self._finish(trainer, pl_module, "val")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discards the sanity check, which covers only a few batches."""
        self.evaluation.reset()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the last evaluation."""
        self._start(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch."""
        self._add(trainer, pl_module, outputs, batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes the metrics over the test set."""
        self._finish(trainer, pl_module, "test")


def _transductive(pl_module: LightningModule) -> Literal["", "scores", "features"]:
    """Returns whether scores of the method need the whole test set; a module without tags needs nothing."""
    tags: Tags = getattr(pl_module, "tags", Tags())
    return tags.transductive
