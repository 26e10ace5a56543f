"""The evaluation of a whole test set: image and pixel metrics per category, their mean, and every image's score.

This is the seam between the loops and the metrics: methods call :meth:`Evaluation.update` and
:meth:`Evaluation.compute` and know nothing of what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vlad.errors import DataError
from vlad.metrics.curves import PixelResult
from vlad.metrics.pixel import PixelMetrics
from vlad.metrics.protocols import get_protocol
from vlad.metrics.ranking import Ranking, ranking
from vlad.metrics.regions import RegionCache
from vlad.types import Batch, Prediction

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METRICS", "Evaluation", "EvaluationResult", "gather_objects", "own_samples"]

IMAGE = ("auroc", "ap", "f1_max")
PIXEL = ("auroc", "ap", "f1_max", "aupro", "iou_max", "aupimo")
METRICS = (*(f"image_{name}" for name in IMAGE), *(f"pixel_{name}" for name in PIXEL))
"""Columns of the metrics table, in order."""

Category = tuple[str, str]  # data set, category


@dataclass
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        categories: One row per category: ``dataset``, ``category``, counts, and the columns of
            :data:`METRICS`, in [0, 1] or NaN.
        images: One row per image: ``dataset``, ``category``, ``image_id``, ``path``, ``label``, ``image_score``.
        mean: Unweighted mean over the categories in which a metric is defined, per metric.
        pooled: The metrics of all categories' images and pixels together.
        undefined: Why a metric is NaN: data set, category, metric, reason.
        unrefined: The same before the method refined its maps; None where it does not.
    """

    categories: pd.DataFrame
    images: pd.DataFrame
    mean: dict[str, float]
    pooled: dict[str, float]
    undefined: list[dict[str, str]] = field(default_factory=list)
    unrefined: EvaluationResult | None = None


