"""An evaluation's result as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlad.results.beside import Beside
from vlad.results.tables import Table, heading, percent

if TYPE_CHECKING:
    from vlad.metrics.results import EvaluationResult

__all__ = ["metrics_table", "published_table"]

_TRANSDUCTIVE = {
    "scores": "transductive: the image scores of a category were combined over its whole test set",
    "features": "transductive: the images of a category were scored together with its whole test set",
}


def metrics_table(result: EvaluationResult, metrics: Sequence[str]) -> Table:
    """Returns metrics as a table in per cent: a line per category, then their mean.

    Args:
        result: What an evaluation found.
        metrics: The columns.
    """
    rows: list[dict[str, Any]] = result.categories.to_dict("records")
    several = len({row["dataset"] for row in rows}) > 1
    lines = []
    for row in rows:
        whole = several and row["dataset"] != row["category"]
        name = f"{row['dataset']}/{row['category']}" if whole else row["category"]
        counts = [str(row["normal"]), str(row["anomalous"])]
        lines.append([name, *counts, *(percent(row[metric]) for metric in metrics)])
    lines.append(["mean", "", "", *(percent(result.mean[metric]) for metric in metrics)])
    notes = [f"{note['category']}: no {note['metric']} metrics: {note['reason']}" for note in result.undefined]
    notes += [_TRANSDUCTIVE[result.transductive]] if result.transductive else []
    columns = ["category", "normal", "anomalous", *map(heading, metrics)]
    return Table(columns, lines, frozenset(range(1, len(columns))), rules=frozenset({len(lines) - 1}), notes=notes)


def published_table(found: Sequence[Beside]) -> Table:
    """Returns published numbers of single categories beside ours, a line each."""
    rows = [
        [
            f"{one.published.dataset}/{one.published.category}",
            heading(one.published.metric),
            f"{one.ours:.1f}",
            f"{one.published.value:.1f}",
            f"{one.difference:+.1f}",
            one.published.source,
            one.differs,
        ]
        for one in found
        if one.published.category
    ]
    columns = ["category", "metric", "ours", "published", "difference", "source", "this run differs"]
    return Table(columns, rows, frozenset({2, 3, 4}))
