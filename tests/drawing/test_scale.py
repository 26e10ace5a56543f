import numpy as np
import pytest

from vlad.drawing.scale import Scale, choose_scale


def share_above(maxima, scale):
    return float(np.mean(maxima > scale.low))


def parts(count, seed=0):
    """Maxima of good parts' maps, skewed to the right as maxima are, and their maps' medians."""
    rng = np.random.default_rng(seed)
    return 0.3 + 0.05 * rng.gumbel(size=count), 0.1 + 0.01 * rng.normal(size=count)


@pytest.mark.parametrize("count", [20, 30, 200])
@pytest.mark.parametrize("seed", range(5))
def test_a_folder_of_good_parts_does_not_glow(count, seed):
    maxima, levels = parts(count, seed)
    scale = choose_scale(maxima, levels)
    assert share_above(maxima, scale) < 1 / 3
    assert np.quantile(scale.strength(maxima), 0.75) < 0.3  # three in four are clean or nearly so


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
def test_defects_stay_visible_however_many_there_are(share):
    count = 100
    good, levels = parts(count)
    bad = round(count * share)
    maxima = np.concatenate([good[bad:], np.linspace(1.0, 2.0, bad)])
    scale = choose_scale(maxima, levels)
    assert share_above(maxima[-bad:], scale) == 1.0
    assert share_above(maxima[:-bad], scale) <= 0.1
    median, mad = np.median(maxima), np.median(abs(maxima - np.median(maxima)))
    if share >= 0.5:  # what median and MAD would have done
        assert np.mean(maxima[-bad:] > median + 3 * 1.4826 * mad) < 0.7


def test_where_normal_images_are_known_they_alone_tell_what_is_usual():
    good, levels = parts(20)
    maxima = np.concatenate([good, np.full(60, 2.0)])
    labels = np.array([0] * 20 + [1] * 60)
    levels = np.resize(levels, 80)
    scale = choose_scale(maxima, levels, labels)
    alone = choose_scale(good, levels[:20])
    assert scale.low == alone.low
    assert "20 normal images" in scale.chosen
    assert "80 images" in choose_scale(maxima, levels, np.full(80, -1)).chosen


@pytest.mark.parametrize("count", range(1, 8))
def test_few_images_show_the_highest_part_of_their_maps(count):
    maxima, levels = np.linspace(1.0, 2.0, count), np.zeros(count)
    scale = choose_scale(maxima, levels)
    assert scale.low == pytest.approx(0.6 * maxima.max())
    assert scale.high == maxima.max()
    assert f"{count} images" in scale.chosen


@pytest.mark.parametrize("value", [0.0, -3.0, 1e6, 1e-9])
@pytest.mark.parametrize("count", [1, 20])
def test_constant_maps_give_a_scale_that_can_be_divided_by(value, count):
    scale = choose_scale(np.full(count, value), np.full(count, value))
    assert scale.floor < scale.low < scale.high
    assert np.isfinite(scale.strength(np.array([value]))).all()
    assert scale.strength(np.array([value])) == 0
    assert np.isfinite(scale.depth(np.array([value]))).all()


def test_a_decisions_scale_keeps_its_numbers():
    scale = Scale.of_decision(0.2, 0.8, 0.5)
    assert (scale.low, scale.high, scale.contour, scale.calibrated) == (0.2, 0.8, 0.5, True)
    assert scale.floor == pytest.approx(0.2, abs=1e-5)  # as far below the contour as high is above it
    assert Scale.of_dict(scale.to_dict()) == scale
    same = Scale.of_decision(0.3, 0.3, None)
    assert same.floor < same.low < same.high
