"""All pixel metrics of a category in one pass over the maps, exact or in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vlad.errors import VladError
from vlad.metrics.curves import PixelResult, TieGroups, pixel_result, sorted_groups
from vlad.metrics.histogram import Histogram, merge, score_of
from vlad.metrics.protocols import get_protocol, stepped_aupro
from vlad.metrics.regions import RegionCache

__all__ = ["PixelMetrics"]

_UNIT = 1 << 44  # a region (or an image) is worth this much, shared evenly by its pixels, in integers
KEPT = 1 << 20
"""Scores that the streaming mode keeps as they are; a category with no more than these is computed exactly."""

_LISTS = ("clean", "mixed", "anomalous", "areas", "image_areas")
_CLEAN, _BESIDE, _ANOMALOUS, _REGION, _IMAGE = range(5)


class PixelMetrics(Metric):
    """AUROC, AP, F1-max, IoU-max, AUPRO and AUPIMO of anomaly maps, for one category.

    ``streaming`` is exact up to a million pixels; from there on it keeps one histogram of 21 MB whatever the number
    of images, within 1e-4 of the exact values for float32 scores of any range. ``exact`` keeps every score and
    equals scikit-learn's and MVTec's evaluation. Scores are taken as they are: any range, never a sigmoid. Definitions:
    :class:`vlad.metrics.PixelResult`.

    Examples:
        >>> metric = PixelMetrics()
        >>> mask = torch.zeros(2, 8, 8, dtype=torch.bool)
        >>> mask[1, 2:4, 2:4] = True
        >>> metric.update(mask.float() + 0.1 * torch.rand(2, 8, 8), mask)
        >>> metric.compute().aupro
        1.0
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    histogram: Tensor
    regions: Tensor
    images: Tensor
    clean: list[Tensor]
    mixed: list[Tensor]
    anomalous: list[Tensor]
    areas: list[Tensor]
    image_areas: list[Tensor]

    def __init__(
        self,
        mode: Literal["streaming", "exact"] = "streaming",
        pro_limit: float = 0.3,
        pimo_band: tuple[float, float] = (1e-5, 1e-4),
        protocol: str = "mvtec",
        cache: RegionCache | None = None,
    ) -> None:
        """Chooses how scores are kept and what is counted.

        Args:
            mode: ``"streaming"`` or ``"exact"``.
            pro_limit: FPR up to which AUPRO integrates, in (0, 1].
            pimo_band: FPR band of AUPIMO, on normal images.
            protocol: How published code counts; see :mod:`vlad.metrics.protocols`. Those that step over the
                score range need ``mode="exact"``.
            cache: Remembers regions of masks; shared by the metrics of one evaluation.

        Raises:
            ValueError: A limit is out of range.
            VladError: Unknown protocol, or one that needs the exact mode.
        """
        super().__init__()
        if not 0 < pro_limit <= 1 or not 0 < pimo_band[0] < pimo_band[1] <= 1:
            raise ValueError(f"FPR limits lie in (0, 1], got pro_limit={pro_limit}, pimo_band={pimo_band}")
        self.protocol = get_protocol(protocol)
        if self.protocol.pro == "steps" and mode != "exact":
            raise VladError(f"protocol '{protocol}' steps over the score range; set the mode to exact")
        self.mode, self.pro_limit, self.pimo_band = mode, pro_limit, pimo_band
        self.cache = cache or RegionCache(0)
        self.add_state("regions", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in _LISTS:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        if mode == "streaming":
            self.add_state("histogram", default=torch.empty(0, dtype=torch.int64), dist_reduce_fx=merge)

    def update(self, maps: Tensor, masks: Tensor, names: Sequence[str] | None = None) -> None:
        """Adds anomaly maps.

        Args:
            maps: Scores (H, W) or (B, H, W), half, bfloat16 or float; sizes may differ from call to call.
            masks: Non-zero where anomalous, same shape, any bool or integer type.
            names: What each mask is known by, for the cache of regions.

        Raises:
            ValueError: Shapes differ, or a score is NaN or infinite.
        """
        if maps.shape != masks.shape or maps.ndim not in {2, 3}:
            raise ValueError(
                f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} must be (H, W) or (B, H, W), alike"
            )
        if maps.ndim == 2:
            maps, masks = maps[None], masks[None]
        for i in range(len(maps)):
            self._add(maps[i].detach().to(torch.float32).flatten(), masks[i], names[i] if names else "")

    def _add(self, scores: Tensor, mask: Tensor, name: str) -> None:
        if scores.numel() == 0:
            return
        if not bool(torch.isfinite(scores.sum())) and not bool(torch.isfinite(scores).all()):
            raise ValueError("scores hold NaN or infinity")
        inside, areas, count = self.cache.find(mask, name)
        if count:
            self.regions += count
            self.images += 1
            self.mixed.append(scores.clone())
            self.anomalous.append(scores[inside])
            self.areas.append(areas.float())  # float like the rest: a rank without any gathers empty floats
            self.image_areas.append(torch.full_like(scores[inside], inside.numel()))
        else:
            self.clean.append(scores.clone())
        if self.mode == "streaming" and self._kept() > KEPT:
            self._spill()

    def _streams(self) -> bool:
        """Returns whether scores are counted in the histogram by now."""
        return self.mode == "streaming" and self.histogram.numel() > 0 and Histogram(self.histogram).used

    def _kept(self) -> int:
        """Returns how many scores are kept as they are."""
        return sum(part.numel() for name in ("clean", "mixed") for part in _parts(getattr(self, name)))

    def _spill(self) -> None:
        """Moves the scores kept so far into the histogram, which is made when it is first needed."""
        if not self.histogram.numel():
            self.histogram = Histogram.empty().to(self.device)
        histogram = Histogram(self.histogram)
        for name, row in (("clean", _CLEAN), ("mixed", _BESIDE)):
            scores = self._take(name)
            if scores.numel():
                histogram.count(histogram.bins(scores), row)
            del scores  # the maps are what memory goes to
        anomalous, areas, image_areas = (self._take(name) for name in _LISTS[2:])
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

    def _take(self, name: str) -> Tensor:
        """Returns a list state as one tensor and empties it."""
        taken = _joined(getattr(self, name), self.device)
        setattr(self, name, [])
        return taken

    def sync(self, *arguments: Any, **options: Any) -> None:
        """Gathers the states of all ranks; every rank takes part with a histogram, be it empty."""
        if self.mode == "streaming" and not self.histogram.numel():
            self.histogram = Histogram.empty().to(self.device)
        super().sync(*arguments, **options)

    @classmethod
    def pooled(cls, metrics: Sequence[PixelMetrics]) -> PixelMetrics:
        """Returns the metric of several categories' pixels together, set up as the first of them."""
        first = metrics[0]
        total = cls(first.mode, first.pro_limit, first.pimo_band, first.protocol.name).to(first.device)
        for one in metrics:
            total.regions += one.regions
            total.images += one.images
        if first.mode == "streaming":
            made = [one.histogram for one in metrics if one.histogram.numel()]
            total.histogram = merge(torch.stack(made)) if made else total.histogram
        for name in _LISTS:
            setattr(total, name, [part for one in metrics for part in _parts(getattr(one, name))])
        total._update_count = sum(one._update_count for one in metrics)
        return total

    def compute(self) -> PixelResult:
        """Returns all metrics over everything added, on all ranks."""
        streamed = self._streams() or (self.mode == "streaming" and self._kept() > KEPT)
        if streamed:
            self._spill()  # what other ranks had kept, and now is too much together
        groups = self._streamed() if streamed else self._sorted()
        result = pixel_result(groups, limit=self.pro_limit, band=self.pimo_band)
        if self.protocol.pro == "none":
            result = result._replace(aupro=float("nan"))
        elif self.protocol.pro == "steps" and not groups.undefined:
            result = result._replace(aupro=self._stepped())
        if result.undefined == groups.undefined != "" and self.protocol.undefined == 0:
            zero = 0.0
            result = result._replace(auroc=zero, ap=zero, f1_max=zero, iou_max=zero)
        return result

    def _streamed(self) -> TieGroups:
        histogram = Histogram(self.histogram)
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
            regions=int(self.regions),
            images=int(self.images),
            clean_total=clean_total,
        )

    def _arrays(self) -> tuple[np.ndarray, ...]:
        """Returns sorted scores of normal images, sorted normal scores beside defects, anomalous scores and areas."""
        clean, mixed, anomalous, areas, image_areas = (
            _joined(getattr(self, name), self.device).cpu().numpy() for name in _LISTS
        )
        beside = _without(np.sort(mixed), np.sort(anomalous))
        return np.sort(clean), beside, anomalous, areas.astype(np.int64), image_areas.astype(np.int64)

    def _sorted(self) -> TieGroups:
        clean, beside, anomalous, areas, image_areas = self._arrays()
        counts = {"regions": int(self.regions), "images": int(self.images)}
        return sorted_groups(clean, beside, anomalous, areas, image_areas, **counts)

    def _stepped(self) -> float:
        clean, beside, anomalous, areas, _ = self._arrays()
        normal = np.sort(np.concatenate([clean, beside]))
        return stepped_aupro(normal, anomalous, areas, int(self.regions), limit=self.pro_limit)


def _parts(state: list[Tensor] | Tensor) -> list[Tensor]:
    """Returns a list state's parts; after a sync over ranks it is one tensor."""
    return [state] if isinstance(state, Tensor) else state


def _joined(state: list[Tensor] | Tensor, device: torch.device) -> Tensor:
    """Returns a list state as one tensor."""
    parts = _parts(state)
    return dim_zero_cat(parts) if parts else torch.empty(0, device=device)


def _without(values: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Returns sorted values without the removed ones, which are among them and sorted too."""
    among_equals = np.arange(len(removed)) - np.searchsorted(removed, removed)
    return np.delete(values, np.searchsorted(values, removed) + among_equals)


class _BinScores:
    """Scores of bins, made one at a time: only one, the best threshold's, is ever asked for."""

    def __init__(self, bins: Tensor, cells: Tensor, fineness: int, used: np.ndarray) -> None:
        self.bins, self.cells, self.fineness, self.used = bins, cells, fineness, used

    def __getitem__(self, position: int) -> float:
        place = len(self.bins) - 1 - int(self.used[position])
        cell = int(self.cells[place >> self.fineness])
        return score_of(cell, int(self.bins[place]) & ((1 << self.fineness) - 1), self.fineness)
