"""What jsonargparse and Lightning complain of, in one line that names the option and the fix."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from vlad.errors import nearest
from vlad.migrate import RENAMED
from vlad.registry import list_methods

__all__ = ["describe_type", "first_sentence", "one_line", "short_error"]

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
_MANY = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts"}


def describe_type(hint: Any) -> str:
    """Returns a type in words.

    Examples:
        >>> describe_type(int)
        'a whole number'
        >>> describe_type(list[str] | None)
        'a list of texts'
        >>> describe_type(typing.Literal["a", "b"])
        'a or b'
    """
    return _or(_alternatives(hint)) or "of another type"


def _alternatives(hint: Any) -> list[str]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _WORDS:
        return [_WORDS[hint]]
    if origin is typing.Literal:
        return [str(value) for value in arguments if value is not None]
    if origin in {typing.Union, types.UnionType}:
        found = [word for part in arguments if part is not type(None) for word in _alternatives(part)]
        return list(dict.fromkeys(found))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return ["a mapping"]
    if isinstance(origin, type) and issubclass(origin, Iterable):
        parts = [part for part in arguments if part is not Ellipsis]
        return [f"a list of {_MANY[parts[0]]}" if parts and parts[0] in _MANY else "a list"]
    if inspect.isclass(hint):
        return [f"a class_path of {hint.__name__}"]
    return []


def _or(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)


def first_sentence(error: BaseException | str) -> str:
    """Returns an error's first sentence, without backticks, line breaks and what follows."""
    text = re.sub(r"\s+", " ", str(error)).strip().replace("`", "")
    found = re.match(r"(.+?[^.A-Z])\.(?: [A-Z]|$)", text)
    return found.group(1) if found else text.rstrip(".")


def one_line(error: BaseException) -> str:
    """Returns an error's own text in one line, without the traceback that a reading process puts around it."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rsplit(f"{type(error).__name__}: ", 1)[-1]
    return " ".join(text.split())


def short_error(message: str, known: Iterable[str], hints: Mapping[str, Any] | None = None, section: str = "") -> str:
    """Returns jsonargparse's error in one line, with the nearest option names or what the option takes.

    Args:
        message: The error as jsonargparse words it.
        known: All options, dotted.
        hints: The type of each option, where it is known.
        section: What stands before the options of the parser that complains, such as ``model.``.
    """
    text = re.sub(r"\s+", " ", message).strip()
    if re.search(r"arguments are required: \w*\.?model$", text):
        return f"no method is named: give --model NAME or model: in the config ({', '.join(list_methods())})"
    about_config = re.match(r"Parser key \"config\": (.*)|Unexpected config:|Problems parsing config: ", text)
    if about_config:
        return _config_error(about_config.group(1) or text)
    unread = re.search(r"Unable to load config [\"'](.+?)[\"']", text)
    if unread:
        return f"config file {unread.group(1)} does not exist or is not a mapping of options"
    wrong = re.search(r"[Oo]ption '([\w.+-]+)'(?: is not accepted|$)|unrecognized arguments: --([\w.+-]+)", text)
    if wrong is None:
        return _wrong_value(message, hints or {}, section) or _plainer(text)
    name = (wrong.group(1) or wrong.group(2)).rstrip("+")
    renamed = {
        old: new for old, new in RENAMED.items() if old == name or ("." not in name and old.endswith(f".{name}"))
    }
    if renamed:
        old, new = next(iter(renamed.items()))
        return f"the option {old} is called {new} now"
    words = set(known) if "." in name else {option.rpartition(".")[2] for option in known}
    group = re.search(r"Group '([\w.]+)' does not accept", text)
    if group:
        name, words = f"{group.group(1)}.{name}", set(known)
        return f"no option '{name}'; {nearest(name, words)}"
    text = re.sub(r"Subcommand '\w+' does not accept option", "no option", text)
    text = re.sub(r"^.*Validation failed: |unrecognized arguments: .*", "", text) or f"no option --{name}"
    return f"{text}; {nearest(name, words)}"


def _config_error(text: str) -> str:
    """Says of a config that it is missing, or no file, or no mapping, or no YAML."""
    missing = re.match(r"(File does not exist|Path is not a file|File is not readable): '(.*)'$", text)
    if missing:
        what = {"File does not exist": "does not exist", "Path is not a file": "is no file"}
        return f"config file {missing.group(2)} {what.get(missing.group(1), 'cannot be read')}"
    if text.startswith("Unexpected config:"):
        content = text.removeprefix("Unexpected config:").strip()
        shown = f"holds {content[:40]!r}" if content else "is empty"
        return f"the config {shown}, which is no mapping of options (model: sdp)"
    return _plainer(text)


def _wrong_value(message: str, hints: Mapping[str, Any], section: str) -> str:
    """Says in one line what an option has to be, where a value is of another type; "" for any other error."""
    keys = [key for key in re.findall(r'Parser key "([\w.]+)"', message) if key]
    given = re.findall(r"(?:Got value|Given value): (.*)", message)
    if not keys or not given:
        return ""
    key = ".".join(key for key in keys if key not in {"init_args"})
    key = re.sub(r"\.(?:init_args|dict_kwargs)\b", "", key)
    value = given[-1].strip()
    key = f"{section}{key}" if f"{section}{key}" in hints else key
    hint = hints.get(key)
    if hint is None:
        expected = re.findall(r"Expected an? <class '(?:[\w.]*\.)?(\w+)'>", message)
        named = {kind.__name__: word for kind, word in _WORDS.items()}
        words = [named.get(name, name) for name in dict.fromkeys(expected)]
        return f"{key} must be {_or(words)}, not {value!r}" if words else f"{key} cannot be {value!r}"
    return f"{key} must be {describe_type(hint)}, not {value!r}"


def _plainer(text: str) -> str:
    text = re.sub(r"Parser key \"([\w.]+)\"", r"\1", text)
    return re.sub(r"Problem with given class_path \"[\w.]+\": (?:Validation failed: )?", "", text)
