"""Metrics of anomaly detection, as torchmetrics classes; usable without the rest of vlad."""

from vlad.metrics.curves import PixelResult
from vlad.metrics.evaluation import Evaluation, EvaluationResult
from vlad.metrics.pixel import PixelMetrics
from vlad.metrics.protocols import PROTOCOLS, Protocol
from vlad.metrics.ranking import Ranking, RankingMetrics, ranking

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "EvaluationResult",
    "PixelMetrics",
    "PixelResult",
    "Protocol",
    "Ranking",
    "RankingMetrics",
    "ranking",
]
