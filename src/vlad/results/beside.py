"""Published numbers beside those of a run, with the difference and what else differs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vlad.results.literature import METRICS, PublishedValue, published
from vlad.results.tables import Cell, Table, heading, number

__all__ = ["Beside", "RunFacts", "beside", "describe_beside"]


@dataclass(frozen=True)
class RunFacts:
    """What a run's numbers depend on.

    Attributes:
        method: Registered name of the method.
        shots: Normal reference images per category; 0 for none.
        encoder: Name of the encoder.
        image_size: Side of the images in pixels, or None where it is not known.
        evaluation: How pixels and undefined categories are counted; a name of ``vlad.metrics.PROTOCOLS``.
        weights: Where the encoder's weights come from, such as ``openai``; ``random`` where they mean nothing.
        resolution: ``own`` where pixels were compared at the images' own resolution.
    """

    method: str
    shots: int = 0
    encoder: str = ""
    image_size: int | None = None
    evaluation: str = "mvtec"
    weights: str = ""
    resolution: str = "method"


class Beside(NamedTuple):
    """A published number beside a run's.

    Attributes:
        published: The published number.
        ours: The run's, in per cent.
        difference: Ours less theirs, in points.
        differs: What of the protocol differs, as far as both are known; "" for nothing.
    """

    published: PublishedValue
    ours: float
    difference: float
    differs: str


def beside(
    facts: RunFacts, rows: Iterable[Mapping[str, Any]], values: Sequence[PublishedValue] | None = None
) -> list[Beside]:
    """Returns every published number of a run's method on what the run has tested, beside the run's own.

    The mean over a data set is compared only where all of its categories were tested.

    Args:
        facts: What the run's numbers depend on.
        rows: A line per category: ``dataset``, ``category``, ``normal``, ``anomalous`` and metrics in [0, 1].
        values: Published numbers; those that ship with vlad by default.
    """
    from vlad.datamodules.catalog import get_record, list_datasets

    of_set: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        of_set.setdefault(str(row["dataset"]), []).append(row)
    known = set(list_datasets())
    found = []
    whole: dict[str, bool] = {}
    images: dict[str, str] = {}
    for dataset, lines in of_set.items():
        record = get_record(dataset) if dataset in known else None
        whole[dataset] = record is not None and {str(line["category"]) for line in lines} == set(record.categories)
        images[dataset] = _count_differs(record, lines) if record is not None and whole[dataset] else ""
    for one in published() if values is None else values:
        if one.method != facts.method or one.dataset not in of_set or (one.shots or 0) != facts.shots:
            continue
        lines = [line for line in of_set[one.dataset] if one.category in {"", str(line["category"])}]
        shares = [float(line.get(one.metric, math.nan)) for line in lines]
        shares = [share for share in shares if not math.isnan(share)]
        if not shares or not (one.category or whole[one.dataset]):
            continue
        ours = 100 * sum(shares) / len(shares)
        found.append(Beside(one, ours, ours - one.value, _differs(facts, one, images[one.dataset])))
    return found


def _count_differs(record: Any, lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns how many images of a data set were tested, where that is not all of them."""
    expected = sum(record.expected.get("test", {}).values())
    tested = sum(int(line["normal"]) + int(line["anomalous"]) for line in lines)
    return f"{tested} of {expected} images" if expected and tested != expected else ""


def _differs(facts: RunFacts, one: PublishedValue, images: str) -> str:
    """Returns what of the protocol differs from the run's, as far as both are known."""
    parts = []
    encoder = facts.encoder.removesuffix("-quickgelu")
    if facts.weights == "random":
        parts.append("random weights")
    if one.encoder and encoder and encoder != one.encoder:
        parts.append(f"encoder {encoder}, not {one.encoder}")
    if one.image_size and facts.image_size and facts.image_size != one.image_size:
        parts.append(f"{facts.image_size} px, not {one.image_size}")
    if one.evaluation and one.evaluation != facts.evaluation and one.metric == "pixel_aupro":
        parts.append(f"PRO counted as {facts.evaluation}, not {one.evaluation}")
    if facts.resolution == "own" and one.metric.startswith("pixel"):
        parts.append("pixels at the images' own resolution")
    return "; ".join([*parts, *([images] if images else [])])


def describe_beside(found: Sequence[Beside], metrics: Sequence[str]) -> list[Table]:
    """Returns a table per data set: ours, and each report's mean over the data set with the difference to it.

    Of a data set that was not tested as a whole, there is one per category.

    Args:
        found: Published numbers beside ours.
        metrics: Columns of the run's own table, in their order.
    """
    tables = []
    whole = {one.published.dataset for one in found if not one.published.category}
    shown = [one for one in found if not (one.published.category and one.published.dataset in whole)]
    for place in dict.fromkeys((one.published.dataset, one.published.category) for one in shown):
        here = [one for one in shown if (one.published.dataset, one.published.category) == place]
        columns = [
            metric for metric in metrics if metric in METRICS and any(one.published.metric == metric for one in here)
        ]
        ours = {one.published.metric: one.ours for one in here}
        rows: list[Sequence[Cell | str]] = [["this run", *(number(ours.get(metric)) for metric in columns)]]
        notes = []
        for report in dict.fromkeys(one.published.report for one in here):
            of_report = {one.published.metric: one for one in here if one.published.report == report}
            first = next(iter(of_report.values())).published
            cells = [_shown(of_report.get(metric)) for metric in columns]
            about = [f"trained on {first.trained_on}"] if first.trained_on else []
            differs = "; ".join(
                dict.fromkeys(part for one in of_report.values() for part in one.differs.split("; ") if part)
            )
            about += [first.note] if first.note else []
            about += [f"this run: {differs}"] if differs else []
            rows.append([f"{_reporter(first)} [{len(rows)}]", *cells])
            notes.append(f"[{len(rows) - 1}] {first.source}{': ' if about else ''}{'; '.join(about)}")
        tables.append(
            Table(
                [f"published on {'/'.join(filter(None, place))} (ours less theirs)", *map(heading, columns)],
                rows,
                frozenset(range(1, len(columns) + 1)),
                notes=notes,
            )
        )
    return tables


def _shown(one: Beside | None) -> str:
    return "-" if one is None else f"{one.published.value:.1f} ({one.difference:+.1f})"


def _reporter(value: PublishedValue) -> str:
    who = {"paper": "the paper", "authors": "the authors", "others": "others"}[value.reported_by]
    return who + (f", {value.variant}" if value.variant else "")
