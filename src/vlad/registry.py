"""Methods by name, through the entry-point group ``vlad.methods``.

vlad declares its own methods in ``pyproject.toml`` in the same way as third-party packages. Listing reads only package
metadata; a class is imported when it is requested by name.

:mod:`vlad.plugins` documents duplicate names and how to disable plug-ins.
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
    """Returns all declared methods by canonical name, sorted, without importing them."""
    return declared(GROUP, "method")


def refresh() -> None:
    """Clears the cache, so that newly installed plug-ins are found."""
    discover.cache_clear()


def list_methods() -> list[str]:
    """Returns the short names of all installed methods, sorted, without importing them.

    Examples:
        >>> {"sdp", "sdp_plus", "adaclip"} <= set(list_methods())
        True
    """
    return list(discover())


def resolve(name: str) -> Plugin:
    """Returns the method declared under a short name (case-insensitive; ``-`` equals ``_``).

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
        RegistryError: The name is unknown, the plug-in fails to import (with the cause), the class is not a
            ``Method``, or it was written for another version of the method interface.
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
    """Returns the method that a file names; imports only registered methods.

    Args:
        class_path: Class path in the file.
        where: The file, for error messages.

    Raises:
        RegistryError: The class is neither registered nor already imported; or as for :func:`get_method`.
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
    """Returns the interface version that a class was written for; classes of interface 1 may not declare it."""
    from vlad.methods.base import Method

    stated = any("api" in vars(base) for base in cls.__mro__[: cls.__mro__.index(Method)])
    if not stated and cls.score is not Method.score and cls.compare is Method.compare:
        return 1
    return cls.api
