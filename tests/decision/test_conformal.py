"""Thresholds from normal scores: they agree with p-values, and keep what they promise."""

import math

import numpy as np
import pytest
from scipy.stats import beta

from vlad.decision.conformal import (
    alarms_allowed,
    conformal_threshold,
    images_needed,
    p_value,
    rate_range,
    smallest_rate,
)
from vlad.errors import DecisionError


@pytest.mark.parametrize("ties", [0, 3, 40])
@pytest.mark.parametrize("rate", [0.03, 0.05, 0.1, 0.2, 0.29, 0.5, 0.9])
def test_a_score_is_anomalous_exactly_where_its_p_value_is_at_most_the_rate(rate, ties):
    generator = np.random.default_rng(0)
    for count in (*range(1, 25), 99, 100):
        scores = generator.normal(size=count).astype(np.float32)
        scores[:ties] = np.float32(1.25)
        normal = sorted(scores.tolist())
        if alarms_allowed(count, rate) < 1:
            with pytest.raises(DecisionError, match=f"give at least {images_needed(rate)}, or a rate of"):
                conformal_threshold(normal, rate)
            continue
        threshold = conformal_threshold(normal, rate)
        assert threshold == float(np.float32(threshold))
        neighbours = [float(np.nextafter(np.float32(one), np.float32(up))) for one in normal for up in (-9, 9)]
        for score in [*normal, *neighbours, -50.0, 50.0]:
            assert (score >= threshold) == (p_value(normal, score) <= rate)


def test_rates_count_as_they_are_written():
    """0.29 * 100 is 28.999… in floating point."""
    assert alarms_allowed(99, 0.29) == 29
    assert alarms_allowed(999, 0.001) == 1
    assert alarms_allowed(998, 0.001) == 0


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.07, 0.05, 0.01, 0.001])
def test_the_fix_that_is_told_works(rate):
    needed = images_needed(rate)
    assert alarms_allowed(needed, rate) == 1
    assert alarms_allowed(needed - 1, rate) == 0
    assert alarms_allowed(needed - 1, smallest_rate(needed - 1)) == 1


def test_too_few_images_are_refused_in_one_line():
    with pytest.raises(DecisionError) as error:
        conformal_threshold([0.5] * 30, 0.01)
    assert str(error.value) == (
        "a false-alarm rate of 0.01 cannot be promised with 30 normal images (none below 1/31 can): give at least 99, "
        "or a rate of 0.0323 or more"
    )


@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (99, 0.05), (30, 0.2)])
def test_the_range_is_the_beta_distributions(count, rate):
    allowed = math.floor(rate * (count + 1))
    expected = beta.ppf([0.05, 0.95], allowed, count + 1 - allowed)
    assert rate_range(count, rate) == pytest.approx(expected.tolist())


@pytest.mark.parametrize("rate", [0.2, 0.1, 0.05])
def test_the_actual_rate_is_spread_as_said(rate):
    """On normally distributed scores, whose actual rate is known without counting."""
    from scipy.stats import norm

    generator, count, draws = np.random.default_rng(1), 40, 2000
    scores = np.sort(generator.normal(size=(draws, count)).astype(np.float32))
    rates = norm.sf([conformal_threshold(row.tolist(), rate) for row in scores])
    error = rates.std(ddof=1) / math.sqrt(draws)
    assert rates.mean() <= rate + 2 * error
    assert rates.mean() == pytest.approx(alarms_allowed(count, rate) / (count + 1), abs=4 * error)
    low, high = rate_range(count, rate)
    assert np.mean(rates < low) == pytest.approx(0.05, abs=0.02)
    assert np.mean(rates > high) == pytest.approx(0.05, abs=0.02)


def test_ties_make_alarms_rarer_never_more_frequent():
    generator = np.random.default_rng(2)
    rates = []
    for _ in range(300):
        scores = generator.integers(0, 6, size=240).astype(np.float32)
        threshold = conformal_threshold(scores[:40].tolist(), 0.2)
        rates.append(float((scores[40:] >= threshold).mean()))
    assert np.mean(rates) <= 0.2 + 2 * np.std(rates) / math.sqrt(len(rates))
