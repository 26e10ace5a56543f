"""Coverage of the intervals of ``vlad compare``, by simulation with known truth; its table is benchmarks/intervals.md.

    python benchmarks/intervals.py [--trials 4000] [--resamples 1000]

Scores are normal with unit variance, those of anomalous images shifted so that the AUROC is the wanted one; those of
two methods are correlated, as on the same images.
"""

import argparse
import math
from statistics import NormalDist

import numpy as np

from vlad.results.compare import paired_difference
from vlad.results.intervals import auroc_interval

NORMAL, ANOMALOUS = 20, 63  # MVTec AD's bottle
LABELS = np.repeat([0, 1], [NORMAL, ANOMALOUS])


def draw(random, aurocs, correlation):
    """Returns scores of two methods (2, N)."""
    noise = random.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=len(LABELS)).T
    shifts = [math.sqrt(2) * NormalDist().inv_cdf(auroc) for auroc in aurocs]
    return noise + np.array(shifts)[:, None] * LABELS


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    print("| AUROC | intervals given | coverage of those | mean width |\n|---|---|---|---|")
    for auroc in (0.8, 0.95, 0.99):
        found = [auroc_interval(draw(random, (auroc, auroc), 0)[0], LABELS) for _ in range(options.trials)]
        given = [one for one in found if not math.isnan(one.low)]
        covered = np.mean([one.low <= auroc <= one.high for one in given])
        width = np.mean([one.high - one.low for one in given])
        print(f"| {auroc} | {len(given) / len(found):.1%} | {covered:.1%} | {width:.3f} |", flush=True)
    print("\n| AUROCs | correlation | intervals given | coverage of those | mean width |\n|---|---|---|---|---|")
    trials = options.trials // 4
    for aurocs in ((0.8, 0.8), (0.8, 0.85), (0.95, 0.95), (0.9, 0.95), (0.99, 0.99), (0.95, 0.99)):
        for correlation in (0.3, 0.8):
            hits, widths = [], []
            for _ in range(trials):
                first, second = draw(random, aurocs, correlation)
                one = paired_difference(
                    "image_auroc", first, second, LABELS, resamples=options.resamples, random=random
                )
                if not math.isnan(one.low):
                    hits.append(one.low <= aurocs[1] - aurocs[0] <= one.high)
                    widths.append(one.high - one.low)
            given, width = len(hits) / trials, np.mean(widths)
            line = f"| {aurocs[0]}, {aurocs[1]} | {correlation} | {given:.1%} | {np.mean(hits):.1%} | {width:.3f} |"
            print(line, flush=True)


if __name__ == "__main__":
    main()
