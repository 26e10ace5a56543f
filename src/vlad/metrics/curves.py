"""Every metric from one table of tie groups: what lies above, at, and below each anomalous score.

Between two scores of anomalous samples nothing that a metric counts can change but false positives, so the
groups of equal score that hold an anomalous sample carry all the information. Exact and streaming metrics
differ only in how they make this table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = [
    "PixelResult",
    "TieGroups",
    "aupimo",
    "aupro",
    "auroc",
    "average_precision",
    "f1_max",
    "fpr_at",
    "iou_max",
    "pixel_curves",
    "pixel_result",
    "sorted_groups",
]

Array = np.ndarray


@dataclass(frozen=True)
class TieGroups:
    """Samples of equal score that include an anomalous one, from the highest score down.

    Attributes:
        score: The group's score (lower edge of the bin, when streaming) (G,).
        anomalous: Anomalous samples in the group (G,).
        normal: Normal samples in the group (G,).
        normal_above: Normal samples of a higher score (G,).
        anomalous_total: All anomalous samples.
        normal_total: All normal samples.
        region: Anomalous samples in the group, each weighted by one over its region's size (G,).
        image: Likewise, by one over the anomalous samples of its image (G,).
        clean: Samples of normal images in the group (G,).
        clean_above: Samples of normal images of a higher score (G,).
        regions: Number of regions.
        images: Number of images with anomalous samples.
        clean_total: All samples of normal images.
    """

    score: Array
    anomalous: Array
    normal: Array
    normal_above: Array
    anomalous_total: int
    normal_total: int
    region: Array | None = None
    image: Array | None = None
    clean: Array | None = None
    clean_above: Array | None = None
    regions: int = 0
    images: int = 0
    clean_total: int = 0

    @property
    def undefined(self) -> str:
        """Why no ranking metric exists: ``"no samples"`` or one kind missing; "" if there is none."""
        if self.anomalous_total + self.normal_total == 0:
            return "no samples"
        if self.anomalous_total == 0:
            return "no anomalous samples"
        return "no normal samples" if self.normal_total == 0 else ""


def sorted_groups(
    clean: Array,
    beside: Array,
    anomalous: Array,
    areas: Array | None = None,
    image_areas: Array | None = None,
    *,
    regions: int = 0,
    images: int = 0,
) -> TieGroups:
    """Makes the exact table. Only the anomalous scores are sorted with what belongs to them: they are few.

    Args:
        clean: Sorted scores of samples of normal images; for image scores, of all normal images.
        beside: Sorted scores of normal samples of images with anomalous ones.
        anomalous: Scores of anomalous samples, in any order (n,).
        areas: Size of each one's region (n,).
        image_areas: Anomalous samples of each one's image (n,).
        regions: Number of regions.
        images: Number of images with anomalous samples.
    """
    order = np.argsort(anomalous)[::-1]
    ranked = anomalous[order]
    first = np.flatnonzero(np.concatenate([[True], np.diff(ranked) != 0])) if len(ranked) else np.empty(0, int)
    score = ranked[first]

    def summed(weights: Array) -> Array:
        return np.add.reduceat(weights[order], first) if len(first) else np.empty(0)

    def above_and_equal(values: Array) -> tuple[Array, Array]:
        left, right = np.searchsorted(values, score, side="left"), np.searchsorted(values, score, side="right")
        return len(values) - right, right - left

    clean_above, clean_equal = above_and_equal(clean)
    beside_above, beside_equal = above_and_equal(beside)
    return TieGroups(
        score=score,
        anomalous=summed(np.ones(len(anomalous), np.int64)),
        normal=clean_equal + beside_equal,
        normal_above=clean_above + beside_above,
        anomalous_total=len(anomalous),
        normal_total=len(clean) + len(beside),
        region=None if areas is None else summed(1.0 / areas),
        image=None if image_areas is None else summed(1.0 / image_areas),
        clean=clean_equal,
        clean_above=clean_above,
        regions=regions,
        images=images,
        clean_total=len(clean),
    )


def pixel_curves(groups: TieGroups) -> dict[str, tuple[list[float], list[float]]]:
    """Returns curves to be drawn, each as x and y of some hundred points; none where no ranking metric exists.

    ``roc``: recall over the false-positive rate; ``pr``: precision over recall; ``pro``: per-region overlap over the
    false-positive rate up to 0.3.
    """
    if groups.undefined:
        return {}
    fine = np.concatenate([np.linspace(0, 0.05, 50), np.linspace(0.05, 1, 76)[1:]])
    grid = np.linspace(0, 1, 101)
    found = {"roc": (fine, np.interp(fine, *_over_normal(groups, groups.anomalous, groups.anomalous_total)))}
    found["pr"] = (grid, _precision_at(groups, grid))
    if groups.region is not None and groups.regions:
        low = np.linspace(0, 0.3, 91)
        found["pro"] = (low, np.interp(low, *_over_normal(groups, groups.region, groups.regions)))
    return {name: (x.round(5).tolist(), np.clip(y, 0, 1).round(5).tolist()) for name, (x, y) in found.items()}


def _over_normal(groups: TieGroups, gain: Array, parts: int) -> tuple[Array, Array]:
    """Returns a rate over the false-positive rate as a polyline."""
    return _staircase(groups.normal_above, groups.normal, groups.normal_total, gain, parts)


def _precision_at(groups: TieGroups, recalls: Array) -> Array:
    """Returns the precision from the highest score down to where each recall is reached."""
    true, false = _flagged(groups)
    at = np.minimum(np.searchsorted(true / groups.anomalous_total, recalls), len(true) - 1)
    return true[at] / (true[at] + false[at])


def auroc(groups: TieGroups) -> float:
    """Returns the area under the ROC curve, ties counted half."""
    below = groups.normal_total - groups.normal_above - 0.5 * groups.normal
    return float((groups.anomalous * below).sum() / groups.anomalous_total / groups.normal_total)


def _flagged(groups: TieGroups) -> tuple[Array, Array]:
    """Returns true and false positives when everything from a group's score up is flagged (G,)."""
    return np.cumsum(groups.anomalous).astype(float), (groups.normal_above + groups.normal).astype(float)


