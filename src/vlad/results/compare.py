"""Two runs on the same images: differences of image metrics with paired bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlad.errors import DataError, OptionError
from vlad.results.intervals import METRICS, Interval, auroc_interval, check_level, measure, resampled
from vlad.results.tables import Table, heading

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Comparison",
    "Line",
    "compare_runs",
    "comparison_table",
    "disagreements",
    "paired_difference",
    "read_scores",
]

Array = np.ndarray
_KEYS = ["dataset", "category", "image_id"]


@dataclass(frozen=True)
class Line:
    """A category, or the mean over all of them (``category`` "").

    Attributes:
        dataset: Data set.
        category: Category.
        normal: Normal images.
        anomalous: Anomalous images.
        first: The metric of the first run, with its interval where there is one.
        second: Of the second.
        difference: Second less first.
    """

    dataset: str
    category: str
    normal: int
    anomalous: int
    first: Interval
    second: Interval
    difference: Interval


@dataclass(frozen=True)
class Comparison:
    """What the comparison of two runs found.

    Attributes:
        metric: The metric.
        level: Confidence level.
        lines: A line per category, and the mean last where there are several.
        left_out: Images without a score in one of the runs.
        undefined: Categories in which only one kind of label occurs.
        fixed: Categories in which a run is perfect, or always wrong: there is no interval.
    """

    metric: str
    level: float
    lines: list[Line]
    left_out: int
    undefined: list[str]
    fixed: list[str]


def read_scores(run: Path) -> pd.DataFrame:
    """Returns the scores of a test's images: ``test_scores.csv`` of its run folder.

    Raises:
        DataError: There is none, or columns are missing.
    """
    import pandas as pd

    file = run / "test_scores.csv" if run.is_dir() else run
    if not file.is_file():
        raise DataError(f"{file} is not there: give the run folder of a vlad test")
    frame = pd.read_csv(
        file,
        dtype=dict.fromkeys((*_KEYS, "path"), str),
        keep_default_na=False,
        na_values=[""],
        float_precision="round_trip",
    )
    missing = [name for name in (*_KEYS, "path", "label", "image_score") if name not in frame]
    if missing:
        raise DataError(f"{file} has no column {', '.join(missing)}")
    return frame


def _matched(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Returns a row per image with the scores of both runs.

    Raises:
        DataError: The runs have tested other images, or have other labels.
    """
    for frame, which in ((first, "first"), (second, "second")):
        twice = frame[frame.duplicated(_KEYS)]
        if len(twice):
            raise DataError(f"the {which} run has {'/'.join(map(str, twice.iloc[0][_KEYS]))} twice")
    both = first.merge(
        second[[*_KEYS, "label", "image_score"]], on=_KEYS, how="outer", suffixes=("_a", "_b"), indicator=True
    )
    alone = both[both["_merge"] != "both"]
    if len(alone):
        name, where = "/".join(map(str, alone.iloc[0][_KEYS])), alone.iloc[0]["_merge"]
        which = "first" if where == "left_only" else "second"
        raise DataError(
            f"the runs have not tested the same images: {len(alone)} are in one of them alone, such as {name} in the "
            f"{which}"
        )
    other = both[both["label_a"] != both["label_b"]]
    if len(other):
        raise DataError(f"the runs have other labels of {len(other)} images, such as {'/'.join(other.iloc[0][_KEYS])}")
    return both.rename(columns={"label_a": "label"})[[*_KEYS, "path", "label", "image_score_a", "image_score_b"]]


def paired_difference(
    metric: str,
    first: Array,
    second: Array,
    labels: Array,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    random: np.random.Generator,
) -> Interval:
    """Returns the difference of a metric between two methods on the same images, with its bootstrap interval.

    Args:
        metric: ``image_auroc``, ``image_ap`` or ``image_f1_max``.
        first: Image scores of the first method (N,).
        second: Of the second (N,).
        labels: 1 where anomalous, 0 where normal (N,).
        level: Share of such intervals that hold the true difference.
        resamples: Bootstrap draws.
        random: Where they come from.
    """
    values = [float(measure(metric, scores, labels)[0]) for scores in (first, second)]
    if any(value in {0.0, 1.0} for value in values):
        return Interval(values[1] - values[0])
    draws = _draws(metric, first, second, labels, resamples, random)
    return _interval(values[1] - values[0], draws[1] - draws[0], [_smaller(labels)], level)


