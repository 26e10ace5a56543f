"""Runs cells: each alone, in this process or one of its own, its result a file that is whole or not there."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from vlad.benchmark.plan import Cell
from vlad.errors import VladError
from vlad.files import open_plain, output_errors, write_json, write_text

__all__ = ["result_file", "run_cells", "worthwhile"]

_STOPPED = {130, 143}  # Ctrl+C, SIGTERM
_QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def result_file(folder: Path, cell: Cell) -> Path:
    """Returns where the result of a cell is, once it is finished."""
    return folder / "results" / f"{cell.key}.json"


def worthwhile(cells: Sequence[Cell]) -> tuple[list[Cell], list[str]]:
    """Leaves out cells that would be another cell again: without training and references nothing is drawn.

    Returns:
        The cells that are left, and sentences on those that are not.
    """
    kept: list[Cell] = []
    told: dict[str, None] = {}
    for cell in cells:
        same = ((one.name, one.dataset, one.shots) == (cell.name, cell.dataset, 0) for one in kept)
        if not cell.shots and not cell.fits and any(same):
            told[f"{cell.name} draws nothing at random with 0 shots: one seed is enough"] = None
        else:
            kept.append(cell)
    return kept, list(told)


def run_cells(cells: Sequence[Cell], folder: Path) -> int:
    """Runs what is not finished; several processes may share the folder.

    Args:
        cells: The cells.
        folder: Of results, runs and logs.

    Returns:
        Exit status: 0, 1 where a cell failed, 130 or 143 where the process was stopped.
    """
    failed = 0
    for number, cell in enumerate(cells, 1):
        if result_file(folder, cell).is_file():
            continue
        with _claimed(folder / "locks" / f"{cell.fit_key or cell.key}.lock") as mine:
            if not mine:
                print(f"{number}/{len(cells)} {cell.key}: another process is at it", flush=True)
                continue
            if result_file(folder, cell).is_file():  # it has just finished there
                continue
            print(f"{number}/{len(cells)} {cell.key}", flush=True)
            status = _run_cell(cell, folder)
        if status in _STOPPED:
            return status
        if status:
            failed += 1
            log = folder / "logs" / f"{cell.key}.log"
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            print(f"  failed: {lines[-1] if lines else ''} ({log})", file=sys.stderr, flush=True)
    return int(failed > 0)


@contextmanager
def _claimed(lock: Path) -> Iterator[bool]:
    """Takes a lock that ends with the process, however it ends; gives whether it was free."""
    with output_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_plain(lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _run_cell(cell: Cell, folder: Path) -> int:
    """Trains where that is needed and not done, tests, and writes the result."""
    seconds: dict[str, float] = {}
    checkpoint = cell.checkpoint
    if cell.fits:
        fit = folder / "fits" / cell.fit_key
        done = fit.with_suffix(".json")
        if not done.is_file():  # another cell may have trained it
            shutil.rmtree(fit, ignore_errors=True)
            begin = time.monotonic()
            status = _vlad(cell, "fit", folder, fit)
            if status:
                return status
            write_json(done, {"seconds": round(time.monotonic() - begin, 1)})
        seconds["fit"] = json.loads(done.read_text(encoding="utf-8"))["seconds"]
        checkpoint = str(fit)
    run = folder / "runs" / cell.key
    shutil.rmtree(run, ignore_errors=True)
    begin = time.monotonic()
    status = _vlad(cell, "test", folder, run, checkpoint)
    if status:
        return status
    seconds["test"] = round(time.monotonic() - begin, 1)
    found = json.loads((run / "test_metrics.json").read_text(encoding="utf-8"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    write_json(
        result_file(folder, cell),
        {
            **cell.describe(),
            "mean": found["mean"],
            "categories": found["categories"],
            "stages": {name: stage["mean"] for name, stage in found.get("stages", {}).items()},
            "seconds": seconds,
            "run": os.path.relpath(run, folder),
            "about": {name: record.get(name) for name in ("method", "device", "packages", "ended")},
        },
    )
    return 0


def _vlad(cell: Cell, verb: str, folder: Path, run: Path, checkpoint: str = "") -> int:
    """Runs a verb with the cell's config; what it says goes to the cell's log."""
    import yaml

    chosen = cell.fit_config if verb == "fit" else cell.config
    config = {"heatmaps": {"enabled": False}, "report": {"enabled": False}, **chosen}
    trainer = {"devices": 1, **config.get("trainer", {})}
    config["trainer"] = trainer
    file = write_text(folder / "configs" / f"{cell.key}.yaml", yaml.safe_dump(config, sort_keys=False))
    arguments = [verb, "--config", str(file), "--output", str(run), *_QUIET]
    arguments += ["--ckpt_path", checkpoint] if checkpoint else []
    log = folder / "logs" / f"{cell.key}.log"
    with output_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_plain(log, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8") as stream:
        stream.write(f"$ vlad {' '.join(arguments)}\n")
        if trainer["devices"] != 1 or trainer.get("num_nodes", 1) != 1:  # Lightning starts processes as this one
            stream.flush()
            return subprocess.run([sys.executable, "-m", "vlad", *arguments], stdout=stream, stderr=stream).returncode
        return _in_process(arguments, stream)


def _in_process(arguments: list[str], stream: Any) -> int:
    from vlad.cli import main

    try:
        with redirect_stdout(stream), redirect_stderr(stream):
            return main(arguments)
    except SystemExit as stop:  # of the parser
        return int(stop.code or 0) if isinstance(stop.code, int | None) else 1
    except VladError:
        raise
    except Exception:  # one cell's defect is not to cost the others their turn
        traceback.print_exc(file=stream)
        return 1
    finally:
        gc.collect()
