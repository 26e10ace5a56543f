"""Records a run: the command, the method, its data and its environment."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from vlad.checkpoint import describe
from vlad.files import write_json
from vlad.runs.environment import count_data, git_state, placement, versions
from vlad.runs.folder import RunLogger, run_folder
from vlad.runs.next import next_command
from vlad.runs.pointers import RECORD, point_to, resolve_run

__all__ = ["RunRecord"]


class RunRecord(Callback):
    """Creates the run folder, and writes ``run.json`` to it.

    ``run.json`` has the command, the method with the origin of its parameters and its checkpoint, the encoder's tag or
    file and the fingerprint of its weights, the data with their counts, versions, device, and the status of the
    run: ``running``, ``finished``, ``stopped`` by the user or a scheduler, or ``failed``. A run that ends before its
    first batch is done leaves no folder.
    """

    def __init__(self, command: Sequence[str] = ()) -> None:
        """Stores the command line of the run."""
        self.command = list(command)
        self._folder: Path | None = None
        self._record: dict[str, Any] = {}
        self._batches = 0
        self._started = _now()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reports in one line if random weights are used."""
        self._folder, self._record, self._batches, self._started = None, {}, 0, _now()
        encoder = getattr(pl_module, "backbone", None)
        if trainer.is_global_zero and getattr(encoder, "pretrained", None) == "random":
            print(f"{encoder.name} has random weights: scores are meaningless", flush=True)  # type: ignore[union-attr]

    # -- the start ---------------------------------------------------------------------------------------------

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._folder is not None:
            return
        self._folder = run_folder(trainer)
        if self._folder is None or not trainer.is_global_zero:
            return
        self._record = {
            "status": "running",
            "verb": str(trainer.state.fn.value if trainer.state.fn else ""),
            "command": self.command,
            "command_line": shlex.join(self.command),
            "working_folder": os.getcwd(),
            "started": self._started,
            "ended": None,
            **_about(pl_module),
            "checkpoint": _given(trainer, pl_module, self._folder),
            "data": count_data(getattr(trainer, "datamodule", None)),
            **placement(trainer),
            "python": platform.python_version(),
            "packages": versions(),
            "git": git_state(),
        }
        self._write()

    def _write(self) -> None:
        assert self._folder is not None
        write_json(self._folder / RECORD, self._record)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the run of ``vlad fit``."""
        self._begin(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the run of ``vlad test``."""
        self._begin(trainer, pl_module)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the run of ``vlad predict``."""
        self._begin(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the run of ``vlad validate``."""
        if trainer.state.fn == "validate":
            self._begin(trainer, pl_module)

    # -- while it goes -----------------------------------------------------------------------------------------

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Counts batches: a run leaves a folder from its first batch on."""
        self._batches += 1

    on_test_batch_end = on_predict_batch_end = on_train_batch_end

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Counts batches, except those of a sanity check."""
        self._batches += not trainer.sanity_checking

    # -- the end -----------------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints a test command for the trained method, if the test data is known."""
        if self._folder is None or not trainer.is_global_zero:
            return
        checkpoints = any(self._folder.glob("checkpoints/*.ckpt"))
        command = next_command(self._folder, _config(trainer), trainer, self.command) if checkpoints else None
        if command:
            print(f"next: {command}", flush=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Records that the run has finished, after all other callbacks."""
        if self._record and trainer.is_global_zero:
            self._record |= {"status": "finished", "ended": _now(), **_about(pl_module)}
            self._write()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Records that the run failed or was stopped; removes the folder of a run before its first batch."""
        if not trainer.is_global_zero:
            return
        if not self._batches:
            for logger in trainer.loggers:
                if isinstance(logger, RunLogger):
                    logger.discard()
        if self._record and self._folder is not None and self._folder.is_dir():
            stopped = not isinstance(exception, Exception)  # Ctrl+C, SIGTERM
            text = (str(exception).strip() or type(exception).__name__).splitlines()[0]
            self._record |= {"status": "stopped" if stopped else "failed", "ended": _now(), "error": text[:500]}
            self._write()


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _about(method: Any) -> dict[str, Any]:
    """Returns what a record says of the method; nothing of a module that is none of vlad's."""
    if not hasattr(method, "api"):
        return {}
    source = getattr(method.backbone, "source", None)
    weights = None
    if source is not None:
        weights = {"from": source.label, "file": str(source.file or ""), "sha256": source.sha256}
    return {
        "method": describe(method),
        "weights": weights,
        "parameters": dict(method.weight_files),
        "untrained": bool(method.trains and not method.origin),
        "engine": "torch" if method.engine is None else method.engine.label,
        "tiling": None if method.tiling is None else method.tiling.identity(),
    }


def _given(trainer: Trainer, method: Any, folder: Path) -> dict[str, str] | None:
    """Returns a link to the checkpoint that a run was given, by ``--ckpt_path`` or as weights of a run of vlad's."""
    given = trainer.ckpt_path
    if not given and str(getattr(method, "origin", "")).startswith("weights "):
        given = str(method.origin).removeprefix("weights ")
    if not given:
        return None
    file = resolve_run(given)
    if file.is_dir():
        from vlad.published import find_checkpoint

        file = find_checkpoint(file)
    return point_to(file, folder) if file.is_file() else None


def _config(trainer: Trainer) -> Mapping[str, Any]:
    """Returns the resolved config of a run of the command line; an empty one of a run from Python."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    saved = next((callback for callback in callbacks if isinstance(callback, SaveConfigCallback)), None)
    return {} if saved is None else saved.config.as_dict()
