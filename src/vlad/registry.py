"""Methods by name, through the entry-point group ``vlad.methods``.

Our own methods are declared in our ``pyproject.toml`` exactly as a third party declares theirs. Listing reads
package metadata and imports nothing; a class is imported when it is asked for by name.

Two plug-ins with one name: vlad's own wins, else the alphabetically first distribution; one warning names
both, and the other stays reachable by its class path. ``VLAD_PLUGINS`` limits discovery for reproducible
runs: ``vlad`` (or ``none``) to our own methods, or a comma-separated list of distributions.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

from vlad.errors import RegistryError, nearest

if TYPE_CHECKING:
    from vlad.methods.base import Method

__all__ = ["GROUP", "Plugin", "canonical", "discover", "get_method", "list_methods", "refresh", "resolve"]

GROUP = "vlad.methods"
API_VERSION = 2  # of the Method interface; a plug-in states the one it was written for as `Method.api`


@dataclass(frozen=True)
class Plugin:
    """A declared method: what the metadata says, before any import.

    Attributes:
        name: Short name, as used in configs.
        module: Module that defines the class.
        attribute: The class's name in that module.
        distribution: Name of the installed distribution that declares it.
        version: That distribution's version.
    """

    name: str
    module: str
    attribute: str
    distribution: str
    version: str

    @property
    def class_path(self) -> str:
        """Full import path of the class, as it is written to saved configs."""
        return f"{self.module}.{self.attribute}"


def canonical(name: str) -> str:
    """Returns a name as the registry spells it: lower case, ``-`` as ``_``."""
    return name.strip().lower().replace("-", "_")


def _own_first(plugin: Plugin) -> tuple[bool, str, str]:
    return (plugin.distribution != "vlad", plugin.distribution, plugin.class_path)


def _allowed(distribution: str) -> bool:
    setting = os.environ.get("VLAD_PLUGINS", "").strip()
    if not setting or distribution == "vlad":
        return True
    return distribution in {canonical(d) for d in setting.split(",")}


@cache
def discover() -> dict[str, Plugin]:
    """Returns every declared method by canonical name, sorted; imports none of them."""
    found: dict[str, list[Plugin]] = {}
    for entry in metadata.entry_points(group=GROUP):
        distribution = canonical(entry.dist.name) if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else "?"
        name = canonical(entry.name)
        if _allowed(distribution) and re.fullmatch(r"[a-z][a-z0-9_]*", name):
            plugin = Plugin(name, entry.module, entry.attr, distribution, version)
            if plugin not in found.setdefault(name, []):  # an editable install may be listed twice
                found[name].append(plugin)
    chosen = {}
    for name, plugins in sorted(found.items()):
        winner, *losers = sorted(plugins, key=_own_first)
        for loser in losers:
            warnings.warn(
                f"method name '{name}' is declared by {winner.distribution} ({winner.class_path}) and by "
                f"{loser.distribution} ({loser.class_path}); the first is used, the other is reachable as "
                f"class_path: {loser.class_path}",
                stacklevel=2,
            )
        chosen[name] = winner
    return chosen


def refresh() -> None:
    """Forgets what was discovered, so that newly installed plug-ins are seen."""
    discover.cache_clear()


def list_methods() -> list[str]:
    """Returns the short names of all installed methods, sorted; imports none of them.

    Examples:
        >>> {"sdp", "sdp_plus", "adaclip"} <= set(list_methods())
        True
    """
    return list(discover())


def resolve(name: str) -> Plugin:
    """Returns the declared method of a short name (case and ``-``/``_`` do not matter).

    Raises:
        RegistryError: No method has this name; the message lists the nearest ones.
    """
    plugins = discover()
    if canonical(name) not in plugins:
        raise RegistryError(f"no method is named '{name}'; {nearest(name, plugins)}")
    return plugins[canonical(name)]


def get_method(name: str) -> type[Method]:
    """Imports and returns a method's class.

    Args:
        name: Short registered name or full class path.

    Returns:
        The :class:`vlad.Method` subclass.

    Raises:
        RegistryError: Unknown name; or the plug-in fails to import (with its cause); or it is no ``Method``,
            or was written for another version of the method interface.
    """
    if "." in name:
        module, _, attribute = name.rpartition(".")
        plugin = Plugin(name, module, attribute, "class path", "")
    else:
        plugin = resolve(name)
    origin = f"method '{plugin.name}' ({plugin.class_path}, from {plugin.distribution} {plugin.version}".rstrip() + ")"
    try:
        entry = metadata.EntryPoint(plugin.name, f"{plugin.module}:{plugin.attribute}", GROUP)
        cls = entry.load()
    except Exception as error:  # a third party's module may raise anything
        raise RegistryError(f"{origin} failed to import: {type(error).__name__}: {error}") from error
    from vlad.methods.base import Method

    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise RegistryError(f"{origin} is not a subclass of vlad.Method")
    if cls.api != API_VERSION:
        raise RegistryError(
            f"{origin} was written for method interface {cls.api}; this vlad has {API_VERSION}: install a "
            f"version of {plugin.distribution} made for it"
        )
    return cls
