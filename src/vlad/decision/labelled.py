"""Thresholds from labelled images: the best F1, or a false-positive rate on the normal ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vlad.decision.conformal import above
from vlad.errors import DecisionError

__all__ = ["f1_threshold", "fpr_threshold", "labelled_threshold"]


def labelled_threshold(
    normal: Sequence[float], anomalous: Sequence[float], target: Literal["f1", "fpr"], rate: float
) -> float:
    """Returns the smallest score that is anomalous.

    Args:
        normal: Scores of normal images.
        anomalous: Scores of anomalous images.
        target: ``f1``: the best F1 on these images; ``fpr``: at most a share ``rate`` of the normal ones is anomalous.
        rate: For ``fpr``: the share, in [0, 1).

    Raises:
        DecisionError: There are no normal, or for ``f1`` no anomalous images.
    """
    if not normal:
        raise DecisionError("there are no normal images among those labelled; give some")
    if target == "fpr":
        return fpr_threshold(normal, rate)
    if not anomalous:
        raise DecisionError(
            "there are no anomalous images among those labelled: F1 needs both; give some, or calibrate on normal "
            "images alone (without --labelled)"
        )
    return f1_threshold(normal, anomalous)


def f1_threshold(normal: Sequence[float], anomalous: Sequence[float]) -> float:
    """Returns the threshold with the largest F1 among the anomalous scores; if several, the highest.

    Examples:
        >>> f1_threshold([0.0, 0.25, 0.5], [0.375, 0.625, 0.75])
        0.375
    """
    from vlad.metrics.curves import f1_max, sorted_groups

    clean, found = (np.asarray(values, np.float32) for values in (normal, anomalous))
    return f1_max(sorted_groups(np.sort(clean), clean[:0], found))[1]


def fpr_threshold(normal: Sequence[float], rate: float) -> float:
    """Returns the smallest threshold at which at most a share of the normal images is anomalous.

    Examples:
        >>> fpr_threshold([0.0, 0.25, 0.5, 0.75], 0.25) == above(0.5)
        True
    """
    from fractions import Fraction

    allowed = int(Fraction(repr(float(rate))) * len(normal))
    return above(sorted(normal)[-1 - allowed])
