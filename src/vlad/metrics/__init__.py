"""Metrics of anomaly detection, as torchmetrics classes."""

from vlad.metrics.evaluation import Evaluation, EvaluationResult
from vlad.metrics.ranking import Ranking, RankingMetrics, ranking

__all__ = ["Evaluation", "EvaluationResult", "Ranking", "RankingMetrics", "ranking"]
