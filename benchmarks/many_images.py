"""Images a second and memory of `vlad predict` or `vlad test` over many small images.

    python benchmarks/many_images.py --images 100000
    python benchmarks/many_images.py --images 20000 --verb test --heatmaps

Prints the resident memory of the process, and of it and its loaders together, at 10, 50 and 100 % of the rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, count: int, *, labelled: bool) -> None:
    """Writes JPEGs of 32 x 32 pixels of noise, a thousand in a sub-folder; or half of them anomalous, with masks."""
    draw = np.random.default_rng(0)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 8:20] = 255
    for number in range(count):
        kind = ("good", "bad")[number % 2]
        place = folder / "test" / kind if labelled else folder / f"{number // 1000:03}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), np.uint8)).save(place / f"{number:06}.jpg")
        if labelled and kind == "bad":
            masks = folder / "ground_truth" / kind
            masks.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(masks / f"{number:06}_mask.png")


def memory(process: int) -> tuple[int, int]:
    """Returns the resident MiB of a process, and the proportional MiB of it and its children together."""

    def of(number: int) -> tuple[int, int]:
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        except OSError:
            return 0, 0
        values = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if line.endswith("kB")}
        return values.get("Rss", 0), values.get("Pss", 0)

    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        children = []
    own = of(process)
    return own[0], own[1] + sum(of(int(child))[1] for child in children)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--heatmaps", action="store_true")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--verb", choices=["predict", "test"], default="predict")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="many_images_"))
    labelled = options.verb == "test"
    write_images(work / "images", options.images, labelled=labelled)
    print(f"{options.images} images written", flush=True)
    data = ["--data.test", "images"] if labelled else ["images"]
    command = [sys.executable, "-m", "vlad", options.verb, *data, "--output", "out", "--model", "sdp"]
    command += ["--model.backbone", "vlad-tiny", "--data.batch_size", "64", "--data.num_workers", str(options.workers)]
    command += ["--model.image_size", str(options.image_size)]
    command += ["--heatmaps.enabled", str(options.heatmaps).lower(), "--heatmaps.height", "16"]
    rows_of = "previews/journal-*.jsonl" if labelled else "rows*.jsonl"
    began = time.monotonic()
    with open(work / "log.txt", "wb") as log:
        run = subprocess.Popen(command, cwd=work, stdout=log, stderr=log)
    marks = [0.02, 0.1, 0.25, 0.5, 0.75, 1.0]
    offsets: dict[Path, tuple[int, int]] = {}
    last = (0, 0)
    most = 0
    while run.poll() is None:
        time.sleep(0.5)
        rows = 0
        for file in (work / "out" / "parts").glob(rows_of):
            place, count = offsets.get(file, (0, 0))
            with file.open("rb") as opened:
                opened.seek(place)
                content = opened.read()
            offsets[file] = (place + len(content), count + content.count(b"\n"))
            rows = max(rows, offsets[file][1])
        last = memory(run.pid) if run.poll() is None else last
        most = max(most, last[0])
        while marks and rows >= marks[0] * options.images:
            print(f"{marks.pop(0):4.0%}: {rows} rows, {time.monotonic() - began:.0f} s, RSS {last[0]} MiB, "
                  f"with loaders {last[1]} MiB", flush=True)  # fmt: skip
    print(f"status {run.returncode}, {time.monotonic() - began:.0f} s in all; at most {most} MiB")
    print((work / "log.txt").read_text()[-1500:])
    table = "test_scores.csv" if labelled else "predictions.csv"
    rows = (work / "out" / table).read_bytes().count(b"\n") - 1
    print(f"table: {rows} rows; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
