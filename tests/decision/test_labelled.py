"""Thresholds from labelled images."""

import numpy as np
import pytest

from vlad.decision.labelled import f1_threshold, fpr_threshold, labelled_threshold
from vlad.errors import DecisionError


def f1(normal, anomalous, threshold):
    true, false = sum(s >= threshold for s in anomalous), sum(s >= threshold for s in normal)
    return 2 * true / (true + false + len(anomalous)) if true else 0.0


@pytest.mark.parametrize("seed", range(10))
def test_no_threshold_has_a_better_f1(seed):
    generator = np.random.default_rng(seed)
    normal, anomalous = (
        np.round(generator.normal(mean, 1, size), 1).astype(np.float32).tolist() for mean, size in ((0, 30), (1, 12))
    )
    threshold = f1_threshold(normal, anomalous)
    assert f1(normal, anomalous, threshold) == max(f1(normal, anomalous, one) for one in [*normal, *anomalous])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.3, 0.99])
def test_a_false_positive_rate_is_kept_and_used_up(rate):
    normal = np.random.default_rng(0).normal(size=40).astype(np.float32).tolist()
    threshold = fpr_threshold(normal, rate)
    assert sum(score >= threshold for score in normal) == int(round(rate * 40, 9))


def test_ties_keep_the_false_positive_rate():
    normal = [0.0, 0.5, 0.5, 0.5]
    assert sum(score >= fpr_threshold(normal, 0.25) for score in normal) == 0


def test_both_kinds_are_needed():
    with pytest.raises(DecisionError, match="no normal images"):
        labelled_threshold([], [0.5], "f1", 0.05)
    with pytest.raises(DecisionError, match="F1 needs both"):
        labelled_threshold([0.5], [], "f1", 0.05)
    assert labelled_threshold([0.5], [], "fpr", 0.05) > 0.5
