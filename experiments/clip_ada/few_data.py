"""The few-data curve of CLIP-ADA: a table and a plot.

    python experiments/clip_ada/few_data.py [--out FILE.png]

Runs few_data.toml (vlad benchmark), then draws image AUROC and pixel AP over the images per category. The plot needs
matplotlib: pip install 'vlad[plot]'.
"""

import argparse
import json
import statistics
from pathlib import Path

from vlad.cli import main as vlad

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/clip_ada_few_data.png"))
    options = parser.parse_args()
    folder = options.out.with_suffix("")
    if vlad(["benchmark", str(HERE / "few_data.toml"), "--output", str(folder)]):
        raise SystemExit("not all of it could be run")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    runs = [json.loads(file.read_text()) for file in (folder / "results").glob("*.json")]
    for run in runs:
        run |= {"before": run["stages"]["initial"], "after": run["mean"]}
    counts = sorted({int(run["name"].split()[0]) for run in runs})
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for axis, (metric, title) in zip(axes, {"image_auroc": "image AUROC", "pixel_ap": "pixel AP"}.items(), strict=True):
        for part, label in (("before", "before zoom"), ("after", "after zoom")):
            values = [
                [100 * run[part][metric] for run in runs if int(run["name"].split()[0]) == count] for count in counts
            ]
            means = [statistics.fmean(v) for v in values]
            spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
            axis.errorbar(range(len(counts)), means, spread, marker="o", capsize=3, label=label)
        axis.set_xticks(range(len(counts)), [*map(str, counts[:-1]), f"{counts[-1]} (all)"])
        axis.set_xlabel("normal images per category")
        axis.set_ylabel(f"{title} in %")
        axis.grid(alpha=0.3)
    axes[1].legend(loc="center right")
    figure.savefig(options.out, dpi=110)
    print(f"plot: {options.out}")


if __name__ == "__main__":
    main()