def gather_objects(local: Any) -> list[Any]:
    """Returns the object of every rank, in rank order; a list of one where there is one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [local]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, local)
    return everyone


def own_samples(batch: Batch, rank: int, world_size: int) -> list[int]:
    """Returns the positions in a batch that are not the padding of a distributed sampler.

    Lightning's sampler hands rank r the rows r, r + W, r + 2W, … and pads the last round by starting over at
    row 0; such a repetition never lands on the rank that owns the row.
    """
    if world_size == 1 or "index" not in batch:
        return list(range(len(batch["path"])))
    return [i for i, row in enumerate(batch["index"].tolist()) if row % world_size == rank]


_KINDS = ("normal", "anomalous")


def _columns(image: Ranking, pixel: PixelResult) -> dict[str, float]:
    """Returns the values of a line of the table, by column."""
    values = {f"image_{name}": getattr(image, name) for name in IMAGE}
    return values | {f"pixel_{name}": getattr(pixel, name) for name in PIXEL}


def _sync_device() -> torch.device:
    """Returns the device that the process group can gather from."""
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    if initialized and torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


class Evaluation:
    """Collects predictions batch by batch; computes the table at the end, over all ranks."""

    def __init__(
        self,
        mode: Literal["streaming", "exact"] | None = None,
        pro_limit: float = 0.3,
        protocol: str = "mvtec",
    ) -> None:
        """Chooses how pixels are counted.

        Args:
            mode: As for :class:`vlad.metrics.PixelMetrics`; by default streaming, unless the protocol needs exact.
            pro_limit: FPR up to which AUPRO integrates.
            protocol: Whose evaluation is reproduced; see :mod:`vlad.metrics.protocols`.
        """
        self.protocol = get_protocol(protocol)
        self.mode: Literal["streaming", "exact"] = mode or ("exact" if self.protocol.pro == "steps" else "streaming")
        self.pro_limit = pro_limit
        PixelMetrics(self.mode, pro_limit, protocol=protocol)  # refuses what does not go together
        self._regions = RegionCache()
        self._pixels: dict[Category, PixelMetrics] = {}
        self._images: list[dict[str, Any]] = []
        self._unrefined: Evaluation | None = None
        self.result: EvaluationResult | None = None

    def reset(self) -> None:
        """Forgets everything added."""
        self._pixels, self._images, self._unrefined, self.result = {}, [], None, None

    def _pixel_metric(self, category: Category, device: torch.device) -> PixelMetrics:
        if category not in self._pixels:
            metric = PixelMetrics(self.mode, self.pro_limit, protocol=self.protocol.name, cache=self._regions)
            nothing = torch.empty(0, 0)
            metric.update(nothing, nothing)  # a rank without an image of this category gathers like the others
            self._pixels[category] = metric.to(device)
        return self._pixels[category]

    def _before(self) -> Evaluation:
        """Returns the evaluation of what was said before a refinement, of the same kind as this one."""
        if self._unrefined is None:
            self._unrefined = Evaluation(self.mode, self.pro_limit, self.protocol.name)
            self._unrefined._regions = self._regions
        return self._unrefined

    def update(self, batch: Batch, prediction: Prediction, *, rank: int = 0, world_size: int = 1) -> None:
        """Adds a batch. Repetitions by which a distributed sampler pads are left out.

        Args:
            batch: The batch with labels and masks.
            prediction: What the method said of it.
            rank: This process.
            world_size: Number of processes.

        Raises:
            DataError: A score is NaN or infinite; the message names the image.
        """
        maps, scores = prediction.anomaly_map, prediction.image_score
        finite = maps.isfinite().flatten(1).all(1) & scores.isfinite()
        if not finite.all():
            path = batch["path"][int((~finite).nonzero()[0])]
            raise DataError(
                f"the scores of {path} are not finite (NaN or infinity); check the weights and the precision"
            )
        if prediction.unrefined is not None:
            self._before().update(batch, prediction.unrefined, rank=rank, world_size=world_size)
        for i in own_samples(batch, rank, world_size):
            category = (batch["dataset"][i], batch["category"][i])
            if batch["has_mask"][i]:
                self._pixel_metric(category, maps.device).update(maps[i], batch["mask"][i], [batch["mask_path"][i]])
            row: dict[str, Any] = {
                "dataset": category[0],
                "category": category[1],
                "image_id": batch["image_id"][i],
                "path": batch["path"][i],
            }
            row |= {
                "label": int(batch["label"][i]),
                "image_score": float(scores[i]),
                "index": int(batch["index"][i]),
            }
            if prediction.score_components is not None:
                row["terms"] = prediction.score_components[i].tolist()
            self._images.append(row)

    def compute(self, fuse: Callable[[Tensor], Tensor | None] = lambda terms: None) -> EvaluationResult:
        """Computes all metrics over everything added on all ranks; every rank gets the same result.

        Args:
            fuse: Combines the image terms (N, T) of a category's images to scores (N,), or returns None.
        """
        import pandas as pd

        rows = sorted((row for part in gather_objects(self._images) for row in part), key=lambda row: row["index"])
        device = next((metric.device for metric in self._pixels.values()), _sync_device())
        table: list[dict[str, Any]] = []
        undefined: list[dict[str, str]] = []
        for category in dict.fromkeys((row["dataset"], row["category"]) for row in rows):
            chosen = [row for row in rows if (row["dataset"], row["category"]) == category]
            if all("terms" in row for row in chosen):
                fused = fuse(torch.tensor([row["terms"] for row in chosen]))
                for row, score in zip(chosen, fused.tolist() if fused is not None else [], strict=False):
                    row["image_score"] = score
            line: dict[str, Any] = {"dataset": category[0], "category": category[1]}
            line |= {kind: sum(row["label"] == label for row in chosen) for label, kind in enumerate(_KINDS)}
            image, pixel = self._image_ranking(chosen), self._pixel_metric(category, device).compute()
            line |= _columns(image, pixel)
            line |= {"image_f1_threshold": image.f1_threshold, "pixel_f1_threshold": pixel.f1_threshold}
            for level, reason in (("image", image.undefined), ("pixel", pixel.undefined)):
                if reason:
                    whole = {"image": "no labelled images", "pixel": "no masks"}[level]
                    reason = reason.replace("no samples", whole).replace("samples", f"{level}s")
                    undefined.append(
                        {"dataset": category[0], "category": category[1], "level": level, "reason": reason}
                    )
            table.append(line)
        pooled: dict[str, float] = {}
        if table:
            pixels = PixelMetrics.pooled(list(self._pixels.values())).compute()
            pooled = _columns(self._image_ranking(rows), pixels)
        images = pd.DataFrame(rows).drop(columns=["terms", "index"], errors="ignore")
        mean = {}
        for name in METRICS:
            defined = [line[name] for line in table if not math.isnan(line[name])]
            mean[name] = sum(defined) / len(defined) if defined else float("nan")
        refines = any(gather_objects(self._unrefined is not None))
        unrefined = self._before().compute(fuse) if refines else None
        self.result = EvaluationResult(pd.DataFrame(table), images, mean, pooled, undefined, unrefined)
        return self.result

    def _image_ranking(self, rows: list[dict[str, Any]]) -> Ranking:
        labelled = [row for row in rows if row["label"] >= 0]
        scores, labels = ([row[name] for row in labelled] for name in ("image_score", "label"))
        result = ranking(torch.tensor(scores), torch.tensor(labels))
        if result.undefined and labelled and self.protocol.undefined == 0:
            return result._replace(auroc=0.0, ap=0.0, f1_max=0.0)
        return result
