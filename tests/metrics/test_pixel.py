"""Pixel metrics against scikit-learn and against definitions written out, on scores that break implementations."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from vlad.errors import VladError
from vlad.metrics import PixelMetrics
from vlad.metrics.histogram import BINS, Histogram, Layout, _bits, _bits_on_cpu, merge
from vlad.metrics.pixel import KEPT
from vlad.metrics.regions import RegionCache, find_regions

EIGHT = np.ones((3, 3))
NAMES = ("auroc", "ap", "f1_max", "iou_max", "aupro", "aupimo")


def thresholds_of(maps):
    return np.unique(maps)[::-1]


def reference_aupro(maps, masks, limit=0.3):
    """MVTec AD's definition, threshold by threshold: overlap per 8-connected region over FPR, cut at the limit."""
    fpr, pro = [0.0], [0.0]
    labelled = [ndimage.label(mask, EIGHT) for mask in masks]
    for threshold in thresholds_of(maps):
        flagged = maps >= threshold
        overlaps = [f[lab == r].mean() for f, (lab, n) in zip(flagged, labelled, strict=True) for r in range(1, n + 1)]
        fpr.append(flagged[~masks].mean())
        pro.append(np.mean(overlaps))
    fpr, pro = np.array(fpr), np.array(pro)
    inside = fpr <= limit
    x, y = fpr[inside], pro[inside]
    if x[-1] < limit:  # the curve is cut between two thresholds
        x, y = np.append(x, limit), np.append(y, np.interp(limit, fpr, pro))
    return np.trapezoid(y, x) / limit


def reference_aupimo(maps, masks, low, high):
    """Mean recall of anomalous images over log-FPR on normal images, integrated numerically."""
    bad = masks.any((1, 2))
    fpr, recall = [0.0], [0.0]
    for threshold in thresholds_of(maps):
        flagged = maps >= threshold
        fpr.append(flagged[~bad].mean())
        recall.append(np.mean([f[m].mean() for f, m in zip(flagged[bad], masks[bad], strict=True)]))
    grid = np.geomspace(low, high, 20001)
    return np.trapezoid(np.interp(grid, fpr, recall), np.log(grid)) / np.log(high / low)


def reference(maps, masks, band):
    flat, truth = maps.ravel(), masks.ravel()
    precision, recall, _ = precision_recall_curve(truth, flat)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall)).max()
    iou = max((flat[truth] >= t).sum() / ((flat[~truth] >= t).sum() + truth.sum()) for t in np.unique(flat[truth]))
    return {
        "auroc": roc_auc_score(truth, flat),
        "ap": average_precision_score(truth, flat),
        "f1_max": f1,
        "iou_max": iou,
        "aupro": reference_aupro(maps, masks),
        "aupimo": reference_aupimo(maps, masks, *band),
    }


FAMILIES = {
    "gaussian": lambda z, rng: z,
    "ties": lambda z, rng: np.round(2 * z),
    "equal": lambda z, rng: np.zeros_like(z),
    "saturated": lambda z, rng: 1 / (1 + np.exp(-12 * z)),
    "near_one": lambda z, rng: 1 - 1e-5 / (1 + np.exp(z)),
    "softmax": lambda z, rng: 1 / (1 + np.exp(-40 * z + 20)),
    "narrow": lambda z, rng: 10 + 0.01 * z,
    "around_zero": lambda z, rng: 0.02 * z,
    "tiny": lambda z, rng: np.abs(z) * 1e-30,
    "bimodal": lambda z, rng: np.where(rng.random(z.shape) < 0.3, z + 100, z),
    "negative": lambda z, rng: z - 50,
    "sum_of_four": lambda z, rng: 4 / (1 + np.exp(-z)),
    "inverted": lambda z, rng: -z,
    "far_bimodal": lambda z, rng: np.where(rng.random(z.shape) < 0.3, z + 1000, z),  # few cells beside very many
    "heavy_tailed": lambda z, rng: np.exp(5 * z),
    "two_narrow": lambda z, rng: np.where(rng.random(z.shape) < 0.5, 10 + 0.01 * z, 0.01 * z - 5),
}
SHAPES = ("blobs", "tiny_regions", "imbalanced", "diagonal")


