"""The published numbers that ship with vlad, read with the standard library alone."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from vlad.errors import DataError

__all__ = ["METRICS", "PUBLISHED", "PublishedValue", "published", "read_published", "select"]

PUBLISHED = Path(__file__).with_name("published.csv")
"""The file: UTF-8, comma-separated, one number per line; ``pandas.read_csv(PUBLISHED)`` reads it too."""

METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro")
_REPORTERS = ("paper", "authors", "others")


class PublishedValue(NamedTuple):
    """One published number.

    Attributes:
        method: Registered name of the method, or what it would be called.
        variant: "" for the method as its authors propose it; else what is different, such as the encoder.
        dataset: Name in the catalogue of data sets, where it is in it.
        category: One category; "" for the unweighted mean over all of the data set.
        shots: Normal reference images per category; None where the method is trained on normal images of the data set.
        metric: Column of vlad's own tables.
        value: In per cent, as many digits as published.
        std: Standard deviation in per cent, or None where none is given.
        reported_by: ``paper``: the method's own paper; ``authors``: their code's README or logs; ``others``: a re-run
            by somebody else, or another paper's table.
        source: Where it stands.
        trained_on: Data sets joined by ``+``; "" where the method is not trained, or it is not stated.
        encoder: "" where it is not stated.
        image_size: Side of the images in pixels, or None where it is not stated.
        evaluation: How pixels and undefined categories are counted: a name of ``vlad.metrics.PROTOCOLS``, or "".
        note: What else has to be known to compare.
    """

    method: str
    variant: str
    dataset: str
    category: str
    shots: int | None
    metric: str
    value: float
    std: float | None
    reported_by: Literal["paper", "authors", "others"]
    source: str
    trained_on: str
    encoder: str
    image_size: int | None
    evaluation: str
    note: str

    @property
    def report(self) -> tuple[str, ...]:
        """What numbers of one report have in common: method, data, setting and source, not category and metric."""
        shots = "" if self.shots is None else str(self.shots)
        return (self.method, self.variant, self.dataset, shots, self.reported_by, self.source, self.note)


def read_published(path: Path) -> tuple[PublishedValue, ...]:
    """Reads a file of published numbers.

    Args:
        path: A file with the columns of :class:`PublishedValue`.

    Raises:
        DataError: Another header, or a line that is not as it should be; the message names the line.
    """
    found = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != PublishedValue._fields:
            raise DataError(f"{path} must have the columns {', '.join(PublishedValue._fields)}")
        for line in reader:
            try:
                found.append(_value(line))
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    return tuple(found)


def _value(line: dict[str, str]) -> PublishedValue:
    if None in line or None in line.values():
        raise ValueError(f"not {len(PublishedValue._fields)} cells")
    shots, size, std = line["shots"], line["image_size"], line["std"]
    value = float(line["value"])
    if not 0 <= value <= 100:
        raise ValueError(f"value {value} is not in per cent")
    if line["metric"] not in METRICS or line["reported_by"] not in _REPORTERS:
        raise ValueError(f"unknown metric {line['metric']!r} or reporter {line['reported_by']!r}")
    if not (line["method"] and line["dataset"] and line["source"]):
        raise ValueError("method, dataset and source must be given")
    numbers = {"shots": int(shots) if shots else None, "image_size": int(size) if size else None}
    return PublishedValue(**{**line, **numbers, "value": value, "std": float(std) if std else None})  # type: ignore[arg-type]


@cache
def published() -> tuple[PublishedValue, ...]:
    """Returns the numbers that ship with vlad.

    Examples:
        >>> {one.value for one in select(published(), method="adaclip", dataset="visa", metric="image_auroc")}
        {81.7, 83.9, 85.8}
    """
    return read_published(PUBLISHED)


def select(
    values: Iterable[PublishedValue],
    *,
    method: str | None = None,
    dataset: str | None = None,
    metric: str | None = None,
    shots: int | None = None,
    categories: bool = False,
) -> list[PublishedValue]:
    """Returns the numbers that are wanted, in their order.

    Args:
        values: Numbers.
        method: Of this method alone.
        dataset: Of this data set alone.
        metric: Of this metric alone.
        shots: With so many references alone.
        categories: Those of single categories too, not only of whole data sets.
    """
    return [
        one
        for one in values
        if (method in {None, one.method})
        and (dataset in {None, one.dataset})
        and (metric in {None, one.metric})
        and (shots in {None, one.shots})
        and (categories or not one.category)
    ]
