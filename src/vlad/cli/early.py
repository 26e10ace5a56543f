"""What a command line names and is not there, told before torch is imported: in half a second, not in five."""

from __future__ import annotations

from typing import Any

from vlad.cli.bounds import read_config
from vlad.cli.names import SHORT, split_arguments
from vlad.cli.values import is_there, typed_value
from vlad.datamodules.sources import Locations, as_sources
from vlad.errors import OptionError

__all__ = ["refuse_missing"]

_CONFIGS = ("--config", "--model", "--data", "--trainer", "--metrics")
_SOURCES = {"fit": ("--data.train", "--data.val"), "validate": ("--data.val",), "test": ("--data.test",)}


def refuse_missing(verb: str, arguments: list[str]) -> None:
    """Refuses configs, images and data folders that are not there.

    Args:
        verb: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: What follows it.

    Raises:
        OptionError: A config that is not there, or is none.
        DataError: Images or a data folder that are not there.
    """
    options, words = split_arguments(arguments)
    asked = {"--help", "--print_config"} & {name for name, _ in options}
    for name, value in options:
        option = SHORT.get(name, name)
        if option in _CONFIGS and value and "\n" not in value and not value.lstrip().startswith("{"):
            if is_there(value):
                read_config(value)
            elif option == "--config":
                raise OptionError(f"config file {value} does not exist")
        elif not asked and option in _SOURCES.get(verb, ()) and value:
            as_sources([one for one in _as_list(typed_value("sources", value)) if isinstance(one, str)])
        elif option == "--data.predict" and verb == "predict" and value:
            words += [str(one) for one in _as_list(typed_value("paths", value))]
    if verb == "predict" and not asked and any(not (set("*?[") & set(word) or is_there(word)) for word in words):
        Locations().index_predict(words)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
