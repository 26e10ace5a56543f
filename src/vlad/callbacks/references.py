"""Fits a method on the reference images of a run, records them, and rejects references that are tested."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from vlad.datamodules.overlap import image_digest
from vlad.errors import DataError
from vlad.runs import run_folder
from vlad.table import write_frame
from vlad.tiling import FitsReferences, fit_references
from vlad.types import Batch

__all__ = ["References"]


class References(Callback):
    """Fits the method on the data module's references before testing and prediction.

    Writes ``references.csv`` to the run folder: dataset, category, image id, path and SHA-256 of each one. A trainer
    with neither a logger nor a ``default_root_dir`` has no such folder.
    """

    def __init__(self, save: bool = False) -> None:
        """Configures what is saved.

        Args:
            save: Whether to save the fitted state as ``checkpoints/references.ckpt``, so that ``vlad.load(run)`` and
                ``--ckpt_path run`` restore it without the images. A memory bank is large: at 518 px and ViT-L-14
                22 MB for each reference image.
        """
        self.save = save
        self._known: dict[bytes, str] = {}
        self._log_dir: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Asks for the trainer's folder: a collective call, and a process without images skips what comes later."""
        self._log_dir = trainer.log_dir

    def _fit(self, trainer: Trainer, method: LightningModule) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        loader = data.reference_dataloader() if hasattr(data, "reference_dataloader") else None
        self._known = {}
        if loader is None:
            return

        def remembered() -> Iterator[Batch]:
            for batch in loader:
                for image, path in zip(batch["image"], batch["path"], strict=True):
                    self._known[image_digest(image)] = path
                yield batch

        fit_references(cast(FitsReferences, method), remembered())
        if getattr(data, "allow_overlap", False):
            self._known = {}
        if not trainer.is_global_zero:
            return
        folder = run_folder(trainer, self._log_dir)  # not before: references that cannot be fitted leave no run folder
        records = data.reference_records()
        categories = records.groupby(["dataset", "category"], sort=False).ngroups
        print(f"references: {len(records)} normal images of {categories} categories", flush=True)
        asked = bool(trainer.loggers) or Path(trainer.default_root_dir).resolve() != Path.cwd()
        if folder is not None and asked:  # a trainer that was given no place has the working folder
            write_frame(folder / "references.csv", records)
        if self.save and folder is not None:
            trainer.save_checkpoint(folder / "checkpoints" / "references.ckpt", weights_only=True)

    def _refuse_references(self, batch: Batch) -> None:
        if not self._known:
            return
        for image, path in zip(batch["image"], batch.get("path", []), strict=True):
            found = self._known.get(image_digest(image))
            if found is not None:
                raise DataError(
                    f"{path} is scored and is the same image as the reference {found}: its score would mean nothing; "
                    "take it out of the references, or give --allow-overlap"
                )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fits the method."""
        self._fit(trainer, pl_module)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Compares the images with the references."""
        self._refuse_references(batch)

    on_predict_start = on_test_start
    on_predict_batch_start = on_test_batch_start
    on_validation_batch_start = on_test_batch_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fits the method for ``vlad validate``; while training there are no references."""
        if trainer.state.fn == "validate":
            self._fit(trainer, pl_module)
