"""``vlad results``: what papers and re-runs report, without torch or pandas."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from vlad.errors import OptionError, nearest
from vlad.results.literature import METRICS, PublishedValue, published, select
from vlad.results.tables import FORMATS, Cell, Table, heading, number, render

__all__ = ["run"]

_TEXT = (
    """Published numbers in per cent: per data set, or per category (--categories), with who reported them and where."""
)

_EXAMPLES = """examples:
  vlad results --dataset visa
  vlad results --method adaclip --dataset visa          every value in the literature, each with its source
  vlad results --method adaclip --dataset mvtec_ad --categories
  vlad results --dataset mvtec_ad --shots 0 --format latex"""


def run(arguments: list[str]) -> int:
    """Runs ``vlad results``; the arguments start with the verb."""
    parser = argparse.ArgumentParser(
        prog="vlad results",
        description=_TEXT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", metavar="NAME", help="only this dataset")
    parser.add_argument("--method", metavar="NAME", help="of this method alone")
    parser.add_argument("--metric", metavar="NAME", choices=METRICS, help=f"this metric alone: {', '.join(METRICS)}")
    parser.add_argument("--shots", type=int, metavar="K", help="with K reference images alone (0: zero-shot)")
    parser.add_argument("--categories", action="store_true", help="single categories too")
    parser.add_argument("--format", default="text", choices=tuple(FORMATS), help="text by default")
    options = parser.parse_args(arguments[1:])
    values = published()
    dataset = _known("data set", options.dataset, {one.dataset for one in values})
    method = _known("method", options.method, {one.method for one in values})
    found = select(
        values,
        method=method,
        dataset=dataset,
        metric=options.metric,
        shots=options.shots,
        categories=options.categories,
    )
    if not found:
        raise OptionError("no published numbers match; leave an option out")
    if options.format in {"csv", "json"}:  # every column of the file
        every = [["" if part is None else str(part) for part in one] for one in found]
        print(render(Table(PublishedValue._fields, every), options.format))
    else:
        print("\n\n".join(render(table, options.format) for table in _tables(found, numbered=options.format == "text")))
    return 0


def _known(kind: str, name: str | None, known: set[str]) -> str | None:
    if name is None:
        return None
    canonical = name.lower().replace("-", "_")
    if canonical not in known:
        raise OptionError(f"no number is published of a {kind} '{name}' here; {nearest(name, known)}")
    return canonical


def _tables(values: Sequence[PublishedValue], *, numbered: bool) -> Iterable[Table]:
    """Yields a table per data set: a row per report and category."""
    for dataset in sorted({one.dataset for one in values}):
        here = [one for one in values if one.dataset == dataset]
        metrics = [metric for metric in METRICS if any(one.metric == metric for one in here)]
        categories = any(one.category for one in here)
        sources: dict[str, int] = {}
        rows: list[list[Cell | str]] = []
        for key in dict.fromkeys((*one.report, one.category) for one in here):
            of_row = {one.metric: one for one in here if (*one.report, one.category) == key}
            first = next(iter(of_row.values()))
            number_of = sources.setdefault(_about(first), len(sources) + 1)
            cells = [_cell(of_row.get(metric)) for metric in metrics]
            name = first.method + (f" ({first.variant})" if first.variant else "")
            shots = "all" if first.shots is None else str(first.shots)
            category = [first.category or "mean"] if categories else []
            source = f"{first.reported_by} [{number_of}]" if numbered else f"{first.reported_by}: {_about(first)}"
            rows.append([name, *category, shots, *cells, source])
        columns = ["method", *(["category"] if categories else []), "shots", *map(heading, metrics), "reported by"]
        numeric = frozenset(range(1 + categories, len(columns) - 1))
        ranked = numeric - {1 + categories} if not categories else frozenset()
        notes = [f"[{i}] {text}" for text, i in sources.items()] if numbered else []
        yield Table(columns, rows, numeric, ranked, dataset, notes)


def _cell(value: PublishedValue | None) -> Cell:
    return number(None) if value is None else number(value.value, value.std)


def _about(value: PublishedValue) -> str:
    """Returns where a number stands and what it was measured with."""
    parts = [f"trained on {value.trained_on}"] if value.trained_on else []
    parts += [f"{value.encoder}{f' at {value.image_size} px' if value.image_size else ''}"] if value.encoder else []
    parts += (
        [f"PRO as {value.evaluation}"]
        if value.metric == "pixel_aupro" and value.evaluation not in {"", "mvtec"}
        else []
    )
    parts += [value.note] if value.note else []
    return value.source + (f"; {'; '.join(parts)}" if parts else "")
