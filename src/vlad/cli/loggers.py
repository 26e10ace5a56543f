"""Short names of loggers: ``--trainer.logger tensorboard``, ``wandb``, ``csv``, or a list of them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import yaml

from vlad.errors import OptionError, nearest

__all__ = ["expand_logger", "expand_logger_text"]

# short name -> class, and the package that comes with the extra of that name
_LOGGERS = {"tensorboard": ("vlad.runs.TensorBoard", "tensorboard"), "wandb": ("vlad.runs.WandB", "wandb")}
_CSV = "csv"  # what a run does anyway


def expand_logger(value: Any) -> Any:
    """Returns what ``trainer.logger`` means: short names as the classes they stand for, ``csv`` as the default.

    Args:
        value: A name, a class path, a mapping with ``class_path``, a boolean, None, or a list of such.

    Raises:
        OptionError: No such logger, or its package is not installed.

    Examples:
        >>> expand_logger("csv"), expand_logger(["csv"]), expand_logger(False)
        (True, True, False)
    """
    if isinstance(value, list):
        kept = [expand_logger(one) for one in value if one != _CSV]
        return kept or True
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        flat = {key: one for key, one in value.items() if key not in {"class_path", "init_args"}}
        settings = {**(value.get("init_args") or {}), **flat}
        return {"class_path": _class(value["class_path"]), **({"init_args": settings} if settings else {})}
    if not isinstance(value, str):
        return value
    return True if value == _CSV else {"class_path": _class(value)}


def _class(name: str) -> str:
    if "." in name:
        return name
    if name not in _LOGGERS:
        raise OptionError(f"trainer.logger has no '{name}'; {nearest(name, [*_LOGGERS, _CSV])} (or a class path)")
    path, package = _LOGGERS[name]
    if find_spec(package) is None:
        raise OptionError(f"trainer.logger {name} needs the package {package}: pip install 'vlad[{name}]'")
    return path


def expand_logger_text(text: str) -> str:
    """Does the same with the text of an option: ``tensorboard``, ``[csv, wandb]``, ``{class_path: wandb}``."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # the parser says what is wrong
    if isinstance(value, str) and "." in value:
        return text
    expanded = expand_logger(value)
    if isinstance(expanded, dict) and set(expanded) == {"class_path"}:
        return str(expanded["class_path"])
    return json.dumps(expanded)
