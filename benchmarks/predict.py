"""Where the time of `vlad predict` goes: start, decoding, scoring, drawing, writing.

    python benchmarks/predict.py IMAGES [--model sdp] [--backbone vlad-tiny] [--image-size 96] [--starts 3]

Each line is a process of its own: the same command on one image (what starting costs, beside what importing torch and
open_clip alone costs; in turn, the least of some), on all images without heat maps and report, with heat maps, with
both. CPU seconds are of the process and its workers. Decoding is the data set read through by itself, and scoring the
method on the same batches, in this process.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import vlad
from vlad.datamodules import AnomalyDataModule


def command(*words: str) -> tuple[float, float]:
    """Runs `vlad predict` in an empty folder; returns its CPU and wall seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        words = ("predict", *words, "--output", f"{folder}/out", "--trainer.enable_progress_bar", "false")
        subprocess.run([sys.executable, "-m", "vlad", *words], cwd=folder, check=True, capture_output=True)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def imports(code: str) -> tuple[float, float]:
    """Returns the CPU and wall seconds of a process that imports something."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", default="sdp")
    parser.add_argument("--backbone", default="vlad-tiny")
    parser.add_argument("--image-size", default="96")
    parser.add_argument("--starts", type=int, default=3, metavar="N")
    options = parser.parse_args()
    images = str(options.images.resolve())
    one = next(path for path in sorted(options.images.resolve().rglob("*")) if path.suffix.lower() in {".png", ".jpg"})
    model = ["--model", options.model, "--model.backbone", options.backbone, "--model.image_size", options.image_size]
    bare = ["--heatmaps.enabled", "false", "--report.enabled", "false"]

    turns = [(imports("import torch, open_clip"), command(str(one), *model)) for _ in range(options.starts)]
    reference, start = (min(times) for times in zip(*turns, strict=True))
    lines = {"all images, no heat maps, no report": command(images, *model, *bare)}
    lines["with heat maps"] = command(images, *model, "--report.enabled", "false")
    lines["with heat maps and report"] = command(images, *model)

    method = vlad.load(options.model, backbone=options.backbone, image_size=int(options.image_size)).method
    data = AnomalyDataModule(predict=images, num_workers=0).require(method.requirements)
    data.setup("predict")
    began = time.process_time()
    batches = list(data.predict_dataloader())
    decoding = time.process_time() - began
    began = time.process_time()
    with torch.inference_mode():
        for batch in batches:
            method.score(batch["image"], batch["class_name"])
    scoring = time.process_time() - began

    count = sum(len(batch["image"]) for batch in batches)
    print(f"{count} images, {options.model} on {options.backbone}, {options.image_size} px\n")
    print("| what | CPU s | wall s |\n|---|---|---|")
    print(f"| import torch, open_clip | {reference[0]:.2f} | {reference[1]:.2f} |")
    print(f"| one image | {start[0]:.2f} ({start[0] / reference[0]:.2f} x the imports) | {start[1]:.2f} |")
    for name, (cpu, wall) in lines.items():
        print(f"| {name} | {cpu:.2f} | {wall:.2f} |")
    print(f"| of these: decoding and resizing | {decoding:.2f} ({1000 * decoding / count:.1f} ms an image) | |")
    print(f"| of these: scoring | {scoring:.2f} ({1000 * scoring / count:.1f} ms an image) | |")


if __name__ == "__main__":
    main()
