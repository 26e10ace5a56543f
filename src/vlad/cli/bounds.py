"""What a config may be: a text of a fitting size, whose aliases do not unfold to more than memory holds."""

from __future__ import annotations

from typing import Any

from vlad.errors import OptionError
from vlad.files import read_plain

__all__ = ["read_config", "refuse_bomb"]

_MOST_BYTES = 1 << 20
_MOST_VALUES = 100_000


def read_config(path: str) -> str:
    """Returns the text of a config.

    Raises:
        OptionError: It is no regular file, no UTF-8, or too large.
    """
    try:
        return read_plain(path, _MOST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise OptionError(f"config file {path} is no UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise OptionError(f"config file {path} cannot be read: {error.strerror}") from error


def refuse_bomb(tree: Any) -> None:
    """Refuses what YAML's aliases make large: a few lines can stand for billions of values, or contain themselves.

    Args:
        tree: Lists and mappings; those that several names stand for are one object.

    Raises:
        OptionError: It unfolds to more than 100,000 values, or to no end.
    """
    sizes: dict[int, int] = {}  # 0 while it is counted

    def size(value: Any) -> int:
        if not isinstance(value, dict | list):
            return 1
        if sizes.get(id(value)) == 0:
            raise OptionError("the config contains itself: an alias (*name) stands within its own anchor (&name)")
        if id(value) not in sizes:
            sizes[id(value)] = 0
            sizes[id(value)] = 1 + sum(map(size, value.values() if isinstance(value, dict) else value))
        if sizes[id(value)] > _MOST_VALUES:
            raise OptionError(f"the config's aliases (*name) unfold to more than {_MOST_VALUES:,} values")
        return sizes[id(value)]

    try:
        size(tree)
    except RecursionError as error:
        raise OptionError("the config is nested too deeply") from error
