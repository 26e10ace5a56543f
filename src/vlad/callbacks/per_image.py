"""Base of callbacks that write one file per image to the run folder, in test and prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from vlad.metrics.distributed import own_samples
from vlad.runs import RunLogger, run_folder
from vlad.types import Batch, Prediction

__all__ = ["PerImage", "inspected"]


def inspected(batch: Batch, maps: Tensor) -> Tensor:
    """Returns maps (B, H, W), float32, with minus infinity outside of the batch's regions of interest."""
    maps = maps.detach().float()
    if "roi" not in batch:
        return maps
    inside = F.interpolate(batch["roi"][:, None].to(maps), size=maps.shape[1:], mode="nearest-exact")[:, 0] > 0
    return torch.where(inside, maps, -torch.inf)


class PerImage(Callback):
    """Opens the run folder, hands on each batch's own rows, and finishes once all processes have scored.

    A subclass sets ``enabled`` and has :meth:`begin`, :meth:`add` and :meth:`finish`.
    """

    enabled = True

    def __init__(self) -> None:
        self._log_dir: str | None = None
        self._begun = self._finished = False

    def begin(self, trainer: Trainer, folder: Path) -> None:
        """Starts or resumes a run in its folder; not called in a process without images to predict."""
        raise NotImplementedError

    def add(self, trainer: Trainer, batch: Batch, prediction: Prediction, rows: list[int]) -> None:
        """Processes the rows of a batch that belong to this process, at least one."""
        raise NotImplementedError

    def finish(self, trainer: Trainer, folder: Path, *, progress: bool) -> None:
        """Ends a run; a collective call, on every rank, with images or without."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Asks for the run folder: a collective call, and a process without images skips what comes later."""
        self._begun = self._finished = False
        self._log_dir = trainer.log_dir if self.enabled and stage in {"test", "predict"} else None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the run folder."""
        if not self.enabled:
            return
        owned = any(isinstance(logger, RunLogger) for logger in trainer.loggers)
        folder = run_folder(trainer) if owned else self._log_dir
        if folder is not None:
            self._log_dir, self._begun = str(folder), True
            self.begin(trainer, Path(folder))

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the run folder."""
        self.on_test_epoch_start(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Processes a batch; sets that are scored together are passed to :meth:`on_set_scored`."""
        if isinstance(outputs, Prediction):
            self.on_set_scored(trainer, pl_module, batch, outputs)

    def on_set_scored(self, trainer: Trainer, pl_module: LightningModule, batch: Any, prediction: Prediction) -> None:
        """Processes images that a transductive method has scored together."""
        rows = own_samples(batch, trainer.global_rank, trainer.world_size) if self._begun else []
        if rows:
            self.add(trainer, batch, prediction, rows)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes a batch, which may hold no image that could be read; all of it is this process's own."""
        if self._begun and isinstance(outputs, Prediction) and batch["path"]:
            self.add(trainer, batch, outputs, list(range(len(batch["path"]))))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a test."""
        if self._begun:
            self._finish(trainer, Path(str(self._log_dir)), progress=False)

    def finish_prediction(self, trainer: Trainer, folder: Path, *, progress: bool = True) -> None:
        """Ends a prediction; ``Predictions`` calls it, on every rank, with images or without.

        Args:
            trainer: The trainer.
            folder: The run folder.
            progress: Whether it is told how far it is.
        """
        if self.enabled:
            self._finish(trainer, folder, progress=progress)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends a prediction where there is no ``Predictions`` to ask for it."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        asked = any(type(callback).__name__ == "Predictions" for callback in callbacks)
        if stage == "predict" and self._log_dir is not None and not asked:
            self._finish(trainer, Path(self._log_dir), progress=False)

    def _finish(self, trainer: Trainer, folder: Path, *, progress: bool) -> None:
        if not self._finished:
            self._finished = True
            self.finish(trainer, folder, progress=progress)
