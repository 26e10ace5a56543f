"""Short names and flat sections, rewritten to what jsonargparse expects before it sees them."""

from __future__ import annotations

import json
import re
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from jsonargparse import get_loader, set_loader

from vlad.cli.bounds import refuse_bomb
from vlad.cli.loggers import expand_logger, expand_logger_text
from vlad.cli.values import keep_text
from vlad.cli.verbs import drop_foreign
from vlad.errors import OptionError
from vlad.migrate import RENAMED
from vlad.registry import canonical, discover, get_method, resolve

__all__ = ["LOADER", "PARSED_VERB", "expand_arguments", "expand_tree", "given", "import_given", "split_arguments"]

LOADER = "vlad"
PARSED_VERB: ContextVar[str] = ContextVar("PARSED_VERB", default="")  # what belongs to other verbs is left out
SHORT = {
    "-c": "--config",
    "--references": "--data.references",
    "--shots": "--data.shots",
    "--class-name": "--data.class_name",
    "--max-pixels": "--data.max_pixels",
    "-o": "--output",
    "--decision": "--decisions.decision",
    "--engine": "--engine.name",
    "--maps": "--maps.format",
}
FLAGS = {
    "--allow-untrained": "--allow_untrained",
    "--allow-overlap": "--data.allow_overlap",
    "--fail-on-anomaly": "--fail_on_anomaly",
}
_ALONE = {"-h", "--help", "--print_config"}  # options without a value
_MANY = {"--references", *(f"--data.{name}" for name in ("references", "predict", "train", "val", "test"))}
_RESERVED = {"class_path", "init_args", "dict_kwargs"}
_SECTIONS = ("data", "trainer", "metrics", "heatmaps")


def class_path(name: str) -> str:
    """Returns a method's full class path; what is no plain name is returned as it is.

    Raises:
        RegistryError: A plain name that is not registered, or whose plug-in fails to import.
    """
    if re.search(r"[./\\{]", name):
        return name
    get_method(name)  # here its failure is told in full; jsonargparse would wrap it
    return resolve(name).class_path


def _expand_section(section: Any) -> Any:
    """Makes ``sdp`` or ``{class_path: sdp, image_size: 240}`` a full ``class_path``/``init_args`` mapping."""
    if isinstance(section, str):
        return section if re.search(r"[./\\{]", section) else {"class_path": class_path(section)}
    if not isinstance(section, dict) or "class_path" not in section:
        return section
    flat = {key: value for key, value in section.items() if key not in _RESERVED}
    kept = {key: value for key, value in section.items() if key in _RESERVED}
    kept["class_path"] = class_path(str(section["class_path"]))
    if flat or "init_args" in section:
        kept["init_args"] = {**(section.get("init_args") or {}), **flat}
    return kept


def expand_tree(tree: Any) -> Any:
    """Rewrites a parsed config: its ``model`` section, below a verb too, or a file that is such a section."""
    if not isinstance(tree, dict):
        return tree
    if isinstance(tree.get("class_path"), str) and canonical(tree["class_path"]) in discover():
        return _expand_section(tree)
    expanded = dict(tree)
    for key, value in tree.items():
        if key in _SECTIONS and not isinstance(value, dict | str | None):
            raise OptionError(f"{key} must be a mapping of options, not {value!r}")
        if key == "model":
            expanded[key] = _expand_section(value)
        elif key == "trainer" and isinstance(value, dict) and "logger" in value:
            expanded[key] = {**value, "logger": expand_logger(value["logger"])}
        elif key in {"fit", "validate", "test", "predict"}:
            expanded[key] = expand_tree(value)
    return expanded


def _load(text: str) -> Any:
    try:
        tree = get_loader("yaml")(text)
    except RecursionError as error:
        raise OptionError("the config is nested too deeply") from error
    refuse_bomb(tree)
    tree = expand_tree(keep_text(tree, text))
    return drop_foreign(PARSED_VERB.get(), tree) if PARSED_VERB.get() else tree


