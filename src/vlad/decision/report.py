"""Evaluates a decision on a test set: false alarms and misses per category."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlad.decision.decision import Decision
from vlad.decision.verdict import Verdict

__all__ = ["format_report", "report"]


def report(tested: Mapping[tuple[str, str, str], tuple[int, Verdict]]) -> list[dict[str, Any]]:
    """Counts verdicts against labels.

    Args:
        tested: Label (0, 1, -1) and verdict of each image, by dataset, category and image id.

    Returns:
        A row per category: numbers of ``normal`` and ``anomalous`` images with a decision, ``false_alarms``,
        ``misses``, ``false_alarm_rate``, ``miss_rate``, ``recall``, ``precision`` and ``balanced_accuracy`` (None where
        there is no such image), and ``undecided``: images without a label or decision.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for (dataset, category, _), (label, verdict) in tested.items():
        row = rows.setdefault(
            (dataset, category),
            {
                "dataset": dataset,
                "category": category,
                **dict.fromkeys(("normal", "anomalous", "false_alarms", "misses", "undecided"), 0),
            },
        )
        if not verdict.decision or label not in {0, 1}:
            row["undecided"] += 1
            continue
        row["anomalous" if label else "normal"] += 1
        if label:
            row["misses"] += verdict.decision == "normal"
        else:
            row["false_alarms"] += verdict.decision == "anomalous"
    for row in rows.values():
        row |= _rates(row)
    return [rows[name] for name in sorted(rows)]


def _rates(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns shares of a row's counts, None where there is nothing to share."""
    alarms = row["false_alarms"] / row["normal"] if row["normal"] else None
    misses = row["misses"] / row["anomalous"] if row["anomalous"] else None
    hits = row["anomalous"] - row["misses"]
    flagged = hits + row["false_alarms"]
    return {
        "false_alarm_rate": alarms,
        "miss_rate": misses,
        "recall": None if misses is None else 1 - misses,
        "precision": hits / flagged if flagged else None,
        "balanced_accuracy": None if alarms is None or misses is None else 1 - (alarms + misses) / 2,
    }


def format_report(rows: list[dict[str, Any]], decision: Decision) -> str:
    """Returns the counts as a table: one line per category, then the total."""
    head = ["decisions", "normal", "false alarms", "anomalous", "misses", "recall", "precision", "balanced accuracy"]
    several = len({row["dataset"] for row in rows}) > 1
    lines = [head]
    counted = ("normal", "false_alarms", "anomalous", "misses", "undecided")
    total = {name: sum(row[name] for row in rows) for name in counted}
    for row in [*rows, {"category": "all", "dataset": "", **total}] if len(rows) > 1 else rows:
        name = f"{row['dataset']}/{row['category']}" if several and row["dataset"] else row["category"]
        rates = _rates(row)
        cells = [_cell(row, "normal"), _cell(row, "false_alarms", "normal")]
        cells += [_cell(row, "anomalous"), _cell(row, "misses", "anomalous")]
        lines.append([name, *cells, *(_share(rates[rate]) for rate in ("recall", "precision", "balanced_accuracy"))])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    promise = ""
    if decision.kind == "conformal" and decision.false_alarm_rate is not None:
        promise = f"; promised: at most {100 * decision.false_alarm_rate:.3g} % false alarms"
    text.append(f"- {decision.kind}, {decision.source}{promise}")
    if total["undecided"]:
        text.append(f"- {total['undecided']} images without a decision or a label are not counted")
    return "\n".join(text)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _cell(row: Mapping[str, Any], name: str, of: str | None = None) -> str:
    if of is None or not row[of]:
        return str(row[name])
    return f"{row[name]} ({100 * row[name] / row[of]:.1f} %)"
