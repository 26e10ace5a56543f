"""A watched folder: every image file that appears is scored once, by the worker that answers requests."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.datamodules.decode import read_bytes
from vlad.datamodules.image_files import IMAGE_SUFFIXES, list_files, printable
from vlad.errors import OptionError, VladError
from vlad.serve.uploads import Upload, decode
from vlad.store import RowStore

if TYPE_CHECKING:
    from concurrent.futures import Future

    from vlad.detector import Detector, Result
    from vlad.serve.worker import Worker

__all__ = ["Watch"]

_AT_ONCE = 8  # files that are in the queue, at most: those who send requests wait no longer
_TABLE = 5.0  # seconds between two writings of the table, at least

_State = tuple[int, int]
"""Size and time of change of a file."""


class Watch:
    """Scores the image files of a folder and of those below it, now and as they appear.

    A file is whole once two looks, ``interval`` seconds apart, find the same size and time of change, and it is not
    empty. What does not end like an image (``x.png.part``, ``x.tmp``) or begins with ``.`` or ``~`` is somebody's
    temporary file. Its row stays in ``parts/`` of the output folder as soon as it is scored; ``predictions.csv`` is
    written whole, every few seconds and at the end. A file is scored again where its size or time of change is
    another, in a later run too; so is one that could not be read, whose row tells why.
    """

    def __init__(
        self,
        folder: str | Path,
        output: str | Path,
        detector: Detector,
        *,
        interval: float = 0.5,
        told: Callable[[str], None] | None = None,
    ) -> None:
        """Takes the output folder.

        Args:
            folder: The folder that is watched.
            output: Where results go.
            detector: What scores.
            interval: Seconds between two looks.
            told: Is told ``scored`` or ``failed`` of each file.

        Raises:
            OptionError: There is no such folder.
            StoreError: The output folder holds other things, results that were made otherwise, or is in use.
            OutputError: It cannot be written.
        """
        from vlad.identity import scoring_identity

        self.folder, self._interval, self._told = Path(folder), interval, told
        if not self.folder.is_dir():
            raise OptionError(f"--watch {folder} is no folder")
        self.failure: VladError | None = None
        decision = detector.decision
        settings: dict[str, Any] = {
            **scoring_identity(detector.method, data=detector.data_options()),
            "decision": "" if decision is None else hashlib.sha256(repr(decision).encode()).hexdigest()[:16],
            "class_name": detector.class_name,
            "watched": True,
        }
        self._class_name, self._reading = detector.class_name, detector.reading
        self._store = RowStore(Path(output))
        if self._store.folder.is_dir():
            self._store.check(settings)
        self._store.lock()
        self._store.begin(settings)
        self._done: dict[str, _State] = {
            key: (state.size, state.mtime_ns) for key, state in self._store.states().items()
        }
        self._seen: dict[str, _State] = {}
        self._unwritten = bool(self._done)
        self._next_table = 0.0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, worker: Worker) -> None:
        """Begins to look, in a thread; where results cannot be written any more, the process is sent SIGTERM."""
        self._thread = threading.Thread(target=self._run, args=(worker,), name="vlad-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends once the files in the queue have their rows, and writes the table."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if self.failure is None:
                self._write_table()
                self._store.join()
        finally:
            self._store.close()

    # -- in the thread ---------------------------------------------------------------------------------------------

    def _run(self, worker: Worker) -> None:
        try:
            while not self._end.is_set():
                if not self.look(worker):
                    self._end.wait(self._interval)
        except VladError as error:  # the disk is full, and the like
            self.failure = error
            os.kill(os.getpid(), signal.SIGTERM)

    def look(self, worker: Worker) -> int:
        """Looks once, and scores what is whole; returns the number of files that were scored or failed."""
        seen: dict[str, _State] = {}
        for name in list_files(self.folder):
            state = self._state(name)
            if state is not None and self._done.get(self._key(name)) != state:
                seen[name] = state
        whole = [name for name, state in seen.items() if self._seen.get(name) == state]
        self._seen = seen
        for start in range(0, len(whole), _AT_ONCE):
            if self._end.is_set():
                break
            self._score(whole[start : start + _AT_ONCE], worker)
        if self._unwritten and time.monotonic() >= self._next_table:
            self._write_table()
        return len(whole)

    def _state(self, name: str) -> _State | None:
        """Returns how a file is; None for one that is nobody's image yet."""
        if Path(name).suffix.lower() not in IMAGE_SUFFIXES or Path(name).name.startswith("~"):
            return None
        try:
            status = os.stat(self.folder / name)
        except OSError:  # gone meanwhile
            return None
        return (status.st_size, status.st_mtime_ns) if status.st_size else None

    def _key(self, name: str) -> str:
        path = os.path.abspath(self.folder / name)
        return path.encode(errors="backslashreplace").decode()

    def _score(self, names: list[str], worker: Worker) -> None:
        """Scores some files together; each gets a row."""
        rows: list[dict[str, Any]] = []
        waiting: list[tuple[dict[str, Any], Future[Result]]] = []
        for name in names:
            path = str(self.folder / name)
            size, mtime_ns = self._seen[name]
            row: dict[str, Any] = {"key": self._key(name), "path": path, "image_id": printable(name), "size": size}
            row |= {"mtime_ns": mtime_ns, "digest": "", "category": self._class_name or "object"}
            row |= {"class_name": self._class_name or "object", "error": ""}
            rows.append(row)
            try:
                content = read_bytes(path)
                row["digest"] = hashlib.sha256(content).hexdigest()
                image = decode(Upload(content, path, None), self._reading)
                waiting.append((row, worker.submit(image)))
            except VladError as error:
                row["error"] = printable(str(error))
        for row, answer in waiting:
            row |= _columns(answer)
        self._store.append(rows)
        for row in rows:
            self._done[row["key"]] = (row["size"], row["mtime_ns"])
            if self._told is not None:
                self._told("failed" if row["error"] else "scored")
        self._unwritten = True

    def _write_table(self) -> None:
        start = time.monotonic()
        self._store.write_table(self._done, self._store.folder / "predictions.csv", lambda _: None)
        end = time.monotonic()
        self._next_table = end + max(_TABLE, 20 * (end - start))  # of very many rows, seldom
        self._unwritten = False


def _columns(answer: Future[Result]) -> dict[str, Any]:
    """Waits for a result; returns its cells."""
    import json

    try:
        row = answer.result().row()
    except VladError as error:
        return {"error": printable(str(error))}
    regions = row["regions"]
    names = ("image_score", "map_max", "p_value", "threshold", "decision", "anomalous_area")
    found = {name: row[name] for name in names}
    return {**found, "regions": None if regions is None else json.dumps(regions), "error": row["error"] or ""}
