"""Conformal calibration measured: false alarms on held-out normal images over random splits, beside what is promised.

    python experiments/calibration.py [--splits 50] [--rates 0.2 0.1 0.05] [--out TABLE.md]

All normal images of the rendered benchmark (train and test) are scored once with sdp and vlad-tiny. Every split
calibrates on a random half of them and counts false alarms on the other half: per category, and with all categories
together under one threshold. The mean over the splits must stay below the rate that is promised plus two standard
errors; its spread is shown beside the Beta distribution's (the actual rate) and the Beta-binomial's (the rate counted
on so many held-out images).
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from vlad.datamodules.sources import Locations, Source
from vlad.decision.conformal import alarms_allowed, conformal_threshold, rate_range
from vlad.decision.scoring import score_images
from vlad.files import write_text
from vlad.registry import get_method


def normal_scores(categories: list[str] | None = None, count: int | None = None) -> dict[str, tuple[Any, Any]]:
    """Returns image scores and map maxima of the normal images of each category, ``count`` of each at most."""
    frame = Locations().index(Source("synthetic"))
    frame = frame[frame["label"] == 0]
    if categories is not None:
        frame = frame[frame["category"].isin(categories)]
    if count is not None:
        frame = frame.groupby("category", sort=False).head(count)
    frame = frame.reset_index(drop=True)
    method = get_method("sdp")(backbone="vlad-tiny", pretrained=None, image_size=96, sigma=3.0).eval()
    scored, _ = score_images(method, frame, data={"batch_size": 32, "num_workers": 0})
    assert not scored.errors
    names = frame["category"].to_numpy()
    return {name: (scored.scores[names == name], scored.maxima[names == name]) for name in dict.fromkeys(names)}


def measure(scores: Any, rate: float, splits: int, seed: int = 0) -> Any:
    """Returns the share of held-out scores that is called anomalous, for each random split in halves (splits,)."""
    found = []
    for split in range(splits):
        order = np.random.default_rng([seed, split]).permutation(len(scores))
        calibration, held_out = scores[order[: len(scores) // 2]], scores[order[len(scores) // 2 :]]
        threshold = conformal_threshold(calibration.tolist(), rate)
        found.append(float((held_out.astype(float) >= threshold).mean()))
    return np.array(found)


def row(name: str, scores: Any, rate: float, splits: int) -> dict[str, Any]:
    """Returns what is measured of some scores at a rate, and what is promised."""
    from scipy.stats import betabinom

    rates = measure(scores, rate, splits)
    count = len(scores) // 2
    held_out, allowed = len(scores) - count, alarms_allowed(count, rate)
    counted = betabinom(held_out, allowed, count + 1 - allowed)
    error = float(rates.std(ddof=1)) / math.sqrt(splits)
    return {
        "name": name,
        "rate": rate,
        "n": count,
        "mean": float(rates.mean()),
        "error": error,
        "kept": float(rates.mean()) <= rate + 2 * error,
        "spread": tuple(np.quantile(rates, [0.05, 0.95]).tolist()),
        "beta": rate_range(count, rate),
        "counted": (counted.ppf(0.05) / held_out, counted.ppf(0.95) / held_out),
    }


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def table(rows: list[dict[str, Any]]) -> str:
    """Returns rows as Markdown, in per cent."""
    heads = ["scores", "promised", "n", "expected k/(n+1)", "measured mean", "measured 5 to 95 %", "Beta 5 to 95 %"]
    heads.append("counted on as many images 5 to 95 %")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for one in rows:
        ranges = [" to ".join(map(_percent, one[name])) for name in ("spread", "beta", "counted")]
        cells = [
            one["name"],
            _percent(one["rate"]),
            str(one["n"]),
            _percent(alarms_allowed(one["n"], one["rate"]) / (one["n"] + 1)),
            f"{_percent(one['mean'])} ± {100 * one['error']:.2f}",
            *ranges,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.2, 0.1, 0.05])
    parser.add_argument("--categories", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/calibration.md"))
    options = parser.parse_args()
    found = normal_scores(options.categories)
    rows = []
    for rate in options.rates:
        whole = [np.concatenate([parts[kind] for parts in found.values()]) for kind in (0, 1)]
        rows.append(row("all categories, one threshold", whole[0], rate, options.splits))
        rows.append(row("the same, map maxima", whole[1], rate, options.splits))
        rows += [row(name, scores, rate, options.splits) for name, (scores, _) in found.items()]
    write_text(options.out, table(rows))
    failed = [one for one in rows if not one["kept"]]
    print(f"\n{table(rows)}\ntable: {options.out}")
    print(f"{len(rows) - len(failed)} of {len(rows)} means are at most the promised rate + 2 standard errors")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
