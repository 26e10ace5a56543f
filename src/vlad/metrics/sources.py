"""The metrics that an evaluation was asked for: how each is made, fed and read, and who is to blame if it fails."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torchmetrics import Metric

from vlad.errors import VladError
from vlad.metrics.registry import check_metric, get_metric, origin_of, resolve

__all__ = ["MetricSource", "metric_sources"]

_NO_UPDATE = r"The ``compute`` method of metric .* was called before"  # where a category has no labels or masks


@dataclass(frozen=True)
class MetricSource:
    """One metric of an evaluation, of which one instance is made per category.

    Attributes:
        name: First part of its columns.
        cls: Its class; see :mod:`vlad.metrics.registry` for what is expected of it.
        make: Makes an instance that has seen nothing.
        origin: What an error calls it; "" for our own, whose errors are left as they are.
    """

    name: str
    cls: type[Metric]
    make: Callable[[], Metric]
    origin: str = ""

    @property
    def level(self) -> str:
        """Returns ``image`` or ``pixel``."""
        return self.cls.level  # type: ignore[attr-defined]

    def offers(self, name: str) -> bool:
        """Returns whether the class has an optional method."""
        return hasattr(self.cls, name)

    @property
    def takes_names(self) -> bool:
        """Whether ``update`` is told names of masks."""
        return "names" in inspect.signature(self.cls.update).parameters

    def new(self) -> Metric:
        """Makes an instance."""
        with self.blamed("could not be made"):
            return self.make()

    def update(self, metric: Metric, *values: Any, **options: Any) -> None:
        """Feeds an instance."""
        with self.blamed("failed in update"):
            metric.update(*values, **options)

    def columns(self, metric: Metric, where: str) -> tuple[dict[str, float], dict[str, float], str]:
        """Returns an instance's values by column, its further numbers by column, and why a value is NaN.

        Args:
            metric: The instance.
            where: Of which category it is, for errors.
        """
        with self.blamed(f"failed in compute for {where}"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_NO_UPDATE)
            asked: Any = metric  # for methods that are optional
            values = self._named(metric.compute())
            details = self._named(asked.details()) if self.offers("details") else {}
            reason = asked.why_undefined() if self.offers("why_undefined") else ""
        missing = [name for name, value in values.items() if value != value]
        if missing and not self.offers("why_undefined"):  # one that can say why has nothing to say of what it omits
            reason = f"the metric gives NaN for {', '.join(missing)}"
        return values, details, reason

    def curves(self, metric: Metric) -> dict[str, Any]:
        """Returns an instance's curves by name; none where it has none."""
        asked: Any = metric
        with self.blamed("failed in curves"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_NO_UPDATE)
            return dict(asked.curves()) if self.offers("curves") else {}

    def _named(self, values: Any) -> dict[str, float]:
        if isinstance(values, Mapping):
            return {f"{self.name}_{key}": float(value) for key, value in values.items()}
        return {self.name: float(values)}

    @contextmanager
    def blamed(self, what: str) -> Iterator[None]:
        """Turns an error of a third party's metric into one that names it."""
        try:
            yield
        except Exception as error:  # a third party's code may raise anything
            if not self.origin or isinstance(error, VladError):
                raise
            raise VladError(f"{self.origin} {what}: {type(error).__name__}: {error}") from error


def metric_sources(metrics: Sequence[str] | Mapping[str, Metric], **options: Any) -> list[MetricSource]:
    """Returns the sources of metrics given by name, or as instances that are cloned.

    Args:
        metrics: Registered names or class paths; or instances by name.
        options: What ``configured`` of a class is given.

    Raises:
        RegistryError: A name is unknown, a plug-in does not import, or a metric says no level.
        VladError: A name is given twice, or nothing is to be measured.
    """
    if isinstance(metrics, str) or not metrics:
        raise VladError(f"metrics must be a list of names, such as [image, pixel], got {metrics!r}")
    sources: dict[str, MetricSource] = {}
    for given in metrics:
        if isinstance(metrics, Mapping):
            prototype = metrics[given]
            name, origin = given, f"metric '{given}' ({type(prototype).__module__}.{type(prototype).__name__})"
            check_metric(type(prototype), origin)
            source = MetricSource(name, type(prototype), prototype.clone, origin)
        else:
            plugin, cls = resolve(given), get_metric(given)
            make = partial(cls.configured, **options) if hasattr(cls, "configured") else cls
            origin = "" if plugin.distribution == "vlad" else origin_of(plugin)
            source = MetricSource(plugin.name, cls, make, origin)
        if source.name in sources:
            raise VladError(f"metrics names '{source.name}' twice; leave one out")
        sources[source.name] = source
        source.new()  # refuses what does not go together before a run
    return list(sources.values())
