"""The evaluation of a whole test set: image and pixel metrics per category, their mean, and every image's score.

The engine behind the callback :class:`vlad.callbacks.Evaluator`; usable alone: :meth:`Evaluation.update` with every
batch and its prediction, then :meth:`Evaluation.compute`.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from vlad.metrics.distributed import fill_empty_states, gather_objects, own_samples, sync_device
from vlad.metrics.protocols import get_protocol
from vlad.metrics.regions import RegionCache
from vlad.metrics.results import EvaluationResult, means
from vlad.metrics.sources import MetricSource, metric_sources
from vlad.types import Batch, Prediction, known_masks

__all__ = ["Combine", "Evaluation", "EvaluationResult", "finite_rows", "gather_objects", "own_samples"]

Category = tuple[str, str]  # data set, category
Row = dict[str, Any]
Combine = Callable[[Prediction, tuple[int, int]], Prediction]
"""Scores all images of a category together: their predictions without maps, and the size the maps had."""

_KINDS = ("normal", "anomalous")
_NOT_FINITE = "the method's score or map is not finite (NaN or infinity); check the weights and the precision"
_MISSING = {"image": "no labelled images", "pixel": "no masks"}


class Evaluation:
    """Collects predictions batch by batch; computes the table at the end, over all ranks."""

    def __init__(
        self,
        metrics: Sequence[str] | Mapping[str, Metric] = ("image", "pixel"),
        mode: Literal["streaming", "exact"] | None = None,
        pro_limits: Sequence[float] = (0.3, 0.05),
        evaluation_protocol: str = "mvtec",
        recalls: Sequence[float] = (0.95,),
    ) -> None:
        """Chooses what is measured and how pixels are counted.

        Args:
            metrics: Names of metrics, see :mod:`vlad.metrics.registry`; or metrics by name, which are cloned.
            mode: As for :class:`vlad.metrics.PixelMetrics`; by default streaming, unless the protocol needs exact.
            pro_limits: FPRs up to which AUPRO integrates.
            evaluation_protocol: Whose evaluation is reproduced; see :mod:`vlad.metrics.protocols`.
            recalls: Recalls at which the false-positive rate is told.
        """
        protocol = get_protocol(evaluation_protocol)
        self.protocol = evaluation_protocol
        options = {
            "mode": mode or ("exact" if protocol.pro == "steps" else "streaming"),
            "pro_limits": tuple(pro_limits),
            "evaluation_protocol": evaluation_protocol,
            "recalls": tuple(recalls),
            "cache": RegionCache(),
        }
        self._start(metric_sources(metrics, **options))
        names = [source.name for source in self._sources]
        self.settings: dict[str, Any] = {"metrics": names, **options}
        del self.settings["cache"]

    def _start(self, sources: list[MetricSource]) -> None:
        self._sources = sources
        self.reset()

    def reset(self) -> None:
        """Forgets everything added."""
        self._pixels: dict[Category | None, dict[str, Metric]] = {}  # None: of all categories together
        self._rows: list[Row] = []
        self._stages: dict[str, Evaluation] = {}
        self.result: EvaluationResult | None = None

    def _of(self, level: str) -> list[MetricSource]:
        return [source for source in self._sources if source.level == level]

    def _metric(self, category: Category | None, source: MetricSource, device: torch.device) -> Metric:
        metrics = self._pixels.setdefault(category, {})
        if source.name not in metrics:
            metrics[source.name] = source.new().to(device)
        return metrics[source.name]

    def _stage(self, name: str) -> Evaluation:
        """Returns the evaluation of an earlier prediction, of the same kind as this one."""
        if name not in self._stages:
            self._stages[name] = stage = object.__new__(Evaluation)
            stage._start(self._sources)
        return self._stages[name]

    def update(self, batch: Batch, prediction: Prediction, *, rank: int = 0, world_size: int = 1) -> None:
        """Adds a batch. Repetitions by which a distributed sampler pads are left out.

        Args:
            batch: The batch with labels and masks.
            prediction: What the method said of it.
            rank: This process.
            world_size: Number of processes.

        An image whose score or map is NaN or infinite counts in no metric; its row carries the error.
        """
        maps, scores = prediction.anomaly_map, prediction.image_score
        finite = finite_rows(prediction).tolist()
        for name, earlier in (prediction.stages or {}).items():
            self._stage(name).update(batch, earlier, rank=rank, world_size=world_size)
        own = own_samples(batch, rank, world_size)
        known = known_masks(batch).tolist()
        size = tuple(maps.shape[1:])
        categories: dict[Category, list[int]] = {}
        for i in own:
            category = (sys.intern(batch["dataset"][i]), sys.intern(batch["category"][i]))  # one text for all rows
            if known[i] and finite[i]:
                categories.setdefault(category, []).append(i)
            row: Row = {"dataset": category[0], "category": category[1]}
            row |= {"image_id": batch["image_id"][i], "path": batch["path"][i], "label": int(batch["label"][i])}
            row |= {"image_score": float(scores[i]), "index": int(batch["index"][i])}
            row |= {"has_mask": known[i] and finite[i], "error": "" if finite[i] else _NOT_FINITE}
            row["size"] = size
            if prediction.score_components is not None:
                row["components"] = prediction.score_components[i].tolist()
            self._rows.append(row)
        for category, chosen in categories.items():
            self._update_pixels(category, batch, maps, chosen)

    def _update_pixels(self, category: Category, batch: Batch, maps: Tensor, chosen: list[int]) -> None:
        if "own_mask" in batch:
            for i in chosen:
                mask = batch["own_mask"][i].to(maps.device)
                scores = F.interpolate(maps[i][None, None], mask.shape, mode="bilinear", align_corners=False)[0]
                self._feed(category, batch, scores, mask[None], [i])
            return
        together = chosen == list(range(chosen[0], chosen[-1] + 1))
        rows = slice(chosen[0], chosen[-1] + 1) if together else chosen  # a slice is no copy
        some, masks = maps[rows], batch["mask"][rows] != 0
        self._feed(category, batch, some, masks, chosen)

    def _feed(self, category: Category, batch: Batch, some: Tensor, masks: Tensor, chosen: list[int]) -> None:
        # An id is unique within a data set and category of one split; its file and row tell splits apart.
        names = [(*category, batch["image_id"][i], batch["path"][i], int(batch["index"][i])) for i in chosen]
        for source in self._of("pixel"):
            options = {"names": names} if source.takes_names else {}
            source.update(self._metric(category, source, some.device), some, masks, **options)
            if not source.offers("pooled"):
                source.update(self._metric(None, source, some.device), some, masks, **options)

    def compute(
        self, combine: Combine | None = None, transductive: Literal["", "scores", "features"] = ""
    ) -> EvaluationResult:
        """Computes all metrics over everything added on all ranks; every rank gets the same result.

        Args:
            combine: Makes new image scores of all predictions of a category, for a transductive method.
            transductive: How the method was so, for the result; ``scores`` where ``combine`` is given.
        """
        import pandas as pd

        rows = sorted((row for part in gather_objects(self._rows) for row in part), key=lambda row: row["index"])
        by_category: dict[Category, list[Row]] = {}
        for row in rows:
            by_category.setdefault((row["dataset"], row["category"]), []).append(row)
        table: list[Row] = []
        undefined: list[dict[str, str]] = []
        columns: dict[str, str] = {}  # whose each one is
        curves: dict[Category, dict[str, Any]] = {}
        for category, chosen in by_category.items():
            chosen = [row for row in chosen if not row["error"]]
            if combine is not None and chosen:
                _combine(chosen, combine)
                chosen = [row for row in chosen if not row["error"]]
            line: Row = {"dataset": category[0], "category": category[1]}
            line |= {kind: sum(row["label"] == label for row in chosen) for label, kind in enumerate(_KINDS)}
            extra: Row = {}
            for source in self._sources:
                metric = self._fed(source, category, chosen)
                if metric is None:
                    reason = _MISSING[source.level]
                else:
                    values, details, reason = source.columns(metric, "/".join(category))
                    line |= self._own(values, source, columns)
                    extra |= details
                    curves.setdefault(category, {}).update(source.curves(metric))
                reason = reason if chosen else "no finite scores"
                if reason:
                    reason = reason.replace("no samples", _MISSING[source.level])
                    note = {"level": source.level, "metric": source.name}
                    note["reason"] = reason.replace("samples", f"{source.level}s")
                    undefined.append({"dataset": category[0], "category": category[1], **note})
            table.append({**line, **{name: value for name, value in extra.items() if name not in columns}})
        pooled: dict[str, float] = {}
        for source in self._sources if table else []:
            metric = self._fed(source, None, [row for row in rows if not row["error"]])
            values = {} if metric is None else source.columns(metric, "all categories")[0]
            pooled |= {name: value for name, value in values.items() if columns.get(name) == source.name}
        for row in rows:
            row["image_score"] = math.nan if row["error"] else row["image_score"]
        images = pd.DataFrame(rows).drop(columns=["components", "index", "has_mask", "size"], errors="ignore")
        stages = {name: self._stage(name).compute(combine, transductive) for name in self._stage_names()}
        order = [*(("dataset", "category", *_KINDS) if table else ()), *columns]
        categories = pd.DataFrame(table)
        categories = categories[[*order, *(name for name in categories if name not in order)]]
        transductive = "scores" if combine is not None else transductive
        mean = means(table, list(columns))
        self.result = EvaluationResult(categories, images, mean, pooled, undefined, stages, transductive, curves)
        return self.result

    def _stage_names(self) -> list[str]:
        return list(dict.fromkeys(name for part in gather_objects(list(self._stages)) for name in part))

    def _fed(self, source: MetricSource, category: Category | None, rows: list[Row]) -> Metric | None:
        """Returns a metric that has seen a category, or everything; None where there was nothing to see.

        Pixel metrics were fed batch by batch on each rank and gather by themselves; image scores are here on every
        rank, and may just have been combined.
        """
        asked = source.offers("why_undefined")  # it can say so where there was nothing
        if source.level == "image":
            labelled = [row for row in rows if row["label"] >= 0]
            if not labelled and not asked:
                return None
            metric = source.new()
            metric.distributed_available_fn = _no_other_rank
            scores = torch.tensor([row["image_score"] for row in labelled], dtype=torch.float32)
            source.update(metric, scores, torch.tensor([row["label"] for row in labelled], dtype=torch.int64))
            return metric
        if not asked and not any(row["has_mask"] for row in rows):
            return None
        device = next((metric.device for some in self._pixels.values() for metric in some.values()), sync_device())
        if category is None and source.offers("pooled"):
            parts = [some[source.name] for one, some in self._pixels.items() if one and source.name in some]
            metric = source.cls.pooled(parts)  # type: ignore[attr-defined]
        else:
            metric = self._metric(category, source, device)
        fill_empty_states(metric)
        return metric

    def _own(self, values: dict[str, float], source: MetricSource, columns: dict[str, str]) -> dict[str, float]:
        """Returns the values of columns that no other metric has, and notes them as this one's."""
        taken = dict.fromkeys(("dataset", "category", *_KINDS), "the table") | columns
        for name in values:
            if taken.setdefault(name, source.name) != source.name:
                warnings.warn(
                    f"the column '{name}' of metric '{source.name}' is left out: {taken[name]} has one of that name",
                    stacklevel=3,
                )
            else:
                columns[name] = source.name
        return {name: value for name, value in values.items() if columns.get(name) == source.name}


def finite_rows(prediction: Prediction) -> Tensor:
    """Returns which images of a batch have a finite score and map (B,), bool."""
    return prediction.anomaly_map.isfinite().flatten(1).all(1) & prediction.image_score.isfinite()


def _no_other_rank() -> bool:
    """Tells a metric that there is nothing to gather."""
    return False


def _combine(rows: list[Row], combine: Combine) -> None:
    """Replaces the image scores of a category's rows by those that a method makes of all of them."""
    nothing = torch.empty(len(rows), 0, 0)
    components = None
    if all("components" in row for row in rows):
        components = torch.tensor([row["components"] for row in rows])
    scores = torch.tensor([row["image_score"] for row in rows], dtype=torch.float32)
    combined = combine(Prediction(nothing, scores, nothing, components), rows[0]["size"])
    for row, score in zip(rows, combined.image_score.tolist(), strict=True):
        row["image_score"] = score
        row["error"] = "" if math.isfinite(score) else _NOT_FINITE
