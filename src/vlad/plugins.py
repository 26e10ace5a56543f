"""Entry points of any group: what packages declare, without importing it.

Two packages with one name: vlad's own wins, else the alphabetically first distribution; one warning names both, and
the other stays reachable by its class path. ``VLAD_PLUGINS`` limits discovery for reproducible runs: ``vlad`` (or
``none``) to our own, or a comma-separated list of distributions.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from vlad.errors import RegistryError

__all__ = ["Plugin", "canonical", "declared", "entries", "load"]


@dataclass(frozen=True)
class Plugin:
    """A declared class: what the metadata says, before any import.

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
    """Returns a name as the registries spell it: lower case, ``-`` as ``_``."""
    return name.strip().lower().replace("-", "_")


def _own_first(plugin: Plugin) -> tuple[bool, str, str]:
    return (plugin.distribution != "vlad", plugin.distribution, plugin.class_path)


def _allowed(distribution: str) -> bool:
    setting = os.environ.get("VLAD_PLUGINS", "").strip()
    if not setting or distribution == "vlad":
        return True
    return distribution in {canonical(d) for d in setting.split(",")}


def entries(group: str) -> Iterable[metadata.EntryPoint]:
    """Returns the entry points of a group; where one distribution's cannot be read, those of the others."""
    try:
        return metadata.entry_points(group=group)
    except Exception:  # one malformed line of any package, ours or not, makes all of them unreadable
        found: dict[tuple[str, str], metadata.EntryPoint] = {}
        for distribution in metadata.distributions():
            try:
                for entry in distribution.entry_points.select(group=group):
                    found.setdefault((entry.name, entry.value), entry)
            except Exception as error:
                warnings.warn(
                    f"the entry points of {_name(distribution)} cannot be read ({type(error).__name__}) and are left "
                    "out: reinstall it",
                    stacklevel=4,
                )
        return found.values()


def _name(distribution: metadata.Distribution) -> str:
    try:
        return str(distribution.name)
    except Exception:
        return "a package without a name"


def _about(distribution: metadata.Distribution | None) -> tuple[str, str]:
    """Returns a distribution's name, as the registries spell it, and its version; each reading parses its metadata."""
    if distribution is None:
        return "unknown", "?"
    return canonical(distribution.name or "unknown"), distribution.version or "?"


def load(plugin: Plugin, group: str, origin: str) -> Any:
    """Imports what a plug-in declares.

    Args:
        plugin: The plug-in.
        group: Its group of entry points.
        origin: What errors call it.

    Raises:
        RegistryError: It fails to import, with its cause, or ends Python instead.
    """
    try:
        return metadata.EntryPoint(plugin.name, f"{plugin.module}:{plugin.attribute}", group).load()
    except SystemExit as error:
        raise RegistryError(f"{origin} failed to import: it ends Python (SystemExit {error.code})") from error
    except Exception as error:  # a third party's module may raise anything
        raise RegistryError(f"{origin} failed to import: {type(error).__name__}: {error}") from error


def declared(group: str, kind: str, built_in: Mapping[str, Plugin] | None = None) -> dict[str, Plugin]:
    """Returns every declared plug-in of a group by canonical name, sorted; imports none of them.

    Args:
        group: Group of entry points.
        kind: What a plug-in of the group is, for warnings: ``method``, ``metric``.
        built_in: Our own that are there even where vlad runs from a source tree without its metadata.
    """
    built_in = built_in or {}
    found: dict[str, list[Plugin]] = {name: [plugin] for name, plugin in built_in.items()}
    about = cache(_about)
    for entry in entries(group):
        distribution, version = about(entry.dist)
        name = canonical(entry.name)
        if not _allowed(distribution) or (distribution == "vlad" and name in built_in):
            continue
        try:
            module, attribute = entry.module, entry.attr
        except AttributeError:  # what the metadata say has not the form of module:attribute
            module = attribute = ""
        if not module or not attribute:
            warnings.warn(
                f"{distribution} declares the {kind} '{entry.name}' as '{entry.value}', which names no class: "
                "MODULE:CLASS; it is left out",
                stacklevel=3,
            )
            continue
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            warnings.warn(
                f"{distribution} declares a {kind} named '{entry.name}', which is no name: letters, digits and _ only",
                stacklevel=3,
            )
            continue
        plugin = Plugin(name, module, attribute, distribution, version)
        if plugin not in found.setdefault(name, []):  # an editable install may be listed twice
            found[name].append(plugin)
    chosen = {}
    for name, plugins in sorted(found.items()):
        winner, *losers = sorted(plugins, key=_own_first)
        for loser in losers:
            warnings.warn(
                f"{kind} name '{name}' is declared by {winner.distribution} ({winner.class_path}) and by "
                f"{loser.distribution} ({loser.class_path}); the first is used, the other is reachable as "
                f"class_path: {loser.class_path}",
                stacklevel=3,
            )
        chosen[name] = winner
    return chosen
