"""Finished cells as one table of numbers, and as tables to print: mean and standard deviation over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlad.benchmark.plan import Plan
from vlad.results.literature import published, select
from vlad.results.tables import Cell as TableCell
from vlad.results.tables import Table, heading, number

__all__ = ["COLUMNS", "Gathered", "gather", "rows", "tables"]

COLUMNS = ("name", "method", "dataset", "category", "shots", "seed", "stage", "metric", "value")
"""Columns of the table of numbers: one a line, in [0, 1]; category "" for the mean over categories."""

_NO_METRIC = {"dataset", "category", "normal", "anomalous"}
_LOWER = ("image_fpr_at_", "pixel_fpr_at_")  # lower is better: no best one is marked


@dataclass(frozen=True)
class Gathered:
    """What of a plan is finished.

    Attributes:
        results: The results of finished cells, in the plan's order.
        missing: Names of the files of those that are not.
    """

    results: Sequence[dict[str, Any]]
    missing: Sequence[str]


def gather(plan: Plan, folder: Path, cells: Sequence[Any] | None = None) -> Gathered:
    """Reads the results of finished cells.

    Args:
        plan: The plan.
        folder: Of its results.
        cells: The cells that count; all of the plan by default.
    """
    from vlad.benchmark.run import result_file

    results, missing = [], []
    for cell in plan.cells if cells is None else cells:
        file = result_file(folder, cell)
        if file.is_file():
            results.append(json.loads(file.read_text(encoding="utf-8")))
        else:
            missing.append(cell.key)
    return Gathered(results, missing)


def rows(found: Gathered) -> list[tuple[Any, ...]]:
    """Returns every number of finished cells as a line of :data:`COLUMNS`."""
    lines: list[tuple[Any, ...]] = []
    for one in found.results:
        place = (one["name"], one["method"], one["dataset"])
        run = (one["shots"], one["seed"])
        for stage, mean in {"": one["mean"], **one["stages"]}.items():
            lines += [(*place, "", *run, stage, metric, value) for metric, value in mean.items() if value is not None]
        for category in one["categories"]:
            lines += [
                (*place, category["category"], *run, "", metric, value)
                for metric, value in category.items()
                if metric not in _NO_METRIC and isinstance(value, float)
            ]
    return lines


def tables(plan: Plan, found: Gathered) -> list[Table]:
    """Returns a table per data set, in per cent: a row per method and number of references.

    Numbers are means over seeds, with the standard deviation (n - 1) where there are several.
    """
    made = []
    several = len({one["shots"] for one in found.results}) > 1
    for dataset in dict.fromkeys(one["dataset"] for one in found.results):
        here = [one for one in found.results if one["dataset"] == dataset]
        metrics = [metric for metric in plan.metrics if any(one["mean"].get(metric) is not None for one in here)]
        lines: list[list[TableCell | str]] = []
        ranked: list[bool] = []
        notes: list[str] = []
        for name, shots in dict.fromkeys((one["name"], one["shots"]) for one in here):
            runs = [one for one in here if (one["name"], one["shots"]) == (name, shots)]
            head: list[TableCell | str] = [name, *([str(shots)] if several else []), str(len(runs))]
            stages = dict.fromkeys(stage for one in runs for stage in one["stages"]) if plan.stages else {}
            for stage in stages:
                values = [[one["stages"].get(stage, {}).get(metric) for one in runs] for metric in metrics]
                lines.append([f"{name}, {stage}", *head[1:], *map(_spread, values)])
                ranked.append(True)
            values = [[one["mean"].get(metric) for one in runs] for metric in metrics]
            ours = [_spread(value) for value in values]
            lines.append([*head, *ours])
            ranked.append(True)
            if plan.published:
                for line, note in _published(runs[0], metrics, ours, len(notes)):
                    lines.append([line[0], *([""] if several else []), "", *line[1:]])
                    ranked.append(False)
                    notes.append(note)
        columns = ["method", *(["shots"] if several else []), "seeds", *map(heading, metrics)]
        first = len(columns) - len(metrics)
        best = {first + i for i, metric in enumerate(metrics) if not metric.startswith(_LOWER)}
        shown = [
            line if rank else [cell._replace(value=math.nan) if isinstance(cell, TableCell) else cell for cell in line]
            for line, rank in zip(lines, ranked, strict=True)
        ]
        title = f"{plan.title}: {dataset}"
        made.append(Table(columns, shown, frozenset(range(1, len(columns))), frozenset(best), title, notes))
    return made


def _spread(values: Sequence[float | None]) -> TableCell:
    """Returns a cell of the mean in per cent and the standard deviation over seeds; a dash where one is missing."""
    numbers = [100 * value for value in values if value is not None]
    if not numbers or len(numbers) < len(values):
        return number(None)
    return number(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)


def _published(
    one: dict[str, Any], metrics: Sequence[str], ours: Sequence[TableCell], before: int
) -> list[tuple[list[TableCell | str], str]]:
    """Returns a row per published report of a method, with the difference to ours, and its source."""
    of_method = select(published(), method=one["method"], dataset=one["dataset"])
    values = [value for value in of_method if (value.shots or 0) == one["shots"]]
    found: list[tuple[list[TableCell | str], str]] = []
    for report in dict.fromkeys(value.report for value in values):
        of_report = {value.metric: value for value in values if value.report == report}
        first = next(iter(of_report.values()))
        cells: list[TableCell | str] = []
        for metric, cell in zip(metrics, ours, strict=True):
            there = of_report.get(metric)
            text = "-" if there is None else f"{there.value:.1f} ({cell.value - there.value:+.1f})"
            cells.append(TableCell(text if cell.value == cell.value or there is None else f"{there.value:.1f}"))
        if all(isinstance(cell, TableCell) and cell.text == "-" for cell in cells):
            continue
        mark = before + len(found) + 1
        about = [f"trained on {first.trained_on}"] if first.trained_on else []
        about += [first.note] if first.note else []
        encoder = str(((one.get("about") or {}).get("method") or {}).get("backbone") or "").removesuffix("-quickgelu")
        if encoder and first.encoder and encoder != first.encoder:
            about.append(f"ours: encoder {encoder}, not {first.encoder}")
        who = {"paper": "the paper", "authors": "the authors", "others": "others"}[first.reported_by]
        label = f"  {who}{f', {first.variant}' if first.variant else ''} [{mark}]"
        found.append(([label, *cells], f"[{mark}] {first.source}{': ' if about else ''}{'; '.join(about)}"))
    return found
