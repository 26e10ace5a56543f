"""Pixel scores in a histogram: how they get in, and the table of tie groups that is read from it."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from vlad.metrics.curves import TieGroups
from vlad.metrics.histogram import Histogram, Layout

__all__ = ["count_scores", "streamed_groups"]

_UNIT = 1 << 44  # a region (or an image) is worth this much, shared evenly by its pixels, in integers
_CLEAN, _BESIDE, _ANOMALOUS, _REGION, _IMAGE = range(5)


def count_scores(
    histogram: Histogram,
    clean: list[Tensor],
    mixed: list[Tensor],
    anomalous: list[Tensor],
    areas: list[Tensor],
    image_areas: list[Tensor],
) -> None:
    """Adds scores to a histogram, in place; empties the lists as it goes, so that memory is free again.

    Args:
        histogram: Where to.
        clean: Scores of normal images, each (m,), float32.
        mixed: Scores of images with anomalous pixels, the anomalous ones among them, each (k,).
        anomalous: Scores of anomalous pixels, each (n,).
        areas: Size of each one's region, each (n,).
        image_areas: Anomalous pixels of each one's image, each (n,).
    """
    for scores, row in ((clean, _CLEAN), (mixed, _BESIDE)):
        while scores:
            histogram.add(scores.pop(), {row: 1})
    while anomalous:
        region, image = _UNIT // areas.pop().long(), _UNIT // image_areas.pop().long()
        histogram.add(anomalous.pop(), {_BESIDE: -1, _ANOMALOUS: 1, _REGION: region, _IMAGE: image})


def streamed_groups(histogram: Histogram, *, regions: int, images: int) -> TieGroups:
    """Reads the table of tie groups from a histogram: a bin is a group.

    Args:
        histogram: What :func:`count_scores` filled.
        regions: Number of regions.
        images: Number of images with anomalous pixels.
    """
    layout = histogram.layout
    rows = histogram.rows[:, : layout.bins].cpu().numpy()[:, ::-1]  # from the highest score down
    used = np.flatnonzero(rows[_ANOMALOUS])

    def upto(row: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns what is in each used bin, what is above it, and the total."""
        equal, within = rows[row][used], np.cumsum(rows[row])
        return equal, within[used] - equal, int(within[-1]) if len(within) else 0

    clean, clean_above, clean_total = upto(_CLEAN)
    beside, beside_above, beside_total = upto(_BESIDE)
    anomalous = rows[_ANOMALOUS][used]
    return TieGroups(
        score=_BinScores(layout, layout.bins - 1 - used),  # type: ignore[arg-type]
        anomalous=anomalous,
        normal=clean + beside,
        normal_above=clean_above + beside_above,
        anomalous_total=int(anomalous.sum()),
        normal_total=clean_total + beside_total,
        region=rows[_REGION][used] / _UNIT,
        image=rows[_IMAGE][used] / _UNIT,
        clean=clean,
        clean_above=clean_above,
        regions=regions,
        images=images,
        clean_total=clean_total,
    )


class _BinScores:
    """Scores of bins, made one at a time: only one, the best threshold's, is ever asked for."""

    def __init__(self, layout: Layout, bins: np.ndarray) -> None:
        self.layout, self.bins = layout, bins

    def __getitem__(self, position: int) -> float:
        return self.layout.bin_score(int(self.bins[position]))
