"""TensorBoard and Weights & Biases, which write into the run folder and not before there is one."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vlad.errors import OptionError

__all__ = ["Deferred", "TensorBoard", "WandB", "plain"]


def plain(params: Mapping[str, Any] | Namespace | None) -> dict[str, Any]:
    """Returns hyper-parameters without the entries that Lightning's command line adds for itself."""
    values = vars(params) if isinstance(params, Namespace) else dict(params or {})
    return {name: value for name, value in values.items() if not name.startswith("_")}


class Deferred(Logger):
    """A logger that is made when the run folder is: Lightning asks loggers for their files before data are looked at.

    Subclasses say how, in :meth:`make`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._inner: Logger | None = None
        self._params: dict[str, Any] = {}

    def make(self, folder: Path) -> Logger:
        """Returns the logger that writes into a run folder."""
        raise NotImplementedError

    def open(self, folder: Path) -> None:
        """Makes the logger; on the first process alone."""
        if self._inner is None:
            self._inner = self.make(folder)
            self._inner.log_hyperparams(self._params)

    @property
    def name(self) -> str | None:
        """The logger's name of the project; None before the run has started."""
        return None if self._inner is None else self._inner.name

    @property
    def version(self) -> int | str | None:
        """The logger's name of the run; None before the run has started."""
        return None if self._inner is None else self._inner.version

    @property
    def experiment(self) -> Any:
        """The logger's own object; one that takes everything and does nothing before the run has started."""
        return _DummyExperiment() if self._inner is None else self._inner.experiment  # type: ignore[attr-defined]

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Logs hyper-parameters, without internals; those that come early are kept."""
        self._params.update(plain(params))
        if self._inner is not None:
            self._inner.log_hyperparams(self._params)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Logs metrics."""
        if self._inner is not None:
            self._inner.log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Writes what is not written yet."""
        if self._inner is not None:
            self._inner.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the log."""
        if self._inner is not None:
            self._inner.finalize(status)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Passes on that a checkpoint was saved."""
        if self._inner is not None:
            self._inner.after_save_checkpoint(checkpoint_callback)


def _require(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise OptionError(f"trainer.logger {extra} needs the package {module}: pip install 'vlad[{extra}]'")


class TensorBoard(Deferred):
    """Event files in the run folder: ``tensorboard --logdir runs`` shows all runs by their folders' names."""

    def __init__(self) -> None:
        """Checks that TensorBoard is there.

        Raises:
            OptionError: It is not installed.
        """
        super().__init__()
        _require("tensorboard", "tensorboard")

    def make(self, folder: Path) -> Logger:
        """Returns Lightning's logger for the folder itself."""
        return TensorBoardLogger(save_dir=str(folder), name="", version="", default_hp_metric=False)


class WandB(Deferred):
    """A run of Weights & Biases, whose name is the run folder's; its files are in ``wandb/`` there."""

    def __init__(
        self,
        project: str = "vlad",
        entity: str | None = None,
        tags: list[str] | None = None,
        offline: bool = False,
    ) -> None:
        """Checks that W&B is there.

        Args:
            project: Project that the run belongs to.
            entity: User or team; your own by default.
            tags: Tags of the run.
            offline: Whether the run is kept on this machine, for ``wandb sync`` later.

        Raises:
            OptionError: It is not installed.
        """
        super().__init__()
        _require("wandb", "wandb")
        self._project, self._entity, self._tags, self._offline = project, entity, tags, offline

    def make(self, folder: Path) -> Logger:
        """Returns Lightning's logger, logged in.

        Raises:
            OptionError: W&B refuses to start a run, for want of a login or of a network.
        """
        try:
            logger = WandbLogger(
                name=folder.name,
                save_dir=str(folder),
                project=self._project,
                offline=self._offline,
                entity=self._entity,
                tags=self._tags,
            )
            logger.experiment  # noqa: B018 - here the run is started
        except Exception as error:  # W&B has dozens of kinds
            cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise OptionError(
                f"W&B starts no run: {cause}; log in (wandb login), or give --trainer.logger.offline true"
            ) from error
        return logger
