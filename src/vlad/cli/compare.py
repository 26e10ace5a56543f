"""``vlad compare``: two test runs on the same images, with intervals that say whether one is better."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlad.results.intervals import METRICS
from vlad.results.tables import FORMATS, render

__all__ = ["run"]

_TEXT = """Compares the image scores of two test runs: the metric of each, and the difference (second less first), per
category and in the mean, with intervals. Both must have tested the same images."""

_EXAMPLES = """examples:
  vlad compare runs/sdp/RUN runs/winclip/RUN
  vlad compare runs/a runs/b --metric image_ap --format latex
  vlad compare runs/a runs/b --images disagreements.csv      what one finds and the other does not"""


def run(arguments: list[str]) -> int:
    """Runs ``vlad compare``; the arguments start with the verb."""
    parser = argparse.ArgumentParser(
        prog="vlad compare",
        description=_TEXT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("first", metavar="RUN", help="run folder of a vlad test, or its test_scores.csv")
    parser.add_argument("second", metavar="RUN", help="the other one")
    parser.add_argument("--metric", default=METRICS[0], choices=METRICS, help="image_auroc by default")
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals (default 0.95)")
    parser.add_argument("--resamples", type=int, default=2000, metavar="N", help="bootstrap draws (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    parser.add_argument("--format", default="text", choices=tuple(FORMATS), help="text by default")
    parser.add_argument("--images", metavar="FILE", help="write the images as CSV, those ranked most differently first")
    options = parser.parse_args(arguments[1:])
    from vlad.results.compare import compare_runs, comparison_table, disagreements, read_scores
    from vlad.runs.pointers import resolve_run

    paths = [Path(resolve_run(name)) for name in (options.first, options.second)]
    first, second = (read_scores(path) for path in paths)
    found = compare_runs(
        first, second, metric=options.metric, level=options.level, resamples=options.resamples, seed=options.seed
    )
    print(render(comparison_table(found, ("A", "B")), options.format))
    if options.format == "text":
        print(f"\nA: {options.first}\nB: {options.second}")
    if options.images:
        from vlad.table import write_frame

        print(f"images: {write_frame(Path(options.images), disagreements(first, second))}")
    return 0
