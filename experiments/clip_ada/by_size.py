"""Pixel AP by the size of defects, before and after refinement: what closer looks are for.

    python experiments/clip_ada/by_size.py RUN [RUN ...] [--test synthetic] [--root DATA]

Takes trained runs of a method that refines its maps, those of several seeds for instance. Defects are parted into
thirds by their share of the image; a third's pixel AP is over its images and all normal ones, per category, then
the mean of the categories, then of the runs. The sets need masks.
"""

import argparse
import math
import statistics

import numpy as np
import torch

import vlad
from vlad.datamodules import AnomalyDataModule
from vlad.metrics import PixelMetrics

NAMES = ("smallest third", "middle third", "largest third", "all")


def measure(run: str, test: str, root: str | None) -> tuple[np.ndarray, list[float]]:
    """Returns pixel AP (2, 4), before and after, for the thirds and all; and the bounds of the thirds."""
    method = vlad.load(run).method
    data = AnomalyDataModule(root=root, test=test, num_workers=0).require(method.requirements)
    data.setup("test")
    loader = data.test_dataloader()
    overlaps = torch.cat([batch["mask"].float().mean((1, 2)) for batch in loader])
    bounds = np.quantile(overlaps[overlaps > 0].numpy(), [1 / 3, 2 / 3])
    found: dict[tuple[str, int, int], PixelMetrics] = {}
    for batch in loader:
        with torch.no_grad():
            after = method.score(batch["image"], batch["class_name"])
        if not after.stages:
            raise SystemExit(f"{run}: this method's maps are not refined")
        for i, category in enumerate(batch["category"]):
            mask = batch["mask"][i]
            share = float(mask.float().mean())
            thirds = [int((share > bounds).sum()), 3] if share else range(4)
            for part, prediction in enumerate((after.stages["initial"], after)):
                for third in thirds:
                    key = (category, part, third)
                    found.setdefault(key, PixelMetrics()).update(prediction.anomaly_map[i], mask)
    scores: dict[tuple[int, int], list[float]] = {}
    for (_, part, third), metric in found.items():
        if metric.regions:
            scores.setdefault((part, third), []).append(metric.result().ap)
    return np.array(
        [[statistics.fmean(scores.get((part, third), [math.nan])) for third in range(4)] for part in range(2)]
    ), bounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--test", default="synthetic")
    parser.add_argument("--root")
    options = parser.parse_args()
    measured = [measure(run, options.test, options.root) for run in options.runs]
    values = 100 * np.stack([scores for scores, _ in measured])
    low, high = (100 * bound for bound in measured[0][1])
    limits = (f"below {low:.1f} %", f"to {high:.1f} %", "above", "")
    print("| defects | share of the image | before | after |\n|---|---|---|---|")
    for third, name in enumerate(NAMES):
        cells = [f"{v[:, third].mean():.1f}" + (f" ± {v[:, third].std(ddof=1):.1f}" if len(v) > 1 else "")
                 for v in (values[:, 0], values[:, 1])]  # fmt: skip
        print(f"| {name} | {limits[third]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
