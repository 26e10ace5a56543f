"""The logger that owns a run's folder: it is made when the run begins, by one process, for one run."""

from __future__ import annotations

import itertools
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vlad.errors import OptionError, OutputError
from vlad.runs.loggers import plain
from vlad.runs.pointers import LATEST, numbered, write_latest

__all__ = ["RunLogger"]


_numbers = itertools.count()  # the same on every process, which all make the same loggers
_STARTED = (  # what is written when a run starts
    *("run.json", "hparams.yaml", "fit.yaml", "validate.yaml", "test.yaml", "predict.yaml", "config.yaml"),
    *("references.csv", "events.out.tfevents.", "parts/lock", "parts/settings.json"),
)
_REMEDY = "name a folder that can be written by --output or --trainer.default_root_dir"


class _Writer(ExperimentWriter):
    """Lightning's writer, which would empty a folder that is not new to it: ours is of this run alone."""

    def _check_log_dir_exists(self) -> None:
        pass


class RunLogger(CSVLogger):
    """Owns a run's folder, and logs into it as CSV.

    The folder is made by :meth:`begin` (through :func:`run_folder`, or by the first row of metrics) and not before:
    what fails earlier leaves nothing. ``mkdir`` decides between runs that are started at once, so that two never share
    a folder. Until then :attr:`log_dir` is the name that is free now.

    Attributes:
        folder: The folder; None before it was made.
        made: Whether this run has made it; not so where a prediction goes on in the folder it was given.
    """

    def __init__(
        self,
        root: str | Path = "runs",
        method: str = "",
        name: str = "run",
        output: str | Path | None = None,
        *,
        resumes: bool = False,
        log: bool = True,
    ) -> None:
        """Says where the folder will be; makes nothing.

        Args:
            root: Folder of all runs.
            method: Folder below it.
            name: Name of the run folder below that; where it is taken, ``_2``, ``_3`` and so on are added.
            output: The run folder itself, in place of the three; ``latest`` then stays as it is.
            resumes: Whether ``output`` may hold something already.
            log: Whether metrics and hyper-parameters are written too.

        Raises:
            OptionError: ``output`` is a file, or holds something and ``resumes`` is not set.
            OutputError: The folder could not be made there.
        """
        self.output = None if output is None else Path(os.path.normpath(output))
        if self.output is None:
            super().__init__(save_dir=str(root), name=method)
        else:
            parent = str(self.output.parent)
            super().__init__(save_dir="" if parent == "." else parent, name="")
        self._run_name, self._resumes, self._log = name, resumes, log
        self.folder: Path | None = None
        self.made = False
        self.settled = False
        self.key = f"vlad/run_folder/{next(_numbers)}"
        self._candidate: Path | None = None
        self._params: dict[str, Any] = {}
        self._before: dict[Path, str | None] = {}
        if getattr(rank_zero_only, "rank", 0) == 0:  # the others are started when the folder may be there already
            self._check()

    # -- where it is -------------------------------------------------------------------------------------------

    @property
    def root_dir(self) -> str:
        """Folder of the method's runs."""
        return os.path.join(self.save_dir, self.name) if self.name else self.save_dir

    @property
    def version(self) -> str:
        """The run folder's own name."""
        return Path(self.log_dir).name

    @property
    def log_dir(self) -> str:
        """The run folder; before it is made, where it will be unless another run takes the name first."""
        if self.folder is not None:
            return str(self.folder)
        if self._candidate is None:
            self._candidate = self.output or next(path for path in self._names() if not path.exists())
        return str(self._candidate)

    def _names(self) -> Iterator[Path]:
        return (Path(self.root_dir) / name for name in numbered(self._run_name))

    def _check(self) -> None:
        """Refuses, ahead of all work, what could not be made."""
        target = self.output or Path(self.root_dir)
        if self.output is not None and target.exists():
            if not target.is_dir():
                raise OptionError(f"--output {target} is a file; name a folder")
            if not self._resumes and any(target.iterdir()):
                raise OptionError(f"--output {target} holds files already; name a new folder, or an empty one")
        parent = target.absolute()
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"the run folder cannot be made: {parent} is {_unfit(parent)}; {_REMEDY}")

    # -- making it ---------------------------------------------------------------------------------------------

    def begin(self) -> Path:
        """Makes the folder, if it was not made yet; to be called by one process. Returns it.

        Raises:
            OutputError: It cannot be made.
        """
        if self.folder is not None:
            return self.folder
        try:
            if self.output is None:
                Path(self.root_dir).mkdir(parents=True, exist_ok=True)
                self.folder = next(path for path in self._names() if _made(path))
                self.made = True
                self._point()
            else:
                self.output.parent.mkdir(parents=True, exist_ok=True)
                self.made = _made(self.output)
                self.folder = self.output
        except OSError as error:
            raise OutputError(
                f"the run folder cannot be made: {error.filename}: {error.strerror}; {_REMEDY}"
            ) from error
        if self._params and self._log:
            self.experiment.log_hparams(self._params)
        return self.folder

    def settle(self, folder: Path) -> None:
        """Takes over the folder that the first process has made."""
        self.folder, self.settled = folder, True

    def _point(self) -> None:
        assert self.folder is not None
        for root in dict.fromkeys((Path(self.save_dir), Path(self.root_dir))):
            pointer = root / LATEST
            if pointer.is_dir():  # somebody's own link
                continue
            self._before[root] = pointer.read_text(encoding="utf-8") if pointer.is_file() else None
            write_latest(root, self.folder)

    def discard(self) -> None:
        """Removes the folder of a run that ended before it had done anything, and what pointed to it.

        Only what is written when a run starts is removed; a folder that holds something else stays.
        """
        if self.folder is None or not self.made:
            return
        files = [path for path in self.folder.rglob("*") if not path.is_dir()]
        if not all(path.relative_to(self.folder).as_posix().startswith(_STARTED) for path in files):
            return
        for path in files:
            path.unlink(missing_ok=True)
        folders = sorted((path for path in self.folder.rglob("*") if path.is_dir()), reverse=True)
        for path in (*folders, self.folder):
            path.rmdir()
        for root, before in self._before.items():
            pointer = root / LATEST
            if pointer.is_file() and (root / pointer.read_text(encoding="utf-8").strip()).exists():
                continue  # another run has started since
            if before is None:
                pointer.unlink(missing_ok=True)
            else:
                write_latest(root, root / before.strip())
        for path in dict.fromkeys((Path(self.root_dir), Path(self.save_dir))) if self.output is None else ():
            if path != Path() and path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    # -- logging -----------------------------------------------------------------------------------------------

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's CSV writer; one that writes nothing before the folder is made."""
        if self.folder is None or not self._log:
            return _DummyExperiment()
        if self._experiment is None:
            self._experiment = _Writer(log_dir=str(self.folder))
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Keeps hyper-parameters, without internals, for ``hparams.yaml``."""
        self._params.update(plain(params))
        if self.folder is not None and self._log:
            self.experiment.log_hparams(self._params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Adds a row to ``metrics.csv``."""
        if self._log:
            self.begin()
            super().log_metrics(dict(metrics), step)


def _unfit(path: Path) -> str:
    return "not writable" if path.is_dir() else "no folder"


def _made(path: Path) -> bool:
    """Makes a folder; returns whether it was not there before."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True
