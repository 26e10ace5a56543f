"""Sends SIGTERM and SIGINT to every verb at start-up, while it imports and while it works, and prints what happens.

    python experiments/signals.py --delays 0.5 3 --verbs fit predict

Columns: verb, signal, when it was sent, seconds until the command and all its workers had ended, exit status, last
line, and how many checkpoints, rows and files the run folder holds. Expected: status 143 or 130 within seconds,
one line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

TINY = ["--model.backbone", "vlad-tiny", "--trainer.enable_progress_bar", "false", "--allow-overlap"]
FIT = [
    "fit",
    "--model",
    "sdp_plus",
    *TINY,
    "--data.train",
    "images/",
    "--trainer.max_epochs",
    "100000",
    "--output",
    "out",
]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
TEST = ["--model", "sdp", *TINY, "--data.batch_size", "1", "--output", "out"]
COMMANDS = {
    "fit": FIT,
    "fit, validating": [*FIT, "--data.val", "{name: images/, split: all}", "--data.images_per_category", "2"],
    "fit, 2 processes": [*FIT, *TWO],
    "validate": ["validate", *TEST, "--data.val", "{name: images/, split: all}"],
    "test": ["test", *TEST, "--data.test", "images/"],
    "test, 2 processes": ["test", *TEST, "--data.test", "images/", *TWO],
    "predict": ["predict", "images", *TEST, "--heatmaps.enabled", "false"],
    "predict, heat maps": ["predict", "images", *TEST],
    "predict, 2 processes": ["predict", "images", *TEST, *TWO],
    "test, rendering": ["test", *TEST, "--data.test", "synthetic"],
    "calibrate": ["calibrate", "sdp", "images/good", "-o", "out/decision.json", "--model.backbone", "vlad-tiny"],
    "data check": ["data", "check", "images"],
    "data index": ["data", "index", "images", "-o", "out/table.csv"],
    "data get": ["data", "get", "synthetic", "--root", "out/data"],
    "methods": ["methods"],
}  # fmt: skip


def write_images(folder: Path, count: int) -> None:
    """Writes normal and anomalous images with masks."""
    draw = np.random.default_rng(0)
    for number in range(count):
        kind = "bad" if number % 2 else "good"
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(draw.integers(90, 160, (96, 96, 3), np.uint8)).save(folder / kind / f"{number:04}.png")
        if number % 2:
            Image.new("L", (96, 96), 255).save(folder / "masks" / f"{number:04}.png")


def left_running(group: int) -> int:
    """Returns how many processes of a group there are."""
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found += fields[2] == str(group) and fields[0] != "Z"
    return found


def attempt(work: Path, arguments: list[str], number: int, delay: float) -> str:
    """Runs a command, sends a signal after so many seconds of it (of its work, if negative), and describes the end."""
    shutil.rmtree(work / "out", ignore_errors=True)
    environment = {**os.environ, "VLAD_CACHE": str(work / "cache")}
    shutil.rmtree(work / "cache", ignore_errors=True)
    run = subprocess.Popen([sys.executable, "-m", "vlad", *arguments], cwd=work, env=environment, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    if delay < 0:
        end = time.monotonic() + 120
        while run.poll() is None and time.monotonic() < end and not (work / "out/run.json").is_file():
            time.sleep(0.05)
    time.sleep(abs(delay))
    if run.poll() is not None:
        return f"had ended already with {run.returncode}: {(run.stdout.read().strip().splitlines() or [''])[-1][:60]}"
    run.send_signal(number)
    began = time.monotonic()
    try:
        output = run.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        return "HANGS"
    took = time.monotonic() - began
    while left_running(run.pid) and time.monotonic() - began < 20:
        time.sleep(0.05)
    gone = time.monotonic() - began
    orphans = left_running(run.pid)
    checkpoints = len(list((work / "out").glob("checkpoints/*.ckpt")))
    rows = sum(file.read_bytes().count(b"\n") for file in (work / "out").glob("parts/rows*.jsonl"))
    files = sum(path.is_file() for path in (work / "out").rglob("*"))
    last = (output.strip().splitlines() or [""])[-1]
    trace = " TRACEBACK" if "Traceback" in output else ""
    left = f"{checkpoints} checkpoints, {rows} rows, {files} files"
    return (
        f"{took:4.1f} s ({gone:4.1f}) | {run.returncode} | {last[:60]}{trace} | {left}"
        + f" | {orphans} ORPHANS" * bool(orphans)
    )


def main() -> int:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verbs", nargs="+", default=list(COMMANDS))
    parser.add_argument(
        "--delays", nargs="+", type=float, default=[0.3, 2.0, -2.0], help="negative: after the run's start"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    work = Path(tempfile.mkdtemp(prefix="signals_"))
    write_images(work / "images", 400)
    for name in options.verbs:
        for number in (signal.SIGTERM, signal.SIGINT):
            for delay in options.delays:
                when = f"{delay} s" if delay > 0 else f"run + {-delay} s"
                found = attempt(work, COMMANDS[name], number, delay)
                print(f"{name} | {number.name} | {when} | {found}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
