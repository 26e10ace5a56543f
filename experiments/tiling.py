"""Small defects in large images, scored as one and by tiles: trays of rendered parts, SDP on vlad-tiny.

    python experiments/tiling.py                      # 4000 x 4000 px, 2 images
    python experiments/tiling.py --side 1000 --images 1

Each image shows parts of 250 px side by side, eight of them with a defect. The table tells pixel AP and AUROC at the
images' own size, without references and with a corner of 1000 px of another tray, all of it good; CPU seconds an image;
and the peak memory of the process beside what it held before the first image. Each line is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch

import vlad
from vlad.metrics import PixelMetrics
from vlad.rendered.scene import Look, render

PART = 250
LOOKS = [Look("gear", "striped", "teal"), Look("nut", "brushed", "grey")]
DEFECTS = ("hole", "crack", "contamination", "stain")
TILES = (0, 500, 250)


def trays(count: int, side: int, defective: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns images (side, side, 3), uint8, and masks (side, side), bool; those without defects show other parts."""
    found = []
    for number in range(count):
        look = LOOKS[number % len(LOOKS)]
        first = 0 if defective else 50
        pool = [render(look, seed=(number, first + seed), size=PART).image for seed in range(12)]
        draw = np.random.default_rng(number)
        cells = side // PART
        image = np.full((side, side, 3), 60, np.uint8)
        mask = np.zeros((side, side), bool)
        chosen = draw.choice(cells * cells, defective, replace=False).tolist()
        for cell in range(cells * cells):
            top, left = (PART * place for place in divmod(cell, cells))
            part = pool[draw.integers(len(pool))]
            if cell in chosen:
                kind = DEFECTS[chosen.index(cell) % len(DEFECTS)]
                part, defect = render(look, kind, seed=(number, 100 + cell), size=PART)
                mask[top : top + PART, left : left + PART] = defect
            image[top : top + PART, left : left + PART] = part
        found.append((image, mask))
    return found


def measure(tile: int, side: int, count: int, referenced: bool) -> dict[str, float]:
    """Scores defective trays at one setting."""
    images = trays(count, side, min(8, (side // PART) ** 2 // 2))
    good = [image[:1000, :1000].copy() for image, _ in trays(count, side, 0)]
    options = {"tile": tile} if tile else {}
    detector = vlad.load("sdp", backbone="vlad-tiny", image_size=128, sigma=3.0, **options)
    detector.predict(np.zeros((64, 64, 3), np.uint8))  # texts and threads are there
    before = peak()
    metric = PixelMetrics()
    spent, most = 0.0, 0.0
    for (image, mask), reference in zip(images, good, strict=True):
        if referenced:
            detector.fit_references([reference])
        start = time.process_time()
        values = detector.predict(image).map
        spent += time.process_time() - start
        most = most or peak()  # ahead of the metric's own memory
        metric.update(torch.from_numpy(values)[None], torch.from_numpy(mask)[None])
    metric.compute()
    found = metric.result()
    share = float(np.mean([mask.mean() for _, mask in images]))
    return {"ap": found.ap, "auroc": found.auroc, "seconds": spent / count, "mib": most - before, "share": share}


def peak() -> float:
    """Returns the most MiB that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4000)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--tile", type=int, help="measure one setting and print it as JSON; 0 for none")
    parser.add_argument("--referenced", action="store_true", help="with --tile: compare with a good tray")
    options = parser.parse_args()
    if options.tile is not None:
        print(json.dumps(measure(options.tile, options.side, options.images, options.referenced)))
        return
    print("| tile | references | pixel AP | pixel AUROC | CPU s an image | memory beside, MiB |")
    print("|---|---|---|---|---|---|")
    for referenced in (False, True):
        for tile in TILES:
            command = [sys.executable, __file__, "--side", str(options.side), "--images", str(options.images)]
            command += ["--tile", str(tile), *["--referenced"] * referenced]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            words = f"| {tile or 'none'} | {'a good tray' if referenced else 'none'} | {found['ap']:.4f}"
            print(f"{words} | {found['auroc']:.3f} | {found['seconds']:.1f} | {found['mib']:.0f} |", flush=True)
    print(f"\n{options.images} trays of {options.side} px, defective pixels: {100 * found['share']:.3f} %")


if __name__ == "__main__":
    main()
