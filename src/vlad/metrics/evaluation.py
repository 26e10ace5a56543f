"""The evaluation of a whole test set: image and pixel metrics per category, their mean, and every image's score.

This is the seam between the loops and the metrics: methods call :meth:`Evaluation.update` and
:meth:`Evaluation.compute` and know nothing of what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlad.errors import DataError
from vlad.metrics.ranking import RankingMetrics, ranking
from vlad.types import Batch, Prediction

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METRICS", "Evaluation", "EvaluationResult", "gather_objects", "own_samples"]

METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max")
"""Columns of the metrics table, in order."""

Category = tuple[str, str]  # data set, category


@dataclass
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        categories: One row per category: ``dataset``, ``category``, counts, and the columns of
            :data:`METRICS`, in [0, 1] or NaN.
        images: One row per image: ``dataset``, ``category``, ``key``, ``path``, ``label``, ``image_score``.
        mean: Unweighted mean over the categories in which a metric is defined, per metric.
        undefined: Why a metric is NaN: data set, category, metric, reason.
    """

    categories: pd.DataFrame
    images: pd.DataFrame
    mean: dict[str, float]
    undefined: list[dict[str, str]] = field(default_factory=list)


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


def _sync_device() -> torch.device:
    """Returns the device that the process group can gather from."""
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    if initialized and torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


class Evaluation:
    """Collects predictions batch by batch; computes the table at the end, over all ranks."""

    def __init__(self) -> None:
        self._pixels: dict[Category, RankingMetrics] = {}
        self._images: list[dict[str, Any]] = []
        self.result: EvaluationResult | None = None

    def reset(self) -> None:
        """Forgets everything added."""
        self._pixels, self._images, self.result = {}, [], None

    def _pixel_metric(self, category: Category, device: torch.device) -> RankingMetrics:
        if category not in self._pixels:
            metric = RankingMetrics().to(device)
            nothing = torch.empty(0, device=device)
            metric.update(nothing, nothing)  # a rank without an image of this category gathers like the others
            self._pixels[category] = metric
        return self._pixels[category]

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
        for i in own_samples(batch, rank, world_size):
            category = (batch["dataset"][i], batch["category"][i])
            if batch["has_mask"][i]:
                self._pixel_metric(category, maps.device).update(maps[i], batch["mask"][i])
            row: dict[str, Any] = {
                "dataset": category[0],
                "category": category[1],
                "key": batch["key"][i],
                "path": batch["path"][i],
            }
            row |= {
                "label": int(batch["label"][i]),
                "image_score": float(scores[i]),
                "index": int(batch["index"][i]),
            }
            if prediction.image_terms is not None:
                row["terms"] = prediction.image_terms[i].tolist()
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
            labelled = [row for row in chosen if row["label"] >= 0]
            image = ranking(
                torch.tensor([row["image_score"] for row in labelled]),
                torch.tensor([row["label"] for row in labelled]),
            )
            pixel = self._pixel_metric(category, device).compute()
            line: dict[str, Any] = {"dataset": category[0], "category": category[1]}
            line |= {
                "normal": sum(row["label"] == 0 for row in chosen),
                "anomalous": sum(row["label"] == 1 for row in chosen),
            }
            for level, result, noun in (("image", image, "labelled images"), ("pixel", pixel, "masks")):
                for name in ("auroc", "ap", "f1_max"):
                    line[f"{level}_{name}"] = getattr(result, name)
                if result.undefined:
                    reason = result.undefined.replace("no samples", f"no {noun}").replace("samples", f"{level}s")
                    undefined.append(
                        {"dataset": category[0], "category": category[1], "level": level, "reason": reason}
                    )
            table.append(line)
        images = pd.DataFrame(rows).drop(columns=["terms", "index"], errors="ignore")
        mean = {}
        for name in METRICS:
            defined = [line[name] for line in table if not math.isnan(line[name])]
            mean[name] = sum(defined) / len(defined) if defined else float("nan")
        self.result = EvaluationResult(pd.DataFrame(table), images, mean, undefined)
        return self.result
