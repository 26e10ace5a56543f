"""What a report says of a test or a prediction: rows, tables and figures, made of what the run has found."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from vlad.report.page import Row
from vlad.report.store import media_key
from vlad.results.beside import Beside, describe_beside
from vlad.results.compare import disagreements
from vlad.results.metrics import metrics_table, published_table
from vlad.results.tables import Table, heading, percent
from vlad.table import plain_text

if TYPE_CHECKING:
    import pandas as pd

    from vlad.metrics.results import EvaluationResult

__all__ = ["Content", "compare_rows", "content_of_prediction", "content_of_test"]

_TEXTS = ("category", "path", "image_id", "error")
_MAIN = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_aupro")


@dataclass
class Content:
    """What a page says beside settings and thumbnails.

    Attributes:
        data: The data's name, for the title.
        rows: The images.
        keys: By which the thumbnails of each are found.
        groups: Categories: data set and category, of a prediction the latter alone, as ``heatmaps/scale.json`` has it.
        names: How each is called on the page.
        thresholds: Of a decision, by category.
        curves: Pixel curves, by category.
        tables: Tables by heading.
        summary: Figures at the top.
        notes: Sentences at the top.
    """

    data: str
    rows: list[Row] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    thresholds: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    tables: dict[str, Sequence[Table]] = field(default_factory=dict)
    summary: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def group(self, key: str, name: str) -> int:
        """Returns the position of a category, which is added where it is new."""
        if key not in self.groups:
            self.groups.append(key)
            self.names.append(name)
        return self.groups.index(key)


def content_of_test(result: EvaluationResult, images: pd.DataFrame, published: Sequence[Beside]) -> Content:
    """Returns what a page says of a test.

    Args:
        result: What the evaluation found.
        images: Its table of images, with the columns of a decision where there is one.
        published: Published numbers beside the run's.
    """
    sets = list(dict.fromkeys(result.categories["dataset"]))
    found = Content(", ".join(map(str, sets)))
    for row in images.to_dict("records"):
        dataset, category = str(row["dataset"]), str(row["category"])
        key = "/".join(dict.fromkeys((dataset, category)))
        group = found.group(key, key if len(sets) > 1 else category)
        image_id, path, threshold = str(row["image_id"]), str(row["path"]), _number(row.get("threshold"))
        if threshold is not None:
            found.thresholds[key] = threshold
        score, p_value = _number(row["image_score"]), _number(row.get("p_value"))
        decision = str(row.get("decision") or "")
        error = str(row.get("error") or "")
        found.rows.append(Row(group, image_id, path, int(row["label"]), score, p_value, decision, error))
        found.keys.append(media_key(category, image_id, path))
    found.curves = {"/".join(dict.fromkeys(place)): curves for place, curves in result.curves.items()}
    columns = list(result.mean)
    found.tables["Metrics in per cent"] = [metrics_table(result, columns)]
    for name, stage in result.stages.items():
        found.tables[f"Metrics of the {name} maps in per cent"] = [metrics_table(stage, list(stage.mean))]
    beside = describe_beside(published, columns)
    if beside:
        found.tables["Published numbers beside this run's"] = beside
    by_category = published_table(published)
    if by_category.rows:
        found.tables["Published numbers of single categories"] = [by_category]
    found.summary = [("images", str(len(found.rows))), ("categories", str(len(found.groups)))]
    found.summary += [
        (f"{heading(name)}, mean", f"{percent(result.mean[name])} %")
        for name in _MAIN
        if not math.isnan(_mean(result, name))
    ]
    if result.transductive:
        found.notes.append("Transductive: a score here depends on the other images of its category.")
    return found


def compare_rows(found: Content, own: pd.DataFrame, other: pd.DataFrame) -> None:
    """Adds to the rows of a test how the images rank among normal ones, in it and in another test of theirs.

    Args:
        found: The content, which is changed.
        own: Scores of the test, as :func:`vlad.results.compare.read_scores` gives them.
        other: Those of the other one.

    Raises:
        DataError: The other test had other images or labels.
    """
    ranks = {
        ("/".join(dict.fromkeys((str(row["dataset"]), str(row["category"])))), str(row["image_id"])): row
        for row in disagreements(own, other).to_dict("records")
    }
    for place, row in enumerate(found.rows):
        rank = ranks.get((found.groups[row.group], row.name))
        if rank is not None:
            above, other_above = _number(rank["above_a"]), _number(rank["above_b"])
            found.rows[place] = row._replace(above=above, other_above=other_above if above is not None else None)


def _mean(result: EvaluationResult, name: str) -> float:
    return result.mean.get(name, math.nan)


def content_of_prediction(table: Path, data: str) -> Content:
    """Returns what a page says of a prediction.

    Args:
        table: Its ``predictions.csv``.
        data: What the images are called.
    """
    found = Content(data)
    scores: dict[str, list[float]] = {}
    decided: Counter[tuple[str, str]] = Counter()
    failed: Counter[str] = Counter()
    with table.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            category, path, image_id, error = (plain_text(line[name]) for name in _TEXTS)
            group = found.group(category, category)
            score = None if error else _number(line["image_score"])
            p_value, threshold = _number(line["p_value"]), _number(line["threshold"])
            if threshold is not None:
                found.thresholds[category] = threshold
            found.rows.append(Row(group, image_id, path, -1, score, p_value, line["decision"], error))
            found.keys.append(media_key(category, image_id, path))
            failed[category] += score is None
            if score is not None:
                scores.setdefault(category, []).append(score)
                decided[category, line["decision"]] += 1
    rows = [
        [
            category,
            *(str(len(scores.get(category, []))), str(failed[category])),
            *(
                str(decided[category, kind]) if category in found.thresholds else "-"
                for kind in ("anomalous", "normal")
            ),
            *(_short(value) for value in _spread(scores.get(category, []))),
        ]
        for category in found.groups
    ]
    columns = ["category", "scored", "failed", "anomalous", "normal", "lowest", "median", "highest score"]
    found.tables["Images"] = [Table(columns, rows, frozenset(range(1, len(columns))))]
    found.summary = [
        ("images scored", str(sum(map(len, scores.values())))),
        ("could not be scored", str(sum(failed.values()))),
    ]
    if found.thresholds:
        anomalous = sum(count for (_, kind), count in decided.items() if kind == "anomalous")
        found.summary.append(("anomalous by the decision", str(anomalous)))
    else:
        found.notes.append("No decision was given (vlad calibrate makes one): the threshold below is only a beginning.")
    return found


def _number(value: Any) -> float | None:
    if value is None or value == "":
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _spread(scores: Sequence[float]) -> tuple[float, ...]:
    return (min(scores), median(scores), max(scores)) if scores else ()


def _short(value: float) -> str:
    return f"{value:.4g}"
