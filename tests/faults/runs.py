"""Whole runs of the command line: hostile names, kills, a full disk. Forked from a process that has imported all."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import random
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from faults.hostile import HOSTILE
from faults.judge import WrongError
from PIL import Image

__all__ = ["full_disk", "hostile_runs", "kill_prediction", "kill_rendering", "run_vlad", "small_disk"]

TINY = ["--model", "sdp", "--model.backbone", "vlad-tiny", "--model.image_size", "32", "--data.num_workers", "0",
        "--trainer.enable_progress_bar", "false", "--data.batch_size", "4", "--heatmaps.height", "32"]  # fmt: skip


def run_vlad(*arguments: str) -> tuple[int, str]:
    """Runs the command in this process; returns its status and all that it wrote."""
    from vlad.cli import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            status = main(list(arguments))
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, text.getvalue()


def _require(holds: object, what: str) -> None:
    if not holds:
        raise WrongError(what)


def write_images(folder: Path, count: int) -> None:
    """Writes small images of noise, the last of which is damaged."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(draw.integers(0, 255, (24, 30, 3), np.uint8)).save(folder / f"{number:03}.png")
    (folder / f"{count:03}.png").write_bytes(b"\x89PNG\r\n\x1a\n")


# -- names -------------------------------------------------------------------------------------------------------


def hostile_runs(folder: Path, names: list[str] = HOSTILE) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yields runs over data whose files, data sets, categories and ids have hostile names."""

    def files() -> None:
        """File names: each is a row of one line that leads back to the file; nothing is written elsewhere."""
        place = folder / "files" / "images"
        place.mkdir(parents=True)
        for number, name in enumerate(names):
            with contextlib.suppress(OSError, ValueError):  # what the file system does not take
                pixels = np.random.default_rng(number).integers(0, 255, (24, 30, 3), np.uint8)
                path = os.fsencode(place) + b"/" + name.replace("/", "_").encode(errors="surrogateescape") + b".png"
                with open(path, "wb") as file:
                    Image.fromarray(pixels).save(file, "PNG")
        expected = [name for name in os.listdir(place) if not name.startswith(".")]
        _check_run(place.parent, "predict", [str(place)], len(expected))

    def table(verb: str) -> Callable[[], None]:
        def case() -> None:
            import json

            place = folder / verb
            place.mkdir(parents=True)
            rows = []
            for number, name in enumerate(one for one in names if "\0" not in one):
                for label in (0, 1):
                    file = f"{number}_{label}.png"
                    pixels = np.random.default_rng(2 * number + label).integers(0, 255, (24, 30, 3), np.uint8)
                    Image.fromarray(pixels).save(place / file)
                    row = dict.fromkeys(("dataset", "category", "class_name", "defect_type"), name or "x")
                    rows.append({**row, "image_path": file, "image_id": f"{number}/{label}{name}", "label": label})
            (place / "table.json").write_text(json.dumps(rows))
            data = [str(place / "table.json")]
            _check_run(place, verb, data if verb == "predict" else ["--data.test", *data], len(rows))

        return case

    yield "files", files
    yield "table to predict", table("predict")
    yield "table to test", table("test")


def _check_run(place: Path, verb: str, data: list[str], count: int) -> None:
    from vlad.table import plain_text

    beside = {path.name for path in (*place.iterdir(), *place.parent.iterdir())}
    status, text = run_vlad(verb, *data, *TINY, "--output", str(place / "out"), "--maps", "npy")
    _require(status == 0, f"status {status}: {text[-300:]}")
    _require("\x1b" not in text and "\r" not in text, "escape codes on the terminal")
    table = place / "out" / ("predictions.csv" if verb == "predict" else "test_scores.csv")
    content = table.read_bytes()
    _require(content.count(b"\n") == count + 1, f"{content.count(bytes([10]))} lines for {count} images")
    _require(not set(content) & (set(range(32)) - {10}), "control characters in the table")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    _require(all(os.path.lexists(plain_text(row["path"])) for row in rows), "a path of the table leads nowhere")
    cells = [cell for row in rows for cell in row.values() if cell]
    _require(not any(cell[0] in "=@" for cell in cells), "a cell that a spreadsheet computes")
    for kind, suffix in (("heatmaps", "png"), ("maps", "npy")):
        found = [path for path in (place / "out" / kind).rglob(f"*.{suffix}") if path.is_file()]
        _require(len(found) == count, f"{len(found)} {kind} for {count} images")
    left = {path.name for path in (*place.iterdir(), *place.parent.iterdir())} - beside - {"out"}
    _require(not left, f"written elsewhere: {left}")


# -- kills -------------------------------------------------------------------------------------------------------


def _forked(work: Callable[[], object], log: Path) -> int:
    """Starts work in a child process; returns its number."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:  # the child never comes back
        os.setpgid(0, 0)
        with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                result = work()
                status = result if isinstance(result, int) else 0
            except BaseException:
                traceback.print_exc(file=file)
    finally:
        os._exit(status)


