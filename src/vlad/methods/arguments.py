"""Constructor arguments of methods: which there are, and their form in a checkpoint."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from vlad.errors import MethodError, nearest

__all__ = ["build_options", "check_known", "init_parameters", "parameter_types", "plain_arguments"]


def init_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Returns a constructor's parameters, with those that ``**options`` hands on to the base's constructor.

    Examples:
        >>> class Base:
        ...     def __init__(self, size: int = 1) -> None: ...
        >>> class Derived(Base):
        ...     def __init__(self, lr: float = 0.1, **options: int) -> None: ...
        >>> list(init_parameters(Derived))
        ['lr', 'size']
    """
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = [p for p in inspect.signature(vars(base)["__init__"]).parameters.values() if p.name != "self"]
        named = [p for p in parameters if p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL}]
        found.update({p.name: p for p in named if p.name not in found})
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def parameter_types(cls: type) -> dict[str, Any]:
    """Returns the types of a constructor's parameters; those that cannot be told are left out."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base):
            try:
                found |= typing.get_type_hints(vars(base)["__init__"])
            except (NameError, TypeError, AttributeError):  # a name that only a type checker imports
                continue
    known = init_parameters(cls)
    return {name: hint for name, hint in found.items() if name in known}


def check_known(cls: type, arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that a class does not have.

    Raises:
        MethodError: An unknown argument; the message names the nearest ones.
    """
    known = init_parameters(cls)
    for argument in arguments:
        if argument not in known:
            raise MethodError(f"{cls.__name__} has no argument '{argument}'; {nearest(argument, known)}")


def plain_arguments(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a method's arguments with their defaults as plain JSON values, without ``weights``.

    Dataclasses become ``{"class_path": …, "init_args": …}``; a ready encoder becomes ``"object:NAME"``, which cannot
    be built again and says so.
    """
    parameters = init_parameters(cls)
    given = {**dict(zip(parameters, args, strict=False)), **kwargs}
    values = {name: given.get(name, p.default) for name, p in parameters.items() if name != "weights"}
    return {name: _plain(value) for name, value in values.items() if value is not inspect.Parameter.empty}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        options = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}", "init_args": options}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return f"object:{getattr(value, 'name', type(value).__name__)}"


def build_options(value: Any, kind: type) -> Any:
    """Builds nested options from their plain form; what is built already is returned as it is.

    Args:
        value: An object of a kind, or ``{"class_path": …, "init_args": …}``, where the class path may be the name of
            a class beside ``kind``.
        kind: Base class of what is wanted. Nothing else is ever called: a checkpoint cannot run code.

    Raises:
        MethodError: No such class, or one of another kind, or wrong options.
    """
    if not isinstance(value, Mapping):
        return value
    path = str(value.get("class_path", f"{kind.__module__}.{kind.__qualname__}"))
    options = value.get("init_args", {key: one for key, one in value.items() if key != "class_path"})
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(import_module(module or kind.__module__), name)
    except (ImportError, AttributeError) as error:
        raise MethodError(f"there is no {kind.__name__.lower()} {path}") from error
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise MethodError(f"{path} is no {kind.__name__.lower()}")
    check_known(cls, options or {})
    return cls(**(options or {}))
