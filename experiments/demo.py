"""The main job from end to end, on pictures made here with a CLIP of random weights.

    make demo

It draws little parts with and without defects, trains SDP+ on two kinds, tests it on two others, and scores a
bare folder without any training. The weights are random: everything runs as in life, the scores mean nothing.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlad.testing import tiny_clip

ROOT = Path("demo")
SIDE = 160
SHAPES = {
    "disc": lambda d, c: d.ellipse((30, 30, 130, 130), fill=c),
    "plate": lambda d, c: d.rounded_rectangle((25, 45, 135, 115), 12, fill=c),
    "ring": lambda d, c: d.ellipse((28, 28, 132, 132), outline=c, width=26),
    "bar": lambda d, c: d.polygon([(35, 120), (110, 25), (130, 45), (55, 140)], fill=c),
}


def draw(shape: str, rng: np.random.Generator, *, defect: bool) -> tuple[Image.Image, Image.Image]:
    """Draws one part, and the mask of its defect."""
    base = np.full((SIDE, SIDE, 3), rng.integers(20, 60), dtype=float)
    image = Image.fromarray(np.clip(base + rng.normal(0, 5, base.shape), 0, 255).astype(np.uint8))
    color = tuple(int(c) for c in rng.integers(120, 210, 3))
    SHAPES[shape](ImageDraw.Draw(image), color)
    mask = Image.new("L", (SIDE, SIDE), 0)
    if defect:
        x, y = rng.integers(45, 105, 2).tolist()
        dark, scratch = tuple(int(c) for c in rng.integers(0, 90, 3)), rng.random() < 0.5
        for target, ink in ((ImageDraw.Draw(image), dark), (ImageDraw.Draw(mask), 255)):
            if scratch:
                target.line((x, y, x + 35, y + 12), fill=ink, width=5)
            else:
                target.ellipse((x, y, x + 18, y + 14), fill=ink)
    angle = float(rng.uniform(0, 360))
    image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=(40, 40, 40)).filter(ImageFilter.GaussianBlur(0.6))
    return image, mask.rotate(angle)


def make_pictures() -> None:
    for number, shape in enumerate(SHAPES):
        rng = np.random.default_rng(number)
        for kind in ("good", "bad"):
            (ROOT / "data" / shape / kind).mkdir(parents=True, exist_ok=True)
            (ROOT / "data" / shape / "masks").mkdir(exist_ok=True)
            for i in range(12):
                image, mask = draw(shape, rng, defect=kind == "bad")
                image.save(ROOT / "data" / shape / kind / f"{kind}_{i:02}.png")
                if kind == "bad":
                    mask.save(ROOT / "data" / shape / "masks" / f"{kind}_{i:02}.png")


def vlad(command: str) -> None:
    """Runs a vlad command as a user would, showing it first."""
    print(f"\n$ vlad {command}", flush=True)
    subprocess.run([sys.executable, "-m", "vlad", *shlex.split(command)], check=True)


def newest(method: str) -> Path:
    return max((ROOT / "runs" / method).iterdir(), key=lambda run: run.stat().st_mtime)


def main() -> None:
    print("drawing parts with and without defects, and making a small CLIP with random weights …", flush=True)
    make_pictures()
    clip = tiny_clip(ROOT / "clip")
    common = f"--trainer.default_root_dir {ROOT}/runs"
    model = f"--model.backbone {clip} --model.image_size 64 --model.layers [1,2,3,4]"
    data = f"{ROOT}/data"
    vlad(f"fit --model sdp_plus {model} {common} --data.train '[{data}/disc, {data}/plate]'")
    vlad(f"test --ckpt_path {newest('sdp_plus')} {common} --data.test '[{data}/ring, {data}/bar]'")
    tested = newest("sdp_plus")
    vlad(f"predict {data}/ring/bad {data}/ring/good --model sdp {model} {common} --data.class_name ring")
    print(
        f"""
The whole road ran: training on disc and plate, testing on ring and bar, and scoring a bare folder.
The CLIP had RANDOM WEIGHTS, so the scores above mean nothing.

  table       {tested}/test_metrics.csv
  heat maps   {tested}/heatmaps/
  own folder  {newest("sdp")}/predictions.csv

Next, with real CLIP weights (downloaded on first use):
  .venv/bin/vlad predict YOUR_PHOTOS/ --model sdp --data.class_name "metal part"
  .venv/bin/vlad test --model sdp --data.root DATA --data.test mvtec_ad"""
    )


if __name__ == "__main__":
    main()