def _wait(child: int, seconds: float) -> int:
    """Waits for a child; returns its exit status, minus the signal that ended it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise WrongError(f"no end after {seconds} s")


def _tree(folder: Path) -> dict[str, bytes]:
    kept = ("predictions.csv", "heatmaps", "maps")
    files = [
        path for name in kept for path in ((folder / name).rglob("*") if (folder / name).is_dir() else [folder / name])
    ]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}


def kill_prediction(folder: Path, seed: int, images: int = 12) -> None:
    """Kills a prediction at a random moment and continues it: table, heat maps and maps are those of a whole run.

    The whole run is made once per folder, with its duration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, whole = folder / "log.txt", folder / "whole"
    arguments = ["predict", str(folder / "images"), *TINY, "--maps", "npy", "--decision", "0.5"]

    def run(output: Path) -> Callable[[], object]:
        from vlad.cli import main

        return lambda: main([*arguments, "--output", str(output)])

    if not whole.exists():
        write_images(folder / "images", images)
        began = time.monotonic()
        _require(_wait(_forked(run(whole), log), 120) == 3, "the whole run did not end with 3")
        (folder / "seconds").write_text(str(time.monotonic() - began))
    out = folder / f"out{seed}"
    child = _forked(run(out), log)
    time.sleep(random.Random(seed).random() * 1.1 * float((folder / "seconds").read_text()))
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _wait(child, 10)
    for path in out.rglob(".*.part"):
        os.utime(path, (0, 0))  # as if it lay there for a while
    status = _wait(_forked(run(out), log), 120)
    _require(status == 3, f"the continued run ended with {status}: {log.read_text()[-400:]}")
    mine, theirs = _tree(out), _tree(whole)
    differ = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
    _require(not [name for name in differ if not name.startswith("heatmaps/contact")], f"other files: {differ[:4]}")
    left = [path.name for path in out.rglob("*") if path.name.endswith(".part")]
    _require(not left, f"left: {left}")
    shutil.rmtree(out)


def kill_rendering(cache: Path, seed: int) -> None:
    """Kills the rendering of a data set at a random moment: it is not there, and the next one cleans up."""
    from vlad.rendered import benchmark

    cache.mkdir(parents=True, exist_ok=True)
    samples = list(benchmark._samples("synthetic"))[::40]
    real, benchmark._samples = benchmark._samples, lambda name: iter(samples)
    try:
        child = _forked(lambda: benchmark.render_dataset("synthetic", cache) and 0, cache.parent / "log.txt")
        time.sleep(random.Random(seed).random() * 0.5)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _wait(child, 10)
        target = cache / f"synthetic-v{benchmark.VERSION}"
        _require(not target.exists() or benchmark.is_intact(target), "half a data set")
        for path in cache.glob(".*.part"):
            os.utime(path, (0, 0))
        shutil.rmtree(target, ignore_errors=True)
        benchmark._intact.clear()
        with contextlib.redirect_stderr(io.StringIO()):
            found = benchmark.render_dataset("synthetic", cache)
        _require(benchmark.is_intact(found), "the second rendering is not whole")
        _require(sorted(path.name for path in cache.iterdir()) == [found.name], f"left: {sorted(cache.iterdir())}")
        shutil.rmtree(found)
    finally:
        benchmark._samples = real
        benchmark._intact.clear()


# -- a full disk -------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path | None]:
    """Yields a folder that is a file system of that size; None where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(folder: Path, disk: Path, seed: int) -> None:
    """Fills the disk before a prediction: one line tells it, and with room again the run goes on to the same table."""
    draw = random.Random(seed)
    whole, log = folder / "whole", folder / "log.txt"
    arguments = [
        "predict",
        str(folder / "images"),
        *TINY,
        "--maps",
        "npy",
        *(["--decision", "0.5"] if seed % 2 else []),
    ]
    if not (folder / "images").exists():
        write_images(folder / "images", 12)
    whole = folder / f"whole{seed % 2}"
    if not whole.exists():
        status, text = run_vlad(*arguments, "--output", str(whole))
        _require(status == 3, f"status {status} of a whole run: {text[-300:]}")
    out = disk / "out"
    room = draw.randrange(0, 120_000)
    status = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - room)))
    status, text = run_vlad(*arguments, "--output", str(out))
    log.write_text(text)
    _require("Traceback" not in text, f"a traceback: {text[-300:]}")
    if status != 3:
        last = text.strip().splitlines()[-1]
        _require(status == 1 and "No space left" in last and "free some space" in last, f"status {status}: {last}")
    (disk / "filler").unlink()
    status, text = run_vlad(*arguments, "--output", str(out))
    _require(status == 3, f"with room again: status {status}: {text[-300:]}")
    mine, theirs = _tree(out), _tree(whole)
    _require(mine.get("predictions.csv") == theirs["predictions.csv"], "another table")
    _require(set(mine) == set(theirs), f"other files: {sorted(set(mine) ^ set(theirs))[:4]}")
    _require(not [path for path in out.rglob("*") if path.name.endswith(".part")], "left-overs")
    shutil.rmtree(out)
