"""Split conformal prediction: thresholds from normal images only, with a guaranteed false-alarm rate."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from vlad.errors import DecisionError

__all__ = [
    "above",
    "alarms_allowed",
    "conformal_threshold",
    "images_needed",
    "p_value",
    "rate_range",
    "refuse_too_few",
    "smallest_rate",
]


def _exact(rate: float) -> Fraction:
    """Returns a rate as it is written: 0.29 of 100 is 29, which floating-point arithmetic misses."""
    return Fraction(repr(float(rate)))


def alarms_allowed(count: int, rate: float) -> int:
    """Returns k = floor(α (n + 1)): an image is anomalous if fewer than k of n normal scores reach its own.

    Args:
        count: Number of normal scores n.
        rate: False-alarm rate α.

    Examples:
        >>> alarms_allowed(19, 0.05), alarms_allowed(18, 0.05), alarms_allowed(99, 0.29)
        (1, 0, 29)
    """
    return int(_exact(rate) * (count + 1))


def images_needed(rate: float) -> int:
    """Returns the smallest number of normal images for which a false-alarm rate can be guaranteed.

    Examples:
        >>> images_needed(0.05), images_needed(0.01)
        (19, 99)
    """
    return -(-1 // _exact(rate)) - 1


def smallest_rate(count: int) -> float:
    """Returns the smallest false-alarm rate that n normal images can guarantee, 1/(n + 1), rounded up.

    Examples:
        >>> smallest_rate(30)
        0.0323
    """
    digits = len(str(count)) + 2
    return float(-(-(10**digits) // (count + 1)) / 10**digits)


def above(score: float) -> float:
    """Returns the smallest float32 above a score: the threshold if this score is the largest normal one."""
    return float(np.nextafter(np.float32(score), np.float32(np.inf)))


def refuse_too_few(count: int, rate: float) -> None:
    """Rejects a rate that this number of normal images cannot guarantee: no score would be anomalous.

    Raises:
        DecisionError: There are too few images; the message says how many are needed.
    """
    if alarms_allowed(count, rate) < 1:
        raise DecisionError(
            f"a false-alarm rate of {rate:g} cannot be promised with {count} normal images (none below 1/{count + 1} "
            f"can): give at least {images_needed(rate)}, or a rate of {smallest_rate(count)} or more"
        )


def conformal_threshold(scores: Sequence[float], rate: float) -> float:
    """Returns the smallest score that is anomalous: the float32 above the k-th largest normal score.

    A score is anomalous if and only if its p-value is at most α. A score equal to the k-th largest normal score is
    normal; ties among the normal scores make false alarms rarer, never more frequent.

    Args:
        scores: Scores (n,) of normal images, finite float32 values, in any order.
        rate: False-alarm rate α.

    Raises:
        DecisionError: There are too few images: no score would be anomalous.

    Examples:
        >>> scores = [number / 4 for number in range(19)]
        >>> conformal_threshold(scores, 0.05) == above(4.5)
        True
    """
    refuse_too_few(len(scores), rate)
    return above(sorted(scores)[-alarms_allowed(len(scores), rate)])


def p_value(scores: Sequence[float], score: float) -> float:
    """Returns p = (1 + #{sᵢ ≥ s}) / (n + 1): an upper bound on the share of normal images that score at least as high.

    Args:
        scores: Scores (n,) of normal images, sorted.
        score: The score s.

    Examples:
        >>> p_value([0.1, 0.2, 0.3], 0.2), p_value([0.1, 0.2, 0.3], 0.4)
        (0.75, 0.25)
    """
    return (1 + len(scores) - bisect_left(scores, score)) / (len(scores) + 1)


def rate_range(count: int, rate: float, low: float = 0.05, high: float = 0.95) -> tuple[float, float]:
    """Returns quantiles of the actual false-alarm rate over draws of the calibration images.

    For any continuous distribution of the scores, the rate is Beta(k, n + 1 - k) distributed; with ties it is lower.

    Args:
        count: Number of calibration images n.
        rate: Guaranteed false-alarm rate α.
        low: Lower quantile.
        high: Upper quantile.

    Examples:
        >>> [round(value, 3) for value in rate_range(99, 0.05)]
        [0.02, 0.09]
    """
    from scipy.special import betaincinv

    allowed = alarms_allowed(count, rate)
    if allowed < 1:
        return 0.0, 0.0
    return tuple(float(betaincinv(allowed, count + 1 - allowed, part)) for part in (low, high))  # type: ignore[return-value]
