"""What a command line names and is not there, told before torch is imported: in half a second, not in five."""

from __future__ import annotations

import re
from typing import Any

from vlad.cli.bounds import read_config
from vlad.cli.names import FLAGS, SHORT, split_arguments
from vlad.cli.options import refuse_unknown
from vlad.cli.values import is_there, typed_value
from vlad.cli.verbs import refuse_foreign
from vlad.datamodules.sources import Locations, as_sources
from vlad.errors import OptionError
from vlad.registry import resolve

__all__ = ["refuse_missing"]

_CONFIGS = ("--config", "--model", "--data", "--trainer", "--metrics")
_MODELS = ("--model", "--model.class_path")
_CLASS = re.compile(r"\w+(\.\w+)+")
_SOURCES = {"fit": ("--data.train", "--data.val"), "validate": ("--data.val",), "test": ("--data.test",)}


def refuse_missing(verb: str, arguments: list[str]) -> None:
    """Refuses methods and options that there are not, and configs, images and data folders that are not there.

    Args:
        verb: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: What follows it.

    Raises:
        OptionError: An option that there is not, or is another verb's; a config that is not there, or is none.
        RegistryError: A method that is not registered.
        DataError: Images or a data folder that are not there.
    """
    options, words = split_arguments(arguments)
    model = next((value for name, value in reversed(options) if name in _MODELS and value), None)
    plain = model is not None and re.fullmatch(r"[\w-]+", model) is not None and not is_there(model)
    path = resolve(model).class_path if model is not None and plain else model
    names = [FLAGS.get(name, SHORT.get(name, name)).lstrip("-") for name, _ in options if name not in {"-h"}]
    refuse_foreign(verb, names)
    refuse_unknown(verb, names, path if path is not None and _CLASS.fullmatch(path) else None)
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
