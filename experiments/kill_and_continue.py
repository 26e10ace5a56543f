"""Kills `vlad predict --output` at random moments and continues it: the table must be that of an uninterrupted run.

    python experiments/kill_and_continue.py --images 300 --kills 20 --processes 1

Prints how many rows were there after every kill, and whether the tables agree byte for byte.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

TINY = ["--model", "sdp", "--model.backbone", "vlad-tiny", "--data.class_name", "part"]


def write_images(folder: Path, count: int) -> None:
    """Writes small images of noise, some with a bright square, one that cannot be read."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        pixels = draw.integers(90, 160, (64, 80, 3), np.uint8)
        if number % 7 == 0:
            pixels[20:30, 30:44] = [250, 30, 30]
        Image.fromarray(pixels).save(folder / f"{number:05}.png")
    (folder / "broken.png").write_bytes((folder / "00000.png").read_bytes()[:300])


def start(work: Path, output: str, processes: int) -> subprocess.Popen[bytes]:
    """Starts a prediction in a process group of its own."""
    many = ["--trainer.accelerator", "cpu", "--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "vlad", "predict", "images", "--output", output, *TINY, "--data.batch_size", "4"]
    command += many if processes > 1 else []
    with open(work / "log.txt", "ab") as log:
        return subprocess.Popen(command, cwd=work, stdout=log, stderr=log, start_new_session=True)


def rows_in(folder: Path) -> int:
    """Returns how many rows are written."""
    return sum(file.read_bytes().count(b"\n") for file in (folder / "parts").glob("rows*.jsonl"))


def main() -> int:
    """Runs the experiment; returns 0 where the tables agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="kill_and_continue_"))
    write_images(work / "images", options.images)
    began = time.monotonic()
    if start(work, "whole", 1).wait() != 3:  # 3: one image cannot be read
        print((work / "log.txt").read_text())
        return 1
    seconds = time.monotonic() - began
    print(f"uninterrupted: {seconds:.1f} s, {rows_in(work / 'whole')} rows")
    draw, kills, total = random.Random(options.seed), 0, rows_in(work / "whole")
    while kills < options.kills:
        run = start(work, "killed", options.processes)
        moment = draw.uniform(0, seconds)
        try:
            run.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            kills += 1
            print(f"kill {kills} after {moment:5.1f} s: {rows_in(work / 'killed')} rows", flush=True)
        if kills == options.kills or run.returncode == 3 or rows_in(work / "killed") == total:
            status = start(work, "killed", options.processes).wait()  # nothing is left but what is to be drawn
            if compare(work, status):
                return 1
            shutil.rmtree(work / "killed")
    return 0


def compare(work: Path, status: int) -> int:
    """Returns 0 where the tables agree and as many heat maps are there."""
    one, other = ((work / name / "predictions.csv").read_bytes() for name in ("whole", "killed"))
    drawn = [sum(1 for _ in (work / name / "heatmaps").rglob("*.png")) for name in ("whole", "killed")]
    print(f"continued to the end, status {status}: tables agree byte for byte: {one == other}, "
          f"{drawn[1]} of {drawn[0]} heat maps", flush=True)  # fmt: skip
    return int(one != other or drawn[0] != drawn[1])


if __name__ == "__main__":
    sys.exit(main())