def average_precision(groups: TieGroups) -> float:
    """Returns the step-wise average precision."""
    true, false = _flagged(groups)
    return float((groups.anomalous * (true / (true + false))).sum() / groups.anomalous_total)


def f1_max(groups: TieGroups) -> tuple[float, float]:
    """Returns the largest F1 over all thresholds, and the score from which flagging reaches it."""
    true, false = _flagged(groups)
    f1 = 2 * true / (true + false + groups.anomalous_total)
    best = int(f1.argmax())
    return float(f1[best]), float(groups.score[best])


def fpr_at(groups: TieGroups, recall: float) -> float:
    """Returns the smallest false-positive rate at which at least this share of the anomalous samples is flagged."""
    true, false = _flagged(groups)
    first = int(np.searchsorted(true, recall * groups.anomalous_total - 1e-9))
    return float(false[first] / groups.normal_total)


def iou_max(groups: TieGroups) -> float:
    """Returns the largest intersection over union over all thresholds."""
    true, false = _flagged(groups)
    return float((true / (false + groups.anomalous_total)).max())


def _staircase(above: Array, equal: Array, total: int, gain: Array, parts: int) -> tuple[Array, Array]:
    """Returns a rate over a false-positive rate as a polyline: flat up to each group, then a step across it."""
    x, y = np.empty((2, 2 * len(above) + 2))  # filled in place: of streamed scores these are most of the memory
    x[0], x[-1], y[0] = 0, 1, 0
    np.divide(above, total, out=x[1:-1:2])
    np.add(above, equal, out=x[2:-1:2])
    x[2:-1:2] /= total
    np.cumsum(gain, out=y[2:-1:2], dtype=float)
    y[2:-1:2] /= parts
    y[1::2] = y[:-1:2]
    return x, y


