"""Exactness against scikit-learn, on the kinds of scores that break implementations."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from vlad.metrics import RankingMetrics, ranking


def family(name, rng, n=4000):
    labels = rng.random(n) < 0.2
    noise = rng.normal(size=n)
    scores = {
        "normal": noise + labels,
        "ties": np.round(noise + labels),
        "negative": noise - 1e4,
        "saturated": 1 / (1 + np.exp(-12 * (noise + labels))),
        "tiny": (noise + labels) * 1e-30,
        "imbalanced": noise + 3 * (np.arange(n) < 2),
        "constant": np.zeros(n),
        "inverted": noise - labels,
    }[name]
    return scores.astype(np.float32), (np.arange(n) < 2) if name == "imbalanced" else labels


@pytest.mark.parametrize(
    "name", ["normal", "ties", "negative", "saturated", "tiny", "imbalanced", "constant", "inverted"]
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn(name, seed):
    scores, labels = family(name, np.random.default_rng(seed))
    result = ranking(torch.from_numpy(scores), torch.from_numpy(labels))
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    assert result.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert result.ap == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    assert result.f1_max == pytest.approx(f1.max(), abs=1e-9)
    flagged = scores >= result.f1_threshold
    assert 2 * (flagged & labels).sum() / (flagged.sum() + labels.sum()) == pytest.approx(f1.max(), abs=1e-9)
    assert np.isin(np.float32(result.f1_threshold), thresholds)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [([0, 0], "no anomalous samples"), ([1, 1], "no normal samples"), ([], "no samples")],
)
def test_undefined_is_nan_with_a_reason(labels, reason):
    result = ranking(torch.zeros(len(labels)), torch.tensor(labels))
    assert np.isnan([result.auroc, result.ap, result.f1_max]).all()
    assert result.undefined == reason


def test_batches_do_not_change_raw_scores():
    # torchmetrics' BinaryAUROC gives 0.5 here in two updates and 1.0 in one: a sigmoid hits one batch only.
    metric = RankingMetrics()
    metric.update(torch.tensor([0.96, 0.1]), torch.tensor([0, 0]))
    metric.update(torch.tensor([0.97, 1.5]), torch.tensor([1, 1]))
    assert metric.result().auroc == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_and_any_mask_type(dtype):
    for mask in (torch.bool, torch.uint8, torch.int64):
        metric = RankingMetrics()
        metric.update(torch.tensor([[0.0, 1.0]], dtype=dtype), torch.tensor([[0, 1]]).to(mask))
        assert metric.result().ap == 1.0
        metric.reset()
        assert metric.result().undefined == "no samples"


@pytest.mark.parametrize("ties", [False, True])
def test_false_positive_rate_at_a_recall_is_that_of_the_roc_curve(ties):
    random = np.random.default_rng(0)
    labels = (random.random(200) < 0.3).astype(int)
    scores = (random.normal(size=200) + labels).round(0 if ties else 6)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    found = ranking(torch.tensor(scores), torch.tensor(labels), (0.5, 0.95, 1.0)).fprs
    assert found == {at: pytest.approx(false[true >= at - 1e-9].min()) for at in (0.5, 0.95, 1.0)}
    with pytest.raises(ValueError, match=r"recalls lie in \(0, 1\]"):
        RankingMetrics(recalls=(95,))
