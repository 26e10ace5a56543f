"""Short names and flat sections, rewritten to what jsonargparse expects before it sees them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import get_loader, set_loader

from vlad.errors import OptionError, nearest
from vlad.migrate import RENAMED
from vlad.registry import canonical, discover, get_method, list_methods, resolve

__all__ = ["LOADER", "expand_arguments", "expand_tree", "short_error"]

LOADER = "vlad"
_SHORT = {"--references": "--data.references", "--shots": "--data.shots"}
_FLAGS = {"--allow-untrained": "--allow_untrained", "--allow-overlap": "--data.allow_overlap"}
_RESERVED = {"class_path", "init_args", "dict_kwargs"}


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
        if key == "model":
            expanded[key] = _expand_section(value)
        elif key in {"fit", "validate", "test", "predict"}:
            expanded[key] = expand_tree(value)
    return expanded


def _load(text: str) -> Any:
    return expand_tree(get_loader("yaml")(text))


def _settings_last(arguments: list[str]) -> list[str]:
    """Moves ``--model.x value`` behind ``--model`` and ``--config``, which jsonargparse must see first."""
    first: list[str] = []
    last: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        name, equals, _ = argument.partition("=")
        setting = name.startswith("--model.") and name not in {"--model.class_path", "--model.help"}
        paired = (
            setting and not equals and position + 1 < len(arguments) and not arguments[position + 1].startswith("--")
        )
        (last if setting else first).extend(arguments[position : position + 1 + paired])
        position += 1 + paired
    return first + last


def expand_arguments(arguments: list[str]) -> list[str]:
    """Rewrites a command line: method names, the order of a method's settings, images after ``predict``."""
    expanded = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        renamed = RENAMED.get(name.removeprefix("--"))
        if name.startswith(("--data.", "--metrics.")) and renamed:  # a method may have an option of a former name
            raise OptionError(f"the option {name.removeprefix('--')} is called {renamed} now")
        if name in _FLAGS and not equals:
            expanded += [_FLAGS[name], "true"]
        else:
            expanded.append(_SHORT.get(name, name) + equals + value)
    for position, argument in enumerate(expanded):
        name, equals, value = argument.partition("=")
        if name not in {"--model", "--model.class_path", "--model.help"}:
            continue
        if equals:
            expanded[position] = f"{name}={class_path(value)}"
        elif position + 1 < len(expanded) and not expanded[position + 1].startswith("-"):
            following = expanded[position + 1]
            expanded[position + 1] = following if Path(following).is_file() else class_path(following)
    expanded = _settings_last(expanded)
    if expanded[:1] == ["predict"]:
        end = 1
        while end < len(expanded) and not expanded[end].startswith("-"):
            end += 1
        if end > 1:
            paths = [part for path in expanded[1:end] for part in ("--data.predict+", path)]
            expanded[1:end] = paths
    return expanded


def short_error(message: str, known: Iterable[str]) -> str:
    """Returns jsonargparse's error in one line, with the nearest option names or the methods to choose from.

    Args:
        message: The error as jsonargparse words it.
        known: All options, dotted.
    """
    text = re.sub(r"\s+", " ", message).strip()
    if re.search(r"arguments are required: \w*\.?model$", text):
        return f"no method is named: give --model NAME or model: in the config ({', '.join(list_methods())})"
    wrong = re.search(r"[Oo]ption '([\w.]+)'(?: is not accepted|$)|unrecognized arguments: --([\w.]+)", text)
    if wrong is None:
        return text
    name = wrong.group(1) or wrong.group(2)
    renamed = {
        old: new for old, new in RENAMED.items() if old == name or ("." not in name and old.endswith(f".{name}"))
    }
    if renamed:
        old, new = next(iter(renamed.items()))
        return f"the option {old} is called {new} now"
    words = set(known) if "." in name else {option.rpartition(".")[2] for option in known}
    text = re.sub(r"Subcommand '\w+' does not accept option", "no option", text)
    return f"{text}; {nearest(name, words)}"


set_loader(LOADER, _load, exceptions=(Exception,))
