"""Methods by name, through the entry-point group ``vlad.methods``.

Our own methods are declared in our ``pyproject.toml`` exactly as a third party declares theirs. Listing reads
package metadata and imports nothing; a class is imported when it is asked for by name.

What happens where two plug-ins have one name, and how to leave plug-ins out: :mod:`vlad.plugins`.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vlad.errors import RegistryError, nearest
from vlad.plugins import Plugin, canonical, declared, load

if TYPE_CHECKING:
    from vlad.methods.base import Method

__all__ = [
    "GROUP",
    "Plugin",
    "canonical",
    "discover",
    "get_method",
    "list_methods",
    "named_method",
    "refresh",
    "resolve",
]

GROUP = "vlad.methods"
API_VERSION = 2  # of the Method interface; a plug-in states the one it was written for as `Method.api`


@cache
def discover() -> dict[str, Plugin]:
    """Returns every declared method by canonical name, sorted; imports none of them."""
    return declared(GROUP, "method")


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
    cls = load(plugin, GROUP, origin)
    from vlad.methods.base import Method

    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise RegistryError(f"{origin} is not a subclass of vlad.Method")
    if (written_for := _interface(cls)) != API_VERSION:
        newer = f", or install a version of {plugin.distribution} made for it" if plugin.version else ""
        raise RegistryError(
            f"{origin} was written for method interface {written_for}; this vlad has {API_VERSION}: write score as "
            f"encode and compare (docs/write-a-method.md){newer}"
        )
    return cls


def named_method(class_path: str, where: str | Path) -> type[Method]:
    """Returns the method that a file names; nothing is imported for it but registered methods.

    Args:
        class_path: What the file says.
        where: The file, for errors.

    Raises:
        RegistryError: Neither a registered method nor a class that has been imported; or as :func:`get_method`.
    """
    module, _, attribute = class_path.rpartition(".")
    plugins = discover().values()
    if any(plugin.class_path == class_path for plugin in plugins) or hasattr(sys.modules.get(module), attribute):
        return get_method(class_path)
    for plugin in plugins:  # one may be declared by another path than that of the module that defines it
        if plugin.module.partition(".")[0] == module.partition(".")[0]:
            cls = get_method(plugin.name)
            if f"{cls.__module__}.{cls.__qualname__}" == class_path:
                return cls
    raise RegistryError(
        f"{where} names the method {class_path}, which no installed package declares: install it; or, if it is yours, "
        f"name it yourself (--model {class_path}), or import it first"
    )


def _interface(cls: type[Method]) -> int:
    """Returns the method interface that a class was written for; those of interface 1 need not have stated it."""
    from vlad.methods.base import Method

    stated = any("api" in vars(base) for base in cls.__mro__[: cls.__mro__.index(Method)])
    if not stated and cls.score is not Method.score and cls.compare is Method.compare:
        return 1
    return cls.api