def split_arguments(arguments: list[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Splits what follows the verb into options, each with its value or None, and plain words.

    An option that takes several paths takes all words up to the next option, as a shell's pattern gives them.

    Examples:
        >>> split_arguments(["photos/", "--model", "sdp", "--data.seed=1", "--help"])
        ([('--model', 'sdp'), ('--data.seed', '1'), ('--help', None)], ['photos/'])
    """
    options: list[tuple[str, str | None]] = []
    words: list[str] = []
    values: list[str] = []  # of the option before
    most = 0  # values that it still takes
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if argument == "--":  # only words follow
            return options, words + arguments[position + 1 :]
        if name.startswith("--") or (name in {"-c", "-o", "-h"} and not most):
            options.append((name, value if equals else None))
            alone = equals or name in _ALONE or name in FLAGS
            values, most = [], 0 if alone else len(arguments) if name in _MANY else 1
        elif most:
            values, most = [*values, argument], most - 1
            options[-1] = (options[-1][0], values[0] if len(values) == 1 else json.dumps(values))
        else:
            words.append(argument)
    return options, words


def expand_arguments(arguments: list[str]) -> list[str]:
    """Rewrites a command line: method names, the order of a method's settings, images after ``predict``.

    Raises:
        OptionError: An option of a former name, or a word that belongs to no option.
        RegistryError: A method that is not registered, or whose plug-in fails to import.
    """
    verb, (options, words) = arguments[:1], split_arguments(arguments[1:])
    if verb == ["predict"] and words:
        words += [value for name, value in options if name == "--data.predict" and value]
        options = [(name, value) for name, value in options if name != "--data.predict"]
    first: list[str] = []
    last: list[str] = []  # --model.x must come after --model and --config
    for name, value in options:
        renamed = RENAMED.get(name.removeprefix("--"))
        if name.startswith(("--data.", "--metrics.")) and renamed:  # a method may have an option of a former name
            raise OptionError(f"the option {name.removeprefix('--')} is called {renamed} now")
        name, value = (FLAGS[name], value or "true") if name in FLAGS else (SHORT.get(name, name), value)
        if name in {"--model", "--model.class_path", "--model.help"} and value is not None:
            value = value if name == "--model" and Path(value).is_file() else class_path(value)
        if name == "--trainer.logger" and value is not None:
            value = expand_logger_text(value)
        setting = name.startswith("--model.") and name not in {"--model.class_path", "--model.help"}
        (last if setting else first).extend([name] if value is None else [f"{name}={value}"])
    if words and verb != ["predict"]:
        raise OptionError(
            f"'{words[0]}' belongs to no option" + (f"; give --data.test {words[0]}" if verb == ["test"] else "")
        )
    images = ["--data.predict=" + (json.dumps(words) if len(words) > 1 else words[0])] if words else []
    return [*verb, *images, *first, *last]


def given(arguments: list[str], *keys: str) -> bool:
    """Whether a command line, or a config that it names, gives one of some options (``model``, ``model.x``, …).

    Args:
        arguments: The command line after the verb, as :func:`expand_arguments` returns it.
        *keys: Dotted options.
    """
    for name, value in split_arguments(arguments)[0]:
        option = name.removeprefix("--").replace(".init_args.", ".")
        if option in keys or (option == "model.class_path" and "model" in keys):
            return True
        if name in {"--config", "-c"} and value and _holds(_read(value), keys):
            return True
        if name == "--model" and value and Path(value).is_file() and _holds({"model": _read(value)}, keys):
            return True
    return False


def import_given(arguments: list[str]) -> None:
    """Imports the methods that a command line and its configs name: those are the user's own words."""
    for name, value in split_arguments(arguments)[0]:
        tree = _read(value or "") if name in {"--config", "-c"} else {}
        model = tree.get("model") if isinstance(tree, dict) else None
        path = model.get("class_path") if isinstance(model, dict) else model
        path = value if name in {"--model", "--model.class_path"} else path
        if isinstance(path, str) and "." in path and not Path(path).is_file():
            get_method(path)


def _read(file: str) -> Any:
    """Returns what a config holds, as far as it can be read; jsonargparse complains of the rest."""
    try:
        return _load(Path(file).read_text(encoding="utf-8"))
    except Exception:  # no file, no YAML, an unknown method
        return {}


def _holds(tree: Any, keys: tuple[str, ...]) -> bool:
    if not isinstance(tree, dict):
        return False
    for key in keys:
        section, _, name = key.partition(".")
        value = tree.get(section)
        if value is None:
            continue
        if not name or (isinstance(value, dict) and (name in value or name in (value.get("init_args") or {}))):
            return True
    return False


set_loader(LOADER, _load, exceptions=(Exception,))
