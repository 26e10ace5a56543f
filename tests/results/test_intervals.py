"""Intervals against other definitions, and what they refuse; their coverage is in benchmarks/intervals.md."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from vlad.errors import OptionError
from vlad.results.intervals import auroc_interval, check_level, measure, resampled


def sample(seed, ties=False, count=60):
    random = np.random.default_rng(seed)
    labels = (random.random(count) < 0.4).astype(int)
    scores = random.normal(size=count) + labels
    return (scores.round(0) if ties else scores), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_scikit_learns_with_and_without_weights(seed, ties):
    scores, labels = sample(seed, ties)
    weights = np.random.default_rng(seed).integers(0, 4, size=(5, len(labels))).astype(float)
    for given, expected in ((None, np.ones((1, len(labels)))), (weights, weights)):
        for b, weight in enumerate(expected):
            repeated = np.repeat(np.arange(len(labels)), weight.astype(int))  # what a weight means
            y, s = labels[repeated], scores[repeated]
            precision, recall, _ = precision_recall_curve(y, s)
            f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
            truth = {"image_auroc": roc_auc_score(y, s), "image_ap": average_precision_score(y, s), "image_f1_max": f1}
            for metric, value in truth.items():
                assert measure(metric, scores, labels, given)[b] == pytest.approx(value, abs=1e-12)


def test_variance_is_delongs():
    scores, labels = sample(0, ties=True)
    anomalous, normal = scores[labels == 1], scores[labels == 0]
    kernel = (anomalous[:, None] > normal) + 0.5 * (anomalous[:, None] == normal)
    auroc = kernel.mean()
    variance = kernel.mean(1).var(ddof=1) / len(anomalous) + kernel.mean(0).var(ddof=1) / len(normal)
    found = auroc_interval(scores, labels)
    assert found.value == pytest.approx(auroc)
    logit = [math.log(end / (1 - end)) for end in found]
    half = math.sqrt(variance) / (auroc * (1 - auroc))
    assert logit[0] - logit[1] == pytest.approx(logit[2] - logit[0])  # even on the logit scale
    assert 1.96 < (logit[2] - logit[0]) / half < 2.05  # Student's quantile of some 50 degrees of freedom


def test_no_interval_of_perfect_scores_or_single_images():
    scores, labels = np.array([0.0, 1, 2, 3]), np.array([0, 0, 1, 1])
    assert auroc_interval(scores, labels).value == 1
    assert math.isnan(auroc_interval(scores, labels).low)
    assert math.isnan(auroc_interval(-scores, labels).low)
    assert math.isnan(auroc_interval(np.array([0.0, 1, 2, 1.5]), np.array([0, 1, 1, 1])).low)


def test_draws_stay_within_labels():
    labels = np.array([0] * 5 + [1] * 3)
    parts = list(resampled(labels, 7, np.random.default_rng(0)))
    weights = np.concatenate(parts)
    assert weights.shape == (7, 8)
    assert (weights[:, :5].sum(1) == 5).all()
    assert (weights[:, 5:].sum(1) == 3).all()


def test_levels_are_checked():
    with pytest.raises(OptionError, match="the level 95 must be"):
        check_level(95)
