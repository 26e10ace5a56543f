"""The run folder of a trainer: made when a run has really started, told to every process, the config in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from vlad.errors import OutputError
from vlad.runs.logger import RunLogger
from vlad.runs.loggers import Deferred, plain

__all__ = ["RunLogger", "SaveConfig", "run_folder"]


def run_folder(trainer: Trainer, log_dir: str | None = None) -> Path | None:
    """Returns the run folder, which exists from here on.

    To be called once a run has really started: the data are indexed, the method is loaded and fitted on its
    references; not in ``setup``. The first process makes the folder. The others wait for that, and nobody for them: a
    process without images may never ask.

    Args:
        trainer: A trainer; where it has no :class:`RunLogger`, its ``log_dir`` is the folder.
        log_dir: The trainer's ``log_dir`` where it is known: asking for it is a collective call.

    Returns:
        The folder; None where the trainer leaves nothing, as with ``fast_dev_run``.

    Raises:
        OutputError: It cannot be made.
        MethodError: The method could not score: it is untrained, or without the references it needs.
    """
    logger = next((logger for logger in trainer.loggers if isinstance(logger, RunLogger)), None)
    if logger is None:
        found = trainer.log_dir if log_dir is None else log_dir
        return None if found is None else Path(found)
    if logger.settled:
        return logger.folder
    refuse = getattr(trainer.lightning_module, "refuse_unfit", None)
    if callable(refuse) and trainer.state.fn != "fit":
        refuse()  # the loops do so at the first batch, which is too late for a run that leaves nothing
    told: dict[str, str] = {}
    if trainer.is_global_zero:
        told["expected"] = logger.log_dir
        logger.log_hyperparams(_options(trainer.lightning_module))
        try:
            told["made"] = str(logger.begin())
        except OutputError as error:
            told["problem"] = str(error)
    told = _tell(trainer, logger.key, told)
    if "problem" in told:
        raise OutputError(told["problem"])
    logger.settle(Path(told["made"]))
    _follow(trainer, told["expected"], told["made"])
    for other in trainer.loggers:
        if isinstance(other, Deferred) and trainer.is_global_zero:
            other.log_hyperparams(_options(trainer.lightning_module))
            other.open(Path(told["made"]))
    return logger.folder


def _tell(trainer: Trainer, key: str, told: dict[str, str]) -> dict[str, str]:
    """Passes what the first process says on to the others, through the store that they found each other by."""
    if trainer.world_size == 1:
        return told
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return trainer.strategy.broadcast(told)
    store = torch.distributed.distributed_c10d._get_default_store()
    if trainer.is_global_zero:
        store.set(key, json.dumps(told))
        return told
    return dict(json.loads(store.get(key)))


def _options(module: LightningModule | None) -> dict[str, Any]:
    """Returns a method's options, and the encoder that it has in the end."""
    options = plain(getattr(module, "hparams", {}))
    encoder = getattr(module, "backbone", None)
    if encoder is not None and "backbone" in options:
        options["backbone"] = encoder.name
        if "pretrained" in options:
            options["pretrained"] = encoder.pretrained
    return options


def _follow(trainer: Trainer, expected: str, made: str) -> None:
    """Corrects what Lightning has derived from a name that another run then took."""
    if expected == made:
        return
    for holder in (*trainer.checkpoint_callbacks, getattr(trainer, "profiler", None)):
        folder = getattr(holder, "dirpath", None)
        if folder is not None and (Path(folder) == Path(expected) or Path(expected) in Path(folder).parents):
            setattr(holder, "dirpath", str(Path(made) / Path(folder).relative_to(expected)))  # noqa: B010


class SaveConfig(SaveConfigCallback):
    """Saves the resolved config in the run folder, once there is one."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Does nothing: whether the run will start is not known yet."""

    def _save(self, trainer: Trainer) -> None:
        if self.already_saved:
            return
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            self.parser.save(
                self.config,
                str(folder / self.config_filename),
                skip_none=False,
                overwrite=True,
                multifile=self.multifile,
            )
        self.already_saved = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the config of ``vlad fit``."""
        self._save(trainer)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the config of ``vlad test``."""
        self._save(trainer)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the config of ``vlad predict``."""
        self._save(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the config of ``vlad validate``."""
        if trainer.state.fn == "validate":
            self._save(trainer)
