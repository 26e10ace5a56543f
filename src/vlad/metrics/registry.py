"""Metrics by name, through the entry-point group ``vlad.metrics``.

A metric is a ``torchmetrics.Metric`` with a class attribute ``level``, which says what it is fed:

- ``"image"``: ``update(scores, labels)``, image scores (N,), float32, and labels (N,), int64, 1 where anomalous.
- ``"pixel"``: ``update(maps, masks)``, anomaly maps (B, H, W), float32, and masks (B, H, W), bool.

Its ``compute`` returns a scalar, or a dict of scalars by name. One is made per category, and one for all pixels or
images together; the values become columns ``NAME`` or ``NAME_KEY`` of the table. Optional on the class:

- ``configured(**options)``: makes it with the evaluation's ``mode``, ``pro_limits``, ``evaluation_protocol``,
  ``recalls`` and ``cache`` (of regions); without it the class is called without arguments.
- ``why_undefined()``: why a value is NaN, or ""; a metric that has it is also asked where nothing was added.
- ``curves()``: curves to be drawn in a report, x and y by name.
- ``details()``: further numbers by name, such as thresholds, that get a column but no mean.
- ``pooled(metrics)``: a class method that makes one metric of several, in place of updating a further one.
- ``update(..., names)``: of a pixel metric, a name per mask, by which what is found out of masks can be kept.

Our own are declared in our ``pyproject.toml`` exactly as a third party declares theirs. Listing reads package metadata
and imports nothing. Names and distributions are treated as those of methods; see :mod:`vlad.plugins`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from vlad.errors import RegistryError, nearest
from vlad.plugins import Plugin, canonical, declared, load

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = [
    "BUILT_IN",
    "GROUP",
    "check_metric",
    "discover",
    "get_metric",
    "list_metrics",
    "origin_of",
    "refresh",
    "resolve",
]

GROUP = "vlad.metrics"
LEVELS = ("image", "pixel")
BUILT_IN = {
    "image": Plugin("image", "vlad.metrics.image", "RankingMetrics", "vlad", ""),
    "pixel": Plugin("pixel", "vlad.metrics.pixel", "PixelMetrics", "vlad", ""),
}
"""Our own metrics, which are there even where vlad runs from a source tree without its metadata."""


@cache
def discover() -> dict[str, Plugin]:
    """Returns every declared metric by canonical name, sorted; imports none of them."""
    return declared(GROUP, "metric", BUILT_IN)


def refresh() -> None:
    """Forgets what was discovered, so that newly installed plug-ins are seen."""
    discover.cache_clear()


def list_metrics() -> list[str]:
    """Returns the short names of all installed metrics, sorted; imports none of them.

    Examples:
        >>> {"image", "pixel"} <= set(list_metrics())
        True
    """
    return list(discover())


def resolve(name: str) -> Plugin:
    """Returns the declared metric of a short name (case and ``-``/``_`` do not matter) or of a class path.

    Raises:
        RegistryError: No metric has this name; the message lists the nearest ones.
    """
    if "." in name:
        module, _, attribute = name.rpartition(".")
        return Plugin(canonical(attribute), module, attribute, "class path", "")
    plugins = discover()
    if canonical(name) not in plugins:
        raise RegistryError(f"no metric is named '{name}'; {nearest(name, plugins)}")
    return plugins[canonical(name)]


def origin_of(plugin: Plugin) -> str:
    """Returns what an error calls a metric: its name, class path and distribution."""
    source = f"{plugin.distribution} {plugin.version}".rstrip()
    return f"metric '{plugin.name}' ({plugin.class_path}, from {source})"


def get_metric(name: str) -> type[Metric]:
    """Imports and returns a metric's class.

    Args:
        name: Short registered name or full class path.

    Raises:
        RegistryError: Unknown name; or the plug-in fails to import (with its cause); or it is no torchmetrics metric
            or has no ``level``.
    """
    plugin = resolve(name)
    cls = load(plugin, GROUP, origin_of(plugin))
    check_metric(cls, origin_of(plugin))
    return cls


def check_metric(cls: Any, origin: str) -> None:
    """Raises RegistryError where a class is no metric that can be evaluated, naming its origin."""
    from torchmetrics import Metric

    if not (isinstance(cls, type) and issubclass(cls, Metric)):
        raise RegistryError(f"{origin} is not a subclass of torchmetrics.Metric")
    level = getattr(cls, "level", None)
    if level not in LEVELS:
        raise RegistryError(
            f"{origin} has level {level!r}: set the class attribute level = 'image' (it is fed image scores and "
            "labels) or 'pixel' (maps and masks)"
        )