def _clip_to(x: Array, y: Array, low: float, high: float) -> tuple[Array, Array]:
    """Cuts a polyline to low ≤ x ≤ high, interpolating linearly; of a step at an end, only its inner side is kept."""
    first, last = int(np.searchsorted(x, low, side="right")), int(np.searchsorted(x, high, side="left"))
    start = np.interp(low, x, y)  # of several points at one x, the last
    end = y[last] if x[last] == high else np.interp(high, x[last - 1 : last + 1], y[last - 1 : last + 1])  # the first
    return np.concatenate([[low], x[first:last], [high]]), np.concatenate([[start], y[first:last], [end]])


def aupro(groups: TieGroups, limit: float) -> float:
    """Returns the area under per-region overlap over FPR in [0, limit], divided by the limit (MVTec AD)."""
    assert groups.region is not None
    x, y = _clip_to(*_over_normal(groups, groups.region, groups.regions), 0.0, limit)
    return float(np.trapezoid(y, x) / limit)


def aupimo(groups: TieGroups, low: float, high: float) -> float:
    """Returns the mean over anomalous images of the recall over log-FPR of normal images in [low, high] (AUPIMO)."""
    assert groups.image is not None
    assert groups.clean is not None
    assert groups.clean_above is not None
    x, y = _staircase(groups.clean_above, groups.clean, groups.clean_total, groups.image, groups.images)
    x, y = _clip_to(x, y, low, high)
    rise, run = np.diff(y), np.diff(x)
    slope = np.divide(rise, run, out=np.zeros_like(run), where=run > 0)
    area = (y[:-1] - slope * x[:-1]) * np.diff(np.log(x)) + slope * run
    return float(area.sum() / np.log(high / low))


class PixelResult(NamedTuple):
    """All pixel metrics of one category, in [0, 1]; NaN where undefined.

    Attributes:
        auroc: Area under the ROC curve, ties counted half.
        ap: Step-wise average precision.
        f1_max: Largest F1 over all thresholds.
        iou_max: Largest intersection over union over all thresholds.
        aupro: Area under per-region overlap up to the first FPR limit, over the limit.
        aupimo: Mean over anomalous images of the area under recall over log-FPR of normal images.
        f1_threshold: A threshold (score ≥ threshold is anomalous) that reaches ``f1_max``.
        aupros: AUPRO of every FPR limit, in the order they were given.
        fprs: Smallest false-positive rate at every recall, in the order they were given.
        undefined: Why values are NaN, or "".
    """

    auroc: float
    ap: float
    f1_max: float
    iou_max: float
    aupro: float
    aupimo: float
    f1_threshold: float
    aupros: dict[float, float]
    fprs: dict[float, float]
    undefined: str = ""


def pixel_result(
    groups: TieGroups, *, limits: Sequence[float], band: tuple[float, float], recalls: Sequence[float] = ()
) -> PixelResult:
    """Computes every pixel metric of a table.

    Args:
        groups: The table.
        limits: FPRs up to which AUPRO integrates.
        band: FPR band of AUPIMO.
        recalls: Recalls at which the false-positive rate is told.
    """
    nan = float("nan")
    if groups.undefined:
        return PixelResult(
            nan, nan, nan, nan, nan, nan, nan, dict.fromkeys(limits, nan), dict.fromkeys(recalls, nan), groups.undefined
        )
    best, threshold = f1_max(groups)
    aupros = {limit: aupro(groups, limit) for limit in limits}
    return PixelResult(
        auroc(groups),
        average_precision(groups),
        best,
        iou_max(groups),
        aupros[limits[0]],
        aupimo(groups, *band) if groups.clean_total else nan,
        threshold,
        aupros,
        {recall: fpr_at(groups, recall) for recall in recalls},
        "" if groups.clean_total else "no normal images for aupimo",
    )
