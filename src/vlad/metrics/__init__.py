"""Metrics of anomaly detection, as torchmetrics classes; usable without the rest of vlad.

Importing this package is light: torch is imported only when a metric is used, so that names can be listed without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlad.metrics.registry import get_metric, list_metrics

if TYPE_CHECKING:
    from vlad.metrics.curves import PixelResult
    from vlad.metrics.evaluation import Evaluation
    from vlad.metrics.image import Ranking, RankingMetrics, ranking
    from vlad.metrics.pixel import PixelMetrics
    from vlad.metrics.protocols import PROTOCOLS, Protocol
    from vlad.metrics.results import EvaluationResult

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "EvaluationResult",
    "PixelMetrics",
    "PixelResult",
    "Protocol",
    "Ranking",
    "RankingMetrics",
    "get_metric",
    "list_metrics",
    "ranking",
]

# Public name -> module that defines it, imported on first use (PEP 562).
_LAZY = {
    "PROTOCOLS": "vlad.metrics.protocols",
    "Evaluation": "vlad.metrics.evaluation",
    "EvaluationResult": "vlad.metrics.results",
    "PixelMetrics": "vlad.metrics.pixel",
    "PixelResult": "vlad.metrics.curves",
    "Protocol": "vlad.metrics.protocols",
    "Ranking": "vlad.metrics.image",
    "RankingMetrics": "vlad.metrics.image",
    "ranking": "vlad.metrics.image",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vlad.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
