"""All pixel metrics of a category in one pass over the maps, exact or in bounded memory."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from vlad.errors import VladError
from vlad.metrics.base import ResultMetric, check_recalls, fpr_name, scalars
from vlad.metrics.curves import PixelResult, TieGroups, pixel_curves, pixel_result, sorted_groups
from vlad.metrics.histogram import SIZE, Histogram, merge
from vlad.metrics.protocols import get_protocol, stepped_aupro
from vlad.metrics.regions import RegionCache
from vlad.metrics.streaming import count_scores, streamed_groups
from vlad.metrics.threads import one_thread

__all__ = ["PixelMetrics", "aupro_name"]

KEPT = 1 << 19
"""Scores that the streaming mode keeps as they are; a category with no more than these is computed exactly."""

_LISTS = ("clean", "mixed", "anomalous", "areas", "image_areas")


def aupro_name(limit: float) -> str:
    """Returns what AUPRO up to a false-positive rate is called: ``aupro`` for the usual 0.3, else ``aupro_0.05``."""
    return "aupro" if limit == 0.3 else f"aupro_{limit:g}"


class PixelMetrics(ResultMetric[PixelResult]):
    """AUROC, AP, F1-max, AUPRO, IoU-max and AUPIMO of anomaly maps, for one category.

    ``streaming`` is exact up to half a million pixels; from there on it keeps one histogram of 5.5 MB whatever the
    number of images, within 1e-4 of the exact values for float32 scores of any range. ``exact`` keeps every score and
    equals scikit-learn's and MVTec's evaluation. Scores are taken as they are: any range, never a sigmoid. Definitions:
    :class:`vlad.metrics.PixelResult`.

    Examples:
        >>> metric = PixelMetrics()
        >>> mask = torch.zeros(2, 8, 8, dtype=torch.bool)
        >>> mask[1, 2:4, 2:4] = True
        >>> metric.update(mask.float() + 0.1 * torch.rand(2, 8, 8), mask)
        >>> metric.compute()["aupro"].item()
        1.0
        >>> metric.result().f1_threshold >= 1
        True
    """

    level: ClassVar[Literal["image", "pixel"]] = "pixel"

    regions: Tensor
    images: Tensor
    histograms: list[Tensor]  # none or one; two for a moment, after a forward or a merge
    clean: list[Tensor]
    mixed: list[Tensor]
    anomalous: list[Tensor]
    areas: list[Tensor]
    image_areas: list[Tensor]

    def __init__(
        self,
        mode: Literal["streaming", "exact"] = "streaming",
        pro_limits: Sequence[float] = (0.3,),
        pimo_band: tuple[float, float] = (1e-5, 1e-4),
        evaluation_protocol: str = "mvtec",
        cache: RegionCache | None = None,
        recalls: Sequence[float] = (0.95,),
        **options: Any,
    ) -> None:
        """Chooses how scores are kept and what is counted.

        Args:
            mode: ``"streaming"`` or ``"exact"``.
            pro_limits: FPRs up to which AUPRO integrates, in (0, 1]; see :func:`aupro_name`.
            pimo_band: FPR band of AUPIMO, on normal images.
            evaluation_protocol: How published code counts; see :mod:`vlad.metrics.protocols`. Those that step over
                the score range need ``mode="exact"``.
            cache: Remembers regions of masks; shared by the metrics of one evaluation.
            recalls: Recalls in (0, 1] at which the false-positive rate is told; see :func:`vlad.metrics.base.fpr_name`.
            options: As for :class:`torchmetrics.Metric`, such as ``dist_sync_on_step``.

        Raises:
            ValueError: A limit is out of range, or the mode is unknown.
            VladError: Unknown protocol, or one that needs the exact mode.
        """
        super().__init__(**options)
        self.pro_limits = tuple(dict.fromkeys(float(limit) for limit in pro_limits))
        limits = (*self.pro_limits, *pimo_band)
        if not all(0 < limit <= 1 for limit in limits) or not self.pro_limits or pimo_band[0] >= pimo_band[1]:
            raise ValueError(f"FPR limits lie in (0, 1], got pro_limits={pro_limits}, pimo_band={pimo_band}")
        if mode not in {"streaming", "exact"}:
            raise ValueError(f"the mode is streaming or exact, got {mode!r}")
        self.protocol = get_protocol(evaluation_protocol)
        if self.protocol.pro == "steps" and mode != "exact":
            raise VladError(f"protocol '{evaluation_protocol}' steps over the score range; set the mode to exact")
        self.mode, self.pimo_band, self.recalls = mode, pimo_band, check_recalls(recalls)
        self.cache = cache or RegionCache(0)
        self.add_state("regions", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in (*_LISTS, "histograms"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self._curves: dict[str, tuple[list[float], list[float]]] = {}

    @classmethod
    def configured(
        cls,
        *,
        mode: Any,
        pro_limits: Sequence[float],
        evaluation_protocol: str,
        cache: RegionCache,
        recalls: Sequence[float],
        **_: Any,
    ) -> PixelMetrics:
        """Returns the metric that an evaluation with these options asks for."""
        return cls(mode, pro_limits, evaluation_protocol=evaluation_protocol, cache=cache, recalls=recalls)

    def update(self, maps: Tensor, masks: Tensor, names: Sequence[Hashable] | None = None) -> None:
        """Adds anomaly maps.

        Args:
            maps: Scores (H, W) or (B, H, W), half, bfloat16 or float; sizes may differ from call to call.
            masks: Non-zero where anomalous, same shape, any bool or integer type.
            names: What each mask is known by, for the cache of regions; None or "" is never remembered.

        Raises:
            ValueError: Shapes differ, or a score is NaN or infinite.
        """
        if maps.shape != masks.shape or maps.ndim not in {2, 3}:
            raise ValueError(
                f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} must be (H, W) or (B, H, W), alike"
            )
        if maps.ndim == 2:
            maps, masks = maps[None], masks[None]
        with one_thread(maps.device):
            for i in range(len(maps)):
                self._add(maps[i].detach().to(torch.float32).flatten(), masks[i], names[i] if names else "")

    def _add(self, scores: Tensor, mask: Tensor, name: Hashable) -> None:
        if scores.numel() == 0:
            return
        if not bool(torch.isfinite(scores.sum())) and not bool(torch.isfinite(scores).all()):
            raise ValueError("scores hold NaN or infinity")
        inside, areas, count = self.cache.find(mask, name)
        found: dict[str, Tensor] = {"clean": scores}
        if count:
            self.regions = self.regions + count
            self.images = self.images + 1
            anomalous = scores[inside]
            sizes = areas.float()  # float like the rest: a rank without any gathers empty floats
            whole = torch.full_like(anomalous, inside.numel())
            found = {"mixed": scores, "anomalous": anomalous, "areas": sizes, "image_areas": whole}
        if self.mode == "streaming" and (self._histograms() or self._kept() + scores.numel() > KEPT):
            self._count([[found[name]] if name in found else [] for name in _LISTS])
            return
        for name, values in found.items():
            getattr(self, name).append(values.clone() if values is scores else values)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Adds a batch as :meth:`update` does and returns the metrics of that batch alone."""
        value = super().forward(*arguments, **options)
        self._bound()  # joining the batch with what there was may have kept too much
        return value

    def merge_state(self, incoming_state: Any) -> None:
        """Adds what another metric of this kind has seen; see :meth:`torchmetrics.Metric.merge_state`."""
        super().merge_state(incoming_state)
        self._bound()

    def _kept(self) -> int:
        """Returns how many scores are kept as they are."""
        return sum(part.numel() for name in ("clean", "mixed") for part in _parts(getattr(self, name)))

    def _histograms(self) -> list[Tensor]:
        """Returns the histograms so far; after a sync over ranks they are one flat tensor."""
        state = self.histograms
        parts = state.view(-1, SIZE).unbind() if isinstance(state, Tensor) else state
        return [part for part in parts if part.numel()]

    def _bound(self) -> None:
        """Counts what is kept in the histogram where it is too much, or where there is a histogram."""
        histograms, kept = len(self._histograms()), self._kept()
        if self.mode == "streaming" and (kept > KEPT or histograms > 1 or (kept and histograms)):
            self._count([[] for _ in _LISTS])

    def _count(self, lists: list[list[Tensor]]) -> None:
        """Counts scores in the histogram, and what is kept."""
        together = [[*new, *_parts(getattr(self, name))] for name, new in zip(_LISTS, lists, strict=True)]
        for name in _LISTS:
            setattr(self, name, [])
        self.histograms = [self._counted(together, in_place=True)]

    def _counted(self, lists: list[list[Tensor]], *, in_place: bool) -> Tensor:
        """Returns the state of a histogram of what was counted before and of scores, whose lists it empties."""
        with torch.inference_mode(False), torch.no_grad():  # it may live on and be edited outside a test loop
            before = self._histograms()
            if len(before) == 1:
                state = before[0] if in_place else before[0].clone()
            else:
                state = merge(before) if before else Histogram.empty().to(self.device)
            count_scores(Histogram(state), *lists)
            return state

    def sync(self, *arguments: Any, **options: Any) -> None:
        """Gathers the states of all ranks; a rank without a histogram takes part with an empty one of its type."""
        if isinstance(self.histograms, list) and not self.histograms:
            self.histograms.append(torch.empty(0, dtype=torch.int64, device=self.device))
        super().sync(*arguments, **options)

    @classmethod
    def pooled(cls, metrics: Sequence[PixelMetrics]) -> PixelMetrics:
        """Returns the metric of several categories' pixels together, set up as the first of them."""
        first = metrics[0]
        total = cls(first.mode, first.pro_limits, first.pimo_band, first.protocol.name, recalls=first.recalls)
        total = total.to(first.device)
        for one in metrics:
            total.regions = total.regions + one.regions
            total.images = total.images + one.images
        for name in (*_LISTS, "histograms"):
            setattr(total, name, [part for one in metrics for part in _parts(getattr(one, name))])
        total._update_count = sum(one._update_count for one in metrics)
        return total

    def compute(self) -> dict[str, Tensor]:
        """Returns the metrics over everything added, on all ranks, as scalar tensors by name."""
        with one_thread(self.device):
            self._result = result = self._measure()
        values = {"auroc": result.auroc, "ap": result.ap, "f1_max": result.f1_max}
        values |= {aupro_name(limit): value for limit, value in result.aupros.items()}
        values |= {"iou_max": result.iou_max, "aupimo": result.aupimo}
        return scalars(values | {fpr_name(at): value for at, value in result.fprs.items()}, self.device)

    def curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """Returns curves to be drawn, see :func:`vlad.metrics.curves.pixel_curves`."""
        self.compute()  # its value is cached
        return self._curves

    def _measure(self) -> PixelResult:
        streamed = self.mode == "streaming" and (self._kept() > KEPT or bool(self._histograms()))
        groups = self._streamed() if streamed else self._sorted()
        result = pixel_result(groups, limits=self.pro_limits, band=self.pimo_band, recalls=self.recalls)
        self._curves = pixel_curves(groups)
        if self.protocol.pro == "none":
            aupros = dict.fromkeys(self.pro_limits, float("nan"))
            result = result._replace(aupro=float("nan"), aupros=aupros)
        elif self.protocol.pro == "steps" and not groups.undefined:
            aupros = self._stepped()
            result = result._replace(aupro=aupros[self.pro_limits[0]], aupros=aupros)
        if result.undefined == groups.undefined != "" and self.protocol.undefined == 0:
            zero = 0.0
            result = result._replace(auroc=zero, ap=zero, f1_max=zero, iou_max=zero)
        return result

    def _streamed(self) -> TieGroups:
        # Other metrics of a collection may share the states, so that nothing is edited here.
        lists = [list(_parts(getattr(self, name))) for name in _LISTS]
        state = self._counted(lists, in_place=not self._kept())
        return streamed_groups(Histogram(state), regions=int(self.regions), images=int(self.images))

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

    def _stepped(self) -> dict[float, float]:
        clean, beside, anomalous, areas, _ = self._arrays()
        normal, regions = np.sort(np.concatenate([clean, beside])), int(self.regions)
        return {limit: stepped_aupro(normal, anomalous, areas, regions, limit=limit) for limit in self.pro_limits}


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