def problem(family, shape, seed, count=6, side=20):
    """Maps (float32) and masks of a family; half the images are normal."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, side, side), dtype=bool)
    for mask in masks[: count // 2]:
        if shape == "blobs":
            for y, x, h, w in rng.integers(1, 8, (2, 4)):
                mask[2 * y : 2 * y + h, 2 * x : 2 * x + w] = True
        elif shape == "tiny_regions":
            mask[rng.random(mask.shape) < 0.03] = True
            mask[0, 0] = True
        elif shape == "diagonal":  # one region only if diagonal neighbours count
            np.fill_diagonal(mask, True)
    if shape == "imbalanced":
        masks[0, 3, 4] = True
    z = rng.normal(size=masks.shape) + 1.2 * masks
    return FAMILIES[family](z, rng).astype(np.float32), masks


def measured(maps, masks, mode, band, **options):
    metric = PixelMetrics(mode, pimo_band=band, **options)
    metric.update(torch.from_numpy(maps), torch.from_numpy(masks))
    return metric.result()


@pytest.mark.slow
@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(FAMILIES)), st.sampled_from(SHAPES), st.integers(0, 10_000))
def test_exact_equals_the_definitions_and_streaming_is_within_its_bound(family, shape, seed):
    band = (1e-2, 0.3)  # the images are small
    maps, masks = problem(family, shape, seed)
    expected = reference(maps, masks, band)
    exact, streamed = (measured(maps, masks, mode, band) for mode in ("exact", "streaming"))
    for name in NAMES:
        tolerance = 5e-5 if name == "aupimo" else 1e-6  # the reference integrates numerically
        assert getattr(exact, name) == pytest.approx(expected[name], abs=tolerance), name
        assert getattr(streamed, name) == pytest.approx(getattr(exact, name), abs=1e-4), name
    for result in (exact, streamed):
        flagged = maps >= np.float32(result.f1_threshold)
        f1 = 2 * (flagged & masks).sum() / (flagged.sum() + masks.sum())
        assert f1 == pytest.approx(result.f1_max, abs=1e-4)


def test_a_small_category_is_exact_until_it_grows(monkeypatch):
    maps, masks = problem("gaussian", "blobs", 4)
    exact, small = (measured(maps, masks, mode, (1e-2, 0.3)) for mode in ("exact", "streaming"))
    assert small == exact
    monkeypatch.setattr("vlad.metrics.pixel.KEPT", 1000)
    grown = measured(maps, masks, "streaming", (1e-2, 0.3))
    assert grown != exact
    assert grown[:6] == pytest.approx(exact[:6], abs=1e-3)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_streaming_bound_on_many_pixels(family):
    maps, masks = problem(family, "blobs", 1, count=30, side=200)
    exact, streamed = (measured(maps, masks, mode, (1e-5, 1e-4)) for mode in ("exact", "streaming"))
    for name in NAMES:
        assert getattr(streamed, name) == pytest.approx(getattr(exact, name), abs=1e-4), name


@pytest.mark.parametrize("limit", [0.01, 0.05, 1.0])
def test_any_limit(limit):
    maps, masks = problem("gaussian", "blobs", 3)
    result = measured(maps, masks, "exact", (1e-2, 0.3), pro_limits=[limit])
    assert result.aupro == pytest.approx(reference_aupro(maps, masks, limit), abs=1e-6)
    assert 0 <= result.aupro <= 1
    for wrong in ({"pro_limits": [0]}, {"pro_limits": [0.3, 1.5]}, {"pro_limits": []}, {"pimo_band": (1e-4, 1e-5)}):
        with pytest.raises(ValueError, match=r"lie in \(0, 1\]"):
            PixelMetrics(**wrong)


def published_steps(maps, masks, limit=0.3):
    """AnomalyCLIP's and APRIL-GAN's evaluation, as the specification describes it."""
    low, high = maps.min(), maps.max()
    fprs, pros = [], []
    for threshold in np.arange(low, high, (high - low) / 200):
        flagged = maps > threshold
        labelled = [ndimage.label(mask, EIGHT) for mask in masks]
        overlaps = [f[lab == r].mean() for f, (lab, n) in zip(flagged, labelled, strict=True) for r in range(1, n + 1)]
        pros.append(np.mean(overlaps))
        fprs.append(flagged[~masks].mean())
    fprs, pros = np.array(fprs), np.array(pros)
    kept = fprs < limit
    fprs = (fprs[kept] - fprs[kept].min()) / (fprs[kept].max() - fprs[kept].min())
    return abs(np.trapezoid(pros[kept], fprs))


@pytest.mark.parametrize("protocol", ["anomalyclip", "april_gan"])
@pytest.mark.parametrize("family", ["gaussian", "sum_of_four", "bimodal"])
def test_stepped_protocols(protocol, family):
    maps, masks = problem(family, "blobs", 5)
    result = measured(maps, masks, "exact", (1e-2, 0.3), evaluation_protocol=protocol)
    assert result.aupro == pytest.approx(published_steps(maps, masks), abs=1e-6)
    assert result.auroc == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-9)
    with pytest.raises(VladError, match="set the mode to exact"):
        PixelMetrics(evaluation_protocol=protocol)
    assert np.isnan(measured(0 * maps, masks, "exact", (1e-2, 0.3), evaluation_protocol=protocol).aupro)


def test_adaclips_protocol_puts_zero_where_undefined_and_has_no_pro():
    maps, masks = problem("gaussian", "blobs", 5)
    assert np.isnan(measured(maps, masks, "streaming", (1e-2, 0.3), evaluation_protocol="adaclip").aupro)
    result = measured(maps, np.zeros_like(masks), "streaming", (1e-2, 0.3), evaluation_protocol="adaclip")
    assert (result.auroc, result.ap, result.f1_max) == (0.0, 0.0, 0.0)
    with pytest.raises(VladError, match="no evaluation protocol is named 'mvtecad'; did you mean mvtec"):
        PixelMetrics(evaluation_protocol="mvtecad")


@pytest.mark.parametrize("mode", ["exact", "streaming"])
@pytest.mark.parametrize(("value", "reason"), [(False, "no anomalous samples"), (True, "no normal samples")])
def test_one_kind_of_pixel_is_nan_with_a_reason(mode, value, reason):
    result = measured(
        np.random.default_rng(0).random((2, 4, 4), np.float32), np.full((2, 4, 4), value), mode, (1e-2, 0.3)
    )
    assert np.isnan(result[:7]).all()
    assert result.undefined == reason
    assert PixelMetrics(mode).result().undefined == "no samples"


@pytest.mark.parametrize("mode", ["exact", "streaming"])
def test_without_normal_images_only_aupimo_is_undefined(mode):
    maps, masks = problem("gaussian", "blobs", 2)
    result = measured(maps[:3], masks[:3], mode, (1e-2, 0.3))
    assert np.isnan(result.aupimo)
    assert not np.isnan(result[:5]).any()
    assert result.undefined == "no normal images for aupimo"


@pytest.mark.parametrize("mode", ["exact", "streaming"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused(mode, bad):
    maps = torch.rand(1, 4, 4)
    maps[0, 1, 1] = bad
    with pytest.raises(ValueError, match="NaN or infin"):
        PixelMetrics(mode).update(maps, torch.zeros(1, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize("mode", ["exact", "streaming"])
def test_types_sizes_batches_and_order_do_not_matter(mode):
    maps, masks = (torch.from_numpy(a) for a in problem("gaussian", "blobs", 7))
    small_maps, small_masks = (torch.from_numpy(a) for a in problem("gaussian", "blobs", 8, side=16))
    whole, parts = PixelMetrics(mode), PixelMetrics(mode)
    whole.update(maps, masks)
    whole.update(small_maps, small_masks)
    for kind, m, k in ((torch.uint8, small_maps, small_masks), (torch.int64, maps, masks)):
        for i in torch.randperm(len(m), generator=torch.Generator().manual_seed(0)).tolist():
            parts.update(m[i], (k[i] * 3).to(kind))
    assert parts.result()[:7] == pytest.approx(whole.result()[:7], abs=1e-12, nan_ok=True)
    half = PixelMetrics(mode)
    half.update(maps.to(torch.bfloat16), masks)
    as_float = PixelMetrics(mode)
    as_float.update(maps.to(torch.bfloat16).float(), masks)
    assert half.result() == as_float.result()
    with pytest.raises(ValueError, match="alike"):
        whole.update(maps, small_masks)


@pytest.mark.parametrize("mode", ["exact", "streaming"])
def test_reset_pickle_and_pooling(mode):
    maps, masks = (torch.from_numpy(a) for a in problem("gaussian", "blobs", 9))
    metric, first, second = PixelMetrics(mode), PixelMetrics(mode), PixelMetrics(mode)
    metric.update(maps, masks)
    again = pickle.loads(pickle.dumps(metric))
    assert again.result() == metric.result()
    first.update(maps[:2], masks[:2])
    second.update(maps[2:], masks[2:])
    assert PixelMetrics.pooled([first, second]).result()[:7] == pytest.approx(metric.result()[:7], abs=1e-12)
    metric.reset()
    assert metric.result().undefined == "no samples"
    metric.update(maps, masks)
    assert metric.result() == again.result()


def test_memory_is_bounded():
    metric = PixelMetrics()
    for seed in range(4):
        maps, masks = problem("around_zero", "blobs", seed, side=250)
        metric.update(torch.from_numpy(maps), torch.from_numpy(masks))
        assert metric._kept() <= KEPT
    assert sum(state.numel() for state in metric.histograms) * 8 < 6e6


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=200))
def test_bins_keep_the_order_of_any_floats_and_equal_floats_together(values):
    scores = torch.tensor(values, dtype=torch.float32)
    histogram = Histogram(Histogram.empty())
    bins = histogram.bins(scores).long()
    assert 0 <= int(bins.min()) <= int(bins.max()) < histogram.layout.bins <= BINS
    tiny = 2.0**-102  # negative numbers above -2^-102 are one
    counted = torch.where((scores < 0) & (scores > -tiny), -tiny, scores)
    assert (bins[counted.argsort(stable=True)].diff() >= 0).all()
    assert all(len(bins[counted == score].unique()) == 1 for score in counted)
    low = torch.tensor([histogram.layout.bin_score(number) for number in bins.tolist()], dtype=torch.float64)
    assert (low <= scores.double() + 2 * tiny).all()
    width = 2.0**-6 * torch.minimum(scores.abs(), (1 - scores).abs().clamp(min=0.5**24)).double()  # of a cell
    assert (low >= scores.double() - 2 * width - 2 * tiny).all()


@pytest.mark.parametrize("kind", ["unit", "signed", "tiny", "large", "zeros"])
def test_bits_are_the_same_with_torch_and_with_numpy(kind):
    rng = torch.Generator().manual_seed(0)
    scores = {
        "unit": torch.rand(5000, generator=rng),
        "signed": torch.randn(5000, generator=rng),
        "tiny": torch.randn(5000, generator=rng) * 1e-31,
        "large": torch.randn(5000, generator=rng) * 1e30,
        "zeros": torch.tensor([0.0, -0.0, 1.0, 0.5, -1.0, 2.0]),
    }[kind]
    room = np.empty((2, len(scores)), np.int32)
    expected = _bits(scores.clone())
    assert np.array_equal(expected.numpy(), _bits_on_cpu(scores.numpy(), *room))
    for part in (scores.clamp(min=0), scores.clamp(max=0.5), scores.clamp(0, 1)):
        assert np.array_equal(_bits(part.clone()).numpy(), _bits_on_cpu(part.numpy(), *room))


def counted(*parts):
    state = Histogram.empty()
    for part in parts:
        Histogram(state).add(part, {2: 1, 3: torch.arange(len(part))})
    return state


@pytest.mark.parametrize("scale", [0.2, 1.0, 50.0])
def test_scores_are_counted_on_the_cpu_as_by_their_bins(scale):
    """Also where later ones make the bins of earlier ones coarser."""
    rng = torch.Generator().manual_seed(0)
    narrow, wide = torch.rand(150_000, generator=rng) * 0.01 + 0.4, torch.randn(90_000, generator=rng).exp() - scale
    scores = torch.cat([narrow, wide])
    histogram, other = Histogram(counted(scores)), Histogram(Histogram.empty())
    bins = other.bins(scores)
    assert torch.equal(histogram.rows[2], torch.bincount(bins, minlength=BINS))
    weighted = torch.zeros(BINS, dtype=torch.int64).index_add_(0, bins, torch.arange(len(scores)))
    assert torch.equal(histogram.rows[3], weighted)
    assert torch.equal(histogram.occupied, other.occupied)
    assert np.ptp(histogram.layout.fineness) >= 3  # the narrow range has finer bins


def test_merging_is_exact_in_any_order():
    rng = torch.Generator().manual_seed(0)
    parts = [scale * torch.randn(3000, generator=rng) for scale in (1, 100, 1e-3)] + [torch.rand(3000, generator=rng)]
    states = [counted(part) for part in parts]
    together = counted(*parts)
    assert int(Histogram(together).rows[2].sum()) == 12_000
    assert torch.equal(counted(*parts[::-1]), together)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        assert torch.equal(merge(torch.stack([states[i] for i in order])), together)
    nested = merge(torch.stack([merge(torch.stack(states[:2])), merge(torch.stack(states[2:]))]))
    assert torch.equal(nested, together)


def test_more_cells_never_make_bins_finer():
    """What exact merging rests on: bins that were folded once would have to be told apart again."""
    rng = np.random.default_rng(0)
    occupied = np.zeros(1 << 15, bool)
    before = Layout.of(occupied)
    for _ in range(300):
        octave = rng.integers(512)
        occupied[64 * octave + rng.integers(64, size=rng.integers(1, 30))] = True
        layout = Layout.of(occupied)
        assert layout.bins <= BINS
        finer = dict(zip(layout.cells, layout.fineness, strict=True))
        assert all(finer[cell] <= old for cell, old in zip(before.cells, before.fineness, strict=True))
        before = layout
    assert Layout.of(np.ones(1 << 15, bool)).bins == BINS


def test_regions_are_eight_connected_and_cached():
    mask = np.zeros((6, 6), dtype=bool)
    mask[[0, 1, 2], [0, 1, 2]] = True
    mask[5, 5] = True
    found = find_regions(mask)
    assert found.number == 2
    assert found.areas.tolist() == [3, 3, 3, 1]
    assert found.inside.tolist() == [0, 7, 14, 35]
    cache = RegionCache(1)
    first = cache.find(torch.from_numpy(mask), "a")
    assert (
        cache.find(torch.from_numpy(~mask), "a").areas is first.areas
        or cache.find(torch.from_numpy(mask), "a") == first
    )
    assert cache.find(torch.from_numpy(~mask), "b").number == 1
    assert set(cache._known) == {("a", 6, 6)}
