"""Pixel scores in a histogram: how they get in, and the table of tie groups that is read from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlad.metrics.curves import TieGroups
from vlad.metrics.histogram import Histogram, score_of

__all__ = ["count_scores", "streamed_groups"]

_UNIT = 1 << 44  # a region (or an image) is worth this much, shared evenly by its pixels, in integers
_CLEAN, _BESIDE, _ANOMALOUS, _REGION, _IMAGE = range(5)


def count_scores(
    histogram: Histogram, clean: Tensor, mixed: Tensor, anomalous: Tensor, areas: Tensor, image_areas: Tensor
) -> None:
    """Adds scores to a histogram, in place.

    Args:
        histogram: Where to.
        clean: Scores of normal images (m,), float32.
        mixed: Scores of images with anomalous pixels, the anomalous ones among them (k,).
        anomalous: Scores of anomalous pixels (n,).
        areas: Size of each one's region (n,).
        image_areas: Anomalous pixels of each one's image (n,).
    """
    for scores, row in ((clean, _CLEAN), (mixed, _BESIDE)):
        if scores.numel():
            histogram.count(histogram.bins(scores), row)
    if anomalous.numel():
        bins = histogram.bins(anomalous).long()
        one = torch.ones_like(bins)
        for row, worth in (
            (_BESIDE, -one),
            (_ANOMALOUS, one),
            (_REGION, _UNIT // areas.long()),
            (_IMAGE, _UNIT // image_areas.long()),
        ):
            histogram.rows[row].index_add_(0, bins, worth)


def streamed_groups(histogram: Histogram, *, regions: int, images: int) -> TieGroups:
    """Reads the table of tie groups from a histogram: a bin is a group.

    Args:
        histogram: What :func:`count_scores` filled.
        regions: Number of regions.
        images: Number of images with anomalous pixels.
    """
    bins, cells, fineness = histogram.ordered()
    down = bins.flip(0)
    anomalous = histogram.rows[_ANOMALOUS, down].cpu().numpy()
    used = np.flatnonzero(anomalous)
    here = down[torch.from_numpy(used).to(down.device)]
    region, image = (histogram.rows[row, here].cpu().numpy() / _UNIT for row in (_REGION, _IMAGE))

    def upto(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns what is in each used bin, what is above it, and the total; edits the counts."""
        equal = counts[used]
        above = np.cumsum(counts, out=counts)[used] - equal
        return equal, above, int(counts[-1])

    clean, clean_above, clean_total = upto(histogram.rows[_CLEAN, down].cpu().numpy())
    beside, beside_above, beside_total = upto(histogram.rows[_BESIDE, down].cpu().numpy())
    return TieGroups(
        score=_BinScores(bins.cpu(), cells.cpu(), fineness, used),  # type: ignore[arg-type]
        anomalous=anomalous[used],
        normal=clean + beside,
        normal_above=clean_above + beside_above,
        anomalous_total=int(anomalous.sum()),
        normal_total=clean_total + beside_total,
        region=region,
        image=image,
        clean=clean,
        clean_above=clean_above,
        regions=regions,
        images=images,
        clean_total=clean_total,
    )


class _BinScores:
    """Scores of bins, made one at a time: only one, the best threshold's, is ever asked for."""

    def __init__(self, bins: Tensor, cells: Tensor, fineness: int, used: np.ndarray) -> None:
        self.bins, self.cells, self.fineness, self.used = bins, cells, fineness, used

    def __getitem__(self, position: int) -> float:
        place = len(self.bins) - 1 - int(self.used[position])
        cell = int(self.cells[place >> self.fineness])
        return score_of(cell, int(self.bins[place]) & ((1 << self.fineness) - 1), self.fineness)
