"""Writes the rows of a prediction while it runs, resumes interrupted runs, and accounts for every file."""

from __future__ import annotations

import heapq
import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vlad.callbacks.progress import Meter
from vlad.datamodules.image_files import printable
from vlad.datamodules.overlap import file_digest
from vlad.datamodules.roi import regions_digest
from vlad.errors import DataError
from vlad.identity import scoring_identity
from vlad.runs import run_folder
from vlad.store import FileState, RowStore
from vlad.types import Batch, Prediction

if TYPE_CHECKING:
    import pandas as pd

    from vlad.decision import Verdict

__all__ = ["Predictions", "row_keys"]

_WORST = 5


class Predictions(Callback):
    """Writes ``predictions.csv`` batch by batch: a killed run loses at most the current batch.

    A run into a folder with rows of the same method, weights, references and options resumes it: unchanged images are
    not scored again. A difference raises an error that names it.
    """

    def __init__(self, progress: bool = True) -> None:
        """Configures the output.

        Args:
            progress: Whether to print images per second and the remaining time.
        """
        self.progress = progress
        self.counts: Counter[str] = Counter()
        self._store: RowStore | None = None
        self._columns: dict[str, list[str]] = {}
        self._meter: Meter | None = None
        self._keys: list[str] = []
        self._settings: dict[str, Any] = {}

    # -- before ------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets the data module ask which rows are scored already; it does so once the method is restored."""
        data: Any = getattr(trainer, "datamodule", None)
        if stage != "predict":
            return
        if not hasattr(data, "leave_out"):
            raise DataError("Predictions needs a data module of vlad: trainer.predict(method, datamodule=data)")
        self.counts.clear()
        data.leave_out = lambda: self._begin(trainer, pl_module, data)

    def _begin(self, trainer: Trainer, method: LightningModule, data: Any) -> set[int]:
        """Opens the folder; returns the rows that are scored already. Every process calls it."""
        folder = trainer.log_dir  # a collective call: on every rank
        assert folder is not None
        frame: pd.DataFrame = data.frames["predict"]
        self._keys = row_keys(frame)
        names = {"path": "image_path", "image_id": "image_id", "category": "category", "class_name": "class_name"}
        self._columns = {name: frame[column].tolist() for name, column in names.items()}
        self._store = RowStore(Path(folder))
        settings = scoring_identity(method, precision=str(trainer.precision), data=data.scoring_options)  # type: ignore[arg-type]
        settings["references"] += data.references_digest()
        settings["data"]["roi"] = regions_digest(frame, whole=True)
        settings["decision"] = getattr(self._decide(trainer), "digest", "")
        done: set[int] = set()
        if self._store.folder.is_dir():
            self._store.check(settings)
            if trainer.is_global_zero:
                self._store.lock()
            done = self._find_done()
        self._settings = settings
        trainer.strategy.barrier("vlad: rows of earlier runs are read")
        if trainer.is_global_zero:
            self._tell_found(data, done)
        self._meter = Meter(
            len(self._keys) - len(done),
            "scoring",
            share=trainer.world_size,
            enabled=self.progress and trainer.is_global_zero,
        )
        return done

    def _find_done(self) -> set[int]:
        """Returns the rows whose image is scored and whose file is as it was."""
        assert self._store is not None
        states = self._store.states()
        now: dict[str, FileState] = {}
        done = set()
        for row, (key, path) in enumerate(zip(self._keys, self._columns["path"], strict=True)):
            before = states.pop(key, None)
            if before is None or before.failed:  # what failed is tried again
                continue
            if path not in now:
                now[path] = _state(path, before)
            if now[path][:3] == before[:3]:
                done.add(row)
            else:
                self.counts["changed"] += 1
        self.counts["vanished"] = len(states)
        self.counts["kept"] = len(done)
        return done

    def _tell_found(self, data: Any, done: set[int]) -> None:
        ignored: Mapping[str, list[str]] = getattr(data, "ignored", {})
        self.counts["ignored"] = sum(len(paths) for paths in ignored.values())
        for reason, paths in ignored.items():
            more = ", …" if len(paths) > 3 else ""
            print(f"ignored: {len(paths)} {reason} ({', '.join(printable(path) for path in paths[:3])}{more})")
        if done or self.counts["changed"] or self.counts["vanished"]:
            print(
                f"continuing: {len(done)} images are scored already, {self.counts['changed']} have changed, "
                f"{self.counts['vanished']} are no longer there",
                flush=True,
            )

    @staticmethod
    def _decide(trainer: Trainer) -> Any:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if type(callback).__name__ == "Decide"), None)

    # -- while -------------------------------------------------------------------------------------------------

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Locks the folder and records what its scores depend on."""
        assert self._store is not None
        folder = run_folder(trainer)
        if folder is not None and folder != self._store.folder:  # another run has taken the name
            self._store.close()
            self._store = RowStore(folder)
        if trainer.is_global_zero:
            self._store.lock()
            self._store.begin(self._settings)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Prediction | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the rows of a batch."""
        assert self._store is not None
        assert self._meter is not None
        rows = [self._failed_row(row, reason) for row, reason in batch.get("failed", [])]
        if outputs is not None:
            decide = self._decide(trainer)
            decided = decide is not None and decide.decision is not None
            verdicts = decide.verdicts(batch, outputs) if decided else [None] * len(batch["path"])
            scores = outputs.image_score.tolist()
            maxima = outputs.anomaly_map.amax((1, 2)).tolist()
            for i, row in enumerate(batch["index"].tolist()):
                if math.isfinite(scores[i]) and math.isfinite(maxima[i]):
                    rows.append(self._row(row, scores[i], maxima[i], verdicts[i], batch["digest"][i]))
                else:
                    reason = f"the method's score is not finite (score {scores[i]}, map maximum {maxima[i]})"
                    rows.append(self._failed_row(row, reason))
        self._store.append(rows)
        self._meter.advance(len(rows))

    def _about(self, row: int) -> dict[str, Any]:
        return {"key": self._keys[row], **{name: column[row] for name, column in self._columns.items()}}

    def _row(self, row: int, score: float, maximum: float, verdict: Verdict | None, digest: str) -> dict[str, Any]:
        about = self._about(row)
        decided: dict[str, Any] = {}
        if verdict is not None:
            decided = verdict.columns()
        size, mtime_ns = _stat(about["path"])
        file = {"size": size, "mtime_ns": mtime_ns, "digest": digest}
        return {**about, "image_score": score, "map_max": maximum, **decided, "error": "", **file}

    def _failed_row(self, row: int, reason: str) -> dict[str, Any]:
        return {**self._about(row), "error": printable(reason), "size": 0, "mtime_ns": 0, "digest": ""}

    # -- after -------------------------------------------------------------------------------------------------

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the table, draws pending heat maps, and prints a summary. Every process calls it.

        A process without images skips the hooks of prediction, but not this one.
        """
        if stage != "predict" or self._store is None:
            return
        store, self._store = self._store, None
        if self._meter is not None:
            self._meter.finish()
        try:
            self._finish(trainer, store)
        finally:
            store.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Releases the folder, so that the same program can resume the run."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _finish(self, trainer: Trainer, store: RowStore) -> None:
        trainer.strategy.barrier("vlad: every row is written")
        folder = Path(trainer.strategy.broadcast(str(store.folder)))  # a process without images never asked
        table = folder / "predictions.csv"
        worst: list[tuple[float, int, str]] = []

        def visit(row: dict[str, Any]) -> None:
            self.counts["failed" if row["error"] else "scored"] += 1
            self.counts[str(row.get("decision") or "undecided")] += not row["error"]
            if not row["error"]:
                heapq.heappush(worst, (row["image_score"], -self.counts["scored"], row["path"]))
                if len(worst) > _WORST:
                    heapq.heappop(worst)
            elif self.counts["failed"] <= _WORST:
                failures.append(f"  {printable(row['path'])}: {row['error']}")

        failures: list[str] = []
        if trainer.is_global_zero:
            store.write_table(self._keys, table, visit)
            store.join()
        counts = trainer.strategy.broadcast(dict(self.counts))
        self.counts = Counter(counts)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            finish = getattr(callback, "finish_prediction", None)
            if callable(finish):
                finish(trainer, folder, progress=self.progress)
        if trainer.is_global_zero:
            self._tell(folder, table, sorted(worst, reverse=True), failures)

    def _tell(self, folder: Path, table: Path, worst: list[tuple[float, int, str]], failures: list[str]) -> None:
        counts = self.counts
        seconds = time.monotonic() - self._meter.start if self._meter else 0.0
        fresh = self._meter.done if self._meter else 0
        rate = f" ({fresh / seconds:.3g} images/s)" if fresh and seconds else ""
        print(
            f"\n{counts['scored']} images scored{rate}, {counts['failed']} skipped, {counts['ignored']} files ignored; "
            "the most anomalous:"
        )
        for score, _, path in worst:
            print(f"  {score:.4f}  {printable(path)}")
        if counts["anomalous"] or counts["normal"]:
            undecided = f", {counts['undecided']} without a decision" if counts["undecided"] else ""
            print(f"decisions: {counts['anomalous']} anomalous, {counts['normal']} normal{undecided}")
        if failures:
            more = f", the first {len(failures)} of {counts['failed']}" if counts["failed"] > len(failures) else ""
            print(f"skipped{more}:")
            print("\n".join(failures))
        print(f"\nscores: {table}\nrun folder: {folder}", flush=True)

    def exit_status(self, fail_on_anomaly: bool = False) -> int:
        """Returns the exit status of ``vlad predict``.

        0: all images were scored; 1: none was; 4: one is anomalous, where that is asked for; 3: some have an error.
        """
        if not self.counts["scored"]:
            return 1
        if fail_on_anomaly and self.counts["anomalous"]:
            return 4
        return 3 if self.counts["failed"] else 0


def row_keys(frame: pd.DataFrame) -> list[str]:
    """Returns a key for each image of an index that does not depend on the working directory."""
    absolute = {path: os.path.abspath(path) for path in frame["image_path"].unique()}
    columns = (frame[name].tolist() for name in ("image_path", "frame", "row_crop", "dataset", "category", "image_id"))
    return [
        "\0".join((absolute[path], str(page), *rest)).encode(errors="backslashreplace").decode()
        for path, page, *rest in zip(*columns, strict=True)
    ]


def _stat(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _state(path: str, before: FileState) -> FileState:
    """Returns how a file is now; it is hashed only where its time of change says that it may have changed."""
    size, mtime_ns = _stat(path)
    if (size, mtime_ns) == (before.size, before.mtime_ns):
        return before
    if size == before.size:  # touched or copied: the content decides
        try:
            if file_digest(path) == before.digest:
                return before
        except DataError:
            pass
    return FileState(size, mtime_ns, "", True)
