"""How far a measured value may be from the true one: intervals of image metrics and of their differences.

An AUROC has DeLong's variance on the logit scale (DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837; Pepe 2003,
section 5.2), with Student's quantiles, as few images are the rule. A difference between two runs on the same images has
a paired bootstrap: within each label, images are drawn with replacement, the same ones for both runs. Coverage of both
was simulated: benchmarks/intervals.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vlad.errors import OptionError

__all__ = ["METRICS", "Interval", "auroc_interval", "check_level", "measure", "resampled"]

METRICS = ("image_auroc", "image_ap", "image_f1_max")

Array = np.ndarray
_CELLS = 4_000_000  # numbers in memory at once


class Interval(NamedTuple):
    """An interval of a value.

    Attributes:
        value: What was measured.
        low: Lower end; NaN where there is no interval.
        high: Upper end.
    """

    value: float
    low: float = math.nan
    high: float = math.nan


def check_level(level: float) -> None:
    """Raises OptionError unless a confidence level is between 0.5 and 1."""
    if not 0.5 < level < 1:
        raise OptionError(f"the level {level} must be between 0.5 and 1, such as 0.95")


def measure(metric: str, scores: Array, labels: Array, weights: Array | None = None) -> Array:
    """Computes a metric of image scores, under any number of weightings at once.

    Args:
        metric: One of :data:`METRICS`.
        scores: Image scores (N,); a higher one is more anomalous.
        labels: 1 where anomalous, 0 where normal (N,); both kinds occur.
        weights: How often each image counts (B, N); once by default.

    Returns:
        The values (B,), in [0, 1]; (1,) without weights.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    ranked, anomalous = scores[order], labels[order] == 1
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of the groups of equal score
    true = np.cumsum(np.where(anomalous, weights[:, order], 0), axis=1)[:, ends]
    false = np.cumsum(np.where(anomalous, 0, weights[:, order]), axis=1)[:, ends]
    gained = np.diff(true, axis=1, prepend=0)
    if metric == "image_auroc":
        alarms = np.diff(false, axis=1, prepend=0)
        below = false[:, -1:] - false + 0.5 * alarms
        return (gained * below).sum(1) / (true[:, -1] * false[:, -1])
    if metric == "image_ap":
        flagged = np.maximum(true + false, 1e-12)
        return (gained * true / flagged).sum(1) / true[:, -1]
    return (2 * true / (true + false + true[:, -1:])).max(1)


def auroc_interval(scores: Array, labels: Array, level: float = 0.95) -> Interval:
    """Returns an AUROC with its interval: DeLong's variance on the logit scale.

    Args:
        scores: Image scores (N,).
        labels: 1 where anomalous, 0 where normal (N,).
        level: Share of such intervals that hold the true value.

    Returns:
        The interval; no ends where the AUROC is exactly 0 or 1, or a kind of label has fewer than two images: nothing
        can then be said of its variance.
    """
    anomalous, normal = scores[labels == 1], scores[labels == 0]
    value = float(measure("image_auroc", scores, labels)[0])
    if value in {0.0, 1.0} or min(len(anomalous), len(normal)) < 2:
        return Interval(value)
    ordered = np.sort(normal)
    above = (np.searchsorted(ordered, anomalous, "left") + np.searchsorted(ordered, anomalous, "right")) / 2
    of_anomalous = above / len(normal)
    ordered = np.sort(anomalous)
    below = (np.searchsorted(ordered, normal, "left") + np.searchsorted(ordered, normal, "right")) / 2
    of_normal = 1 - below / len(anomalous)
    parts = of_anomalous.var(ddof=1) / len(anomalous), of_normal.var(ddof=1) / len(normal)
    variance = float(sum(parts))
    if variance == 0:
        return Interval(value)
    freedom = variance**2 / (parts[0] ** 2 / (len(anomalous) - 1) + parts[1] ** 2 / (len(normal) - 1))
    half = _student(0.5 + level / 2, freedom) * math.sqrt(variance) / (value * (1 - value))
    center = math.log(value / (1 - value))
    return Interval(value, *(1 / (1 + math.exp(-(center + sign * half))) for sign in (-1, 1)))


def _student(probability: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf(probability, freedom))


def resampled(labels: Array, count: int, random: np.random.Generator) -> Iterator[Array]:
    """Yields weights (b, N) of ``count`` bootstrap draws in all: images are drawn within each label.

    Args:
        labels: 1 where anomalous, 0 where normal (N,).
        count: Number of draws.
        random: Where they come from.
    """
    kinds = [np.flatnonzero(labels == kind) for kind in (0, 1)]
    step = max(1, min(count, _CELLS // max(1, len(labels))))
    for start in range(0, count, step):
        size = min(step, count - start)
        weights = np.zeros((size, len(labels)))
        for places in kinds:
            even = np.full(len(places), 1 / len(places))
            weights[:, places] = random.multinomial(len(places), even, size=size)
        yield weights