def _draws(
    metric: str, first: Array, second: Array, labels: Array, resamples: int, random: np.random.Generator
) -> Array:
    """Returns the metric of both methods under each draw (2, resamples)."""
    parts = [
        [measure(metric, scores, labels, weights) for scores in (first, second)]
        for weights in resampled(labels, resamples, random)
    ]
    return np.concatenate(parts, axis=1)


def _smaller(labels: Array) -> int:
    return int(min((labels == 0).sum(), (labels == 1).sum()))


def _interval(value: float, draws: Array, sizes: Sequence[int], level: float) -> Interval:
    """Returns the expanded percentile interval of bootstrap draws (Hesterberg 2015, The American Statistician 69:371).

    The spread of a bootstrap is too small by (n - 1) / n, and the normal quantile by Student's: the percentiles are
    moved outward by both, n being the images of the rarer kind.
    """
    from scipy.stats import norm, t

    freedom = sum(size - 1 for size in sizes)
    if freedom < 1:
        return Interval(value)
    mean = max(2.0, sum(sizes) / len(sizes))
    tail = float(norm.cdf(math.sqrt(mean / (mean - 1)) * t.ppf(0.5 - level / 2, freedom)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def compare_runs(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    metric: str = "image_auroc",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compares two runs category by category, and in the mean over categories.

    Args:
        first: Scores of the first run, as :func:`read_scores` gives them.
        second: Of the second.
        metric: ``image_auroc``, ``image_ap`` or ``image_f1_max``.
        level: Share of such intervals that hold the true value.
        resamples: Bootstrap draws.
        seed: Seed of the draws.

    Raises:
        DataError: The runs have not tested the same images, or no category has both kinds of label.
        OptionError: An argument is out of its range.
    """
    check_level(level)
    if metric not in METRICS or resamples < 100:
        raise OptionError(f"metric is one of {', '.join(METRICS)} and there are at least 100 resamples")
    images = _matched(first, second)
    scored = images[images["label"].isin([0, 1])].dropna(subset=["image_score_a", "image_score_b"])
    random = np.random.default_rng(seed)
    lines: list[Line] = []
    total: list[Array] = []
    sizes: list[int] = []
    undefined, fixed = [], []
    for (dataset, category), rows in scored.groupby(["dataset", "category"], sort=False):
        labels = rows["label"].to_numpy()
        name = "/".join(dict.fromkeys((str(dataset), str(category))))
        if len(set(labels)) < 2:
            undefined.append(name)
            continue
        both = [rows[f"image_score_{which}"].to_numpy(float) for which in "ab"]
        values = [float(measure(metric, scores, labels)[0]) for scores in both]
        draws = _draws(metric, both[0], both[1], labels, resamples, random)
        total.append(draws)
        sizes.append(_smaller(labels))
        perfect = any(value in {0.0, 1.0} for value in values)
        fixed += [name] if perfect else []
        difference = Interval(values[1] - values[0])
        if not perfect:
            difference = _interval(difference.value, draws[1] - draws[0], sizes[-1:], level)
        ends = [
            auroc_interval(scores, labels, level) if metric == "image_auroc" else Interval(value)
            for scores, value in zip(both, values, strict=True)
        ]
        normal, anomalous = (int((labels == kind).sum()) for kind in (0, 1))
        lines.append(Line(str(dataset), str(category), normal, anomalous, ends[0], ends[1], difference))
    if not lines:
        raise DataError("no category has scored images of both kinds")
    if len(lines) > 1:
        lines.append(_mean(lines, np.mean(total, axis=0), sizes, level))
    return Comparison(metric, level, lines, len(images) - len(scored), undefined, fixed)


def _mean(lines: Sequence[Line], draws: Array, sizes: Sequence[int], level: float) -> Line:
    """Returns the line of the mean over categories, from the mean of their draws (2, resamples)."""
    first, second = (float(np.mean([one.value for one in values])) for values in zip(*map(_pair, lines), strict=True))
    normal, anomalous = sum(line.normal for line in lines), sum(line.anomalous for line in lines)
    ends = _interval(first, draws[0], sizes, level), _interval(second, draws[1], sizes, level)
    return Line("", "", normal, anomalous, *ends, _interval(second - first, draws[1] - draws[0], sizes, level))


def _pair(line: Line) -> tuple[Interval, Interval]:
    return line.first, line.second


def comparison_table(found: Comparison, names: tuple[str, str]) -> Table:
    """Returns a comparison as a table in per cent.

    Args:
        found: The comparison.
        names: What the runs are called.
    """
    several = len({line.dataset for line in found.lines if line.category}) > 1
    rows = []
    for line in found.lines:
        name = f"{line.dataset}/{line.category}" if several and line.category else line.category or "mean"
        clear = (
            ""
            if math.isnan(line.difference.low)
            else "higher"
            if line.difference.low > 0
            else "lower"
            if line.difference.high < 0
            else "-"
        )
        rows.append(
            [
                name,
                str(line.normal),
                str(line.anomalous),
                *map(_shown, (line.first, line.second)),
                _shown(line.difference, "+"),
                clear,
            ]
        )
    rules = frozenset({len(rows) - 1}) if len(rows) > 1 else frozenset()
    notes = [
        f"in brackets: {100 * found.level:.0f} % intervals; differences by paired bootstrap within label and category"
        + (", AUROCs by DeLong's variance on the logit scale" if found.metric == "image_auroc" else ""),
        "higher, lower: the interval of the difference leaves out 0"
        + (
            f"; about {(1 - found.level) * (len(found.lines) - 1):.1g} categories would by chance alone"
            if rules
            else ""
        ),
    ]
    notes += [f"no interval of {', '.join(found.fixed)}: a run is exactly at 0 or 100 there"] if found.fixed else []
    notes += [f"left out, one kind of label: {', '.join(found.undefined)}"] if found.undefined else []
    notes += [f"left out, without a label or a score in both runs: {found.left_out} images"] if found.left_out else []
    what = heading(found.metric)
    columns = ["category", "normal", "anomalous", f"{what} {names[0]}", f"{what} {names[1]}", "difference", names[1]]
    return Table(columns, rows, frozenset(range(1, 6)), notes=notes, rules=rules)


def _shown(one: Interval, sign: str = "") -> str:
    text = f"{100 * one.value:{sign}.1f}"
    return text if math.isnan(one.low) else f"{text} [{100 * one.low:{sign}.1f}, {100 * one.high:{sign}.1f}]"


def disagreements(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Returns the images that the runs rank most differently, first those that one run finds and the other does not.

    Args:
        first: Scores of the first run, as :func:`read_scores` gives them.
        second: Of the second.

    Returns:
        The images' columns, both scores, and of each run the share of the category's normal images that score at least
        as high (``above_a``, ``above_b``): 0 is clearly anomalous, 1 clearly normal.
    """
    images = _matched(first, second).dropna(subset=["image_score_a", "image_score_b"]).reset_index(drop=True)
    for which in "ab":
        images[f"above_{which}"] = np.nan
        for _, rows in images.groupby(["dataset", "category"]):
            normal = np.sort(rows.loc[rows["label"] == 0, f"image_score_{which}"].to_numpy(float))
            if len(normal):
                below = np.searchsorted(normal, rows[f"image_score_{which}"].to_numpy(float), "left")
                images.loc[rows.index, f"above_{which}"] = 1 - below / len(normal)
    gap = (images["above_a"] - images["above_b"]).abs()
    order: Any = gap.sort_values(ascending=False, kind="stable").index
    return images.loc[order]
