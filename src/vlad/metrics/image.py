"""Metrics of a ranking, such as of image scores: AUROC, average precision and F1-max, exact.

Definitions are scikit-learn's; scores are taken as they are: any range, no sigmoid, no clipping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from vlad.metrics.base import ResultMetric, check_recalls, fpr_name, scalars
from vlad.metrics.curves import auroc, average_precision, f1_max, fpr_at, sorted_groups
from vlad.metrics.protocols import get_protocol

__all__ = ["Ranking", "RankingMetrics", "ranking"]


class Ranking(NamedTuple):
    """The metrics of one ranking; all NaN where only one kind of label occurs.

    Attributes:
        auroc: Area under the ROC curve, ties counted half.
        ap: Average precision, step-wise.
        f1_max: Largest F1 over all thresholds.
        f1_threshold: A threshold (score ≥ threshold is anomalous) that reaches it.
        fprs: Smallest false-positive rate at every recall that was asked for.
        undefined: Why the values are NaN, or "".
    """

    auroc: float
    ap: float
    f1_max: float
    f1_threshold: float
    fprs: dict[float, float]
    undefined: str = ""


def ranking(scores: Tensor, labels: Tensor, recalls: Sequence[float] = ()) -> Ranking:
    """Computes AUROC, AP and F1-max of scores against binary labels.

    Args:
        scores: Any finite floats, any shape; higher means more anomalous.
        labels: True (or 1) where anomalous, same shape.
        recalls: Recalls at which the false-positive rate is told.

    Returns:
        The metrics; NaN with the reason if all labels are alike or there are none.

    Examples:
        >>> result = ranking(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
        >>> result.auroc, round(result.ap, 4)
        (0.75, 0.8333)
    """
    values = scores.detach().flatten().float().cpu().numpy()
    anomalous = labels.detach().flatten().cpu().numpy() != 0
    groups = sorted_groups(np.sort(values[~anomalous]), values[:0], values[anomalous])
    if groups.undefined:
        nan = float("nan")
        return Ranking(nan, nan, nan, nan, dict.fromkeys(recalls, nan), groups.undefined)
    fprs = {recall: fpr_at(groups, recall) for recall in recalls}
    return Ranking(auroc(groups), average_precision(groups), *f1_max(groups), fprs)


class RankingMetrics(ResultMetric[Ranking]):
    """AUROC, AP and F1-max of scores, such as of images, over batches and ranks.

    torchmetrics' own ``BinaryAUROC`` applies a sigmoid to just those batches that leave [0, 1], so that raw
    anomaly scores give values that depend on the batches. This class never transforms a score.

    Examples:
        >>> metric = RankingMetrics()
        >>> metric.update(torch.tensor([0.1, 7.0]), torch.tensor([0, 1]))
        >>> metric.compute()["auroc"].item()
        1.0
        >>> metric.result().f1_threshold
        7.0
    """

    level: ClassVar[Literal["image", "pixel"]] = "image"

    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self, evaluation_protocol: str = "mvtec", recalls: Sequence[float] = (0.95,), **options: Any) -> None:
        """Chooses what an undefined ranking counts as.

        Args:
            evaluation_protocol: How published code counts; see :mod:`vlad.metrics.protocols`.
            recalls: Recalls in (0, 1] at which the false-positive rate is told; see :func:`vlad.metrics.base.fpr_name`.
            options: As for :class:`torchmetrics.Metric`, such as ``dist_sync_on_step``.

        Raises:
            ValueError: A recall is out of range.
            VladError: Unknown protocol.
        """
        super().__init__(**options)
        self.recalls = check_recalls(recalls)
        self.protocol = get_protocol(evaluation_protocol)
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    @classmethod
    def configured(cls, *, evaluation_protocol: str, recalls: Sequence[float], **_: Any) -> RankingMetrics:
        """Returns the metric that an evaluation with these options asks for."""
        return cls(evaluation_protocol, recalls)

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Adds scores (any shape) and their labels (same shape, 1 or True where anomalous)."""
        self.scores.append(scores.detach().flatten().float())
        self.labels.append((labels.detach().flatten() != 0).float())  # float: a rank without any gathers empty floats

    def compute(self) -> dict[str, Tensor]:
        """Returns the metrics over everything added, on all ranks, as scalar tensors by name."""
        if isinstance(self.scores, list) and not self.scores:  # after a sync over ranks it is a tensor
            result = ranking(torch.empty(0), torch.empty(0), self.recalls)
        else:
            result = ranking(dim_zero_cat(self.scores), dim_zero_cat(self.labels), self.recalls)
            if result.undefined not in {"", "no samples"} and self.protocol.undefined == 0:
                result = result._replace(auroc=0.0, ap=0.0, f1_max=0.0)
        self._result = result
        values = {"auroc": result.auroc, "ap": result.ap, "f1_max": result.f1_max}
        return scalars(values | {fpr_name(at): value for at, value in result.fprs.items()}, self.device)
