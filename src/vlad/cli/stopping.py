"""A training that is stopped keeps what it has learned."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from vlad.cli.signals import Terminated, hold, release
from vlad.runs.folder import RunLogger

__all__ = ["SaveWhenStopped", "own_signals"]


def own_signals(trainer: Trainer) -> None:
    """Leaves SIGTERM and SIGINT to vlad, or all signals to Lightning where SLURM puts a job back into its queue.

    Lightning's own handler talks to the other processes in the middle of whatever they are doing.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler that is there would be called too
    else:
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


class SaveWhenStopped(Callback):
    """Writes a checkpoint where a training is stopped by a signal, with all steps that were done.

    A signal waits while a step changes parameters and counters; all other work is given up at once. Where gradients
    are accumulated over several batches, those of an unfinished step are done again by the training that goes on.
    """

    def __init__(self) -> None:
        """Nothing is trained yet."""
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers the step that the training begins or goes on with."""
        self._first = trainer.global_step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """From here on, parameters, counters and learning rate have to change together."""
        hold()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """They have."""
        release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the checkpoint, if something was learned since the last one."""
        stopped = isinstance(exception, KeyboardInterrupt | Terminated | SystemExit)
        if not stopped or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        saved = [getattr(one, "_last_global_step_saved", 0) for one in trainer.checkpoint_callbacks]
        logger = next((one for one in trainer.loggers if isinstance(one, RunLogger)), None)
        simple = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)  # others save with all processes
        if not saved or trainer.global_step in {self._first, *saved} or not simple or logger is None:
            return
        if logger.folder is None or not logger.folder.is_dir():
            return
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        name = f"stopped-epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
        file = Path(logger.folder) / "checkpoints" / name
        trainer.strategy.save_checkpoint(checkpoint, file)
        print(f"\nsaved: {file}; go on with: vlad fit --ckpt_path {logger.folder}", flush=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Counts back the batches of an unfinished step, whose gradients no checkpoint holds."""
        loop = trainer.fit_loop.epoch_loop
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress")
        if progress is None or trainer.accumulate_grad_batches == 1:
            return
        undone = loop.batch_progress.current.processed % trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        if loop.batch_progress.is_last_batch:  # which Lightning takes a step after
            return
        for part in ("current", "total"):
            counts = progress[part]
            progress[part] = {name: min(count, counts["processed"]) - undone for name, count in counts.items()}
