"""How published code counts, as data, so that a table can be compared like with like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlad.errors import VladError, nearest

__all__ = ["PROTOCOLS", "Protocol", "get_protocol", "stepped_aupro"]


@dataclass(frozen=True)
class Protocol:
    """The differences between published evaluations, given maps and masks of one size.

    Attributes:
        name: Name in configs.
        pro: ``"exact"``: MVTec AD's evaluation. ``"steps"``: 200 equal steps over the score range, FPR below
            the limit stretched to [0, 1] (AnomalyCLIP, APRIL-GAN, ADer). ``"none"``: not computed.
        undefined: What a category with one kind of label counts as: NaN (left out of the mean) or 0.
    """

    name: str
    pro: Literal["exact", "steps", "none"] = "exact"
    undefined: float = float("nan")


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("mvtec"),
        Protocol("adaclip", pro="none", undefined=0.0),
        Protocol("anomalyclip", pro="steps"),
        Protocol("april_gan", pro="steps"),
    )
}
"""``mvtec`` is the default. AdaCLIP's code has no PRO and puts 0 into the mean where a metric is undefined."""


def get_protocol(name: str) -> Protocol:
    """Returns a protocol by name.

    Raises:
        VladError: Unknown name.
    """
    if name not in PROTOCOLS:
        raise VladError(f"no evaluation protocol is named '{name}'; {nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def stepped_aupro(
    normal: np.ndarray, anomalous: np.ndarray, areas: np.ndarray, regions: int, *, limit: float, steps: int = 200
) -> float:
    """Computes AUPRO as AnomalyCLIP's and APRIL-GAN's code does.

    Args:
        normal: Scores of normal pixels, sorted.
        anomalous: Scores of anomalous pixels (n,).
        areas: Area of each such pixel's region (n,).
        regions: Number of regions.
        limit: FPR below which points are kept.
        steps: Number of thresholds from the smallest score up to, not including, the largest.

    Returns:
        The area; NaN where fewer than two thresholds keep the FPR below the limit (the published code stops
        or divides by zero there).
    """
    low = min(normal[0], anomalous.min())
    high = max(normal[-1], anomalous.max())
    thresholds = np.arange(low, high, (high - low) / steps) if high > low else np.array([low])
    order = np.argsort(anomalous)
    ranked = anomalous[order]
    weight = np.concatenate([[0.0], np.cumsum(1.0 / areas[order])])
    pro = (weight[-1] - weight[np.searchsorted(ranked, thresholds, side="right")]) / regions
    fpr = 1 - np.searchsorted(normal, thresholds, side="right") / len(normal)
    pro, fpr = pro[fpr < limit], fpr[fpr < limit]
    if len(fpr) == 0 or fpr.max() == fpr.min():
        return float("nan")
    fpr = (fpr - fpr.min()) / (fpr.max() - fpr.min())
    return float(abs(np.trapezoid(pro, fpr)))
