"""Options whose value is text: what was typed is kept, letter by letter, and never read as YAML or as a file.

jsonargparse reads every value as YAML and an existing file's content in place of its path: ``#3 bolt`` becomes nothing,
``null`` nothing, ``01`` the number 1, and ``parts.csv`` the text of the table. For names, folders and categories none
of that is ever meant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse._typehints import ActionTypeHint
from jsonargparse._util import NestedArg

from vlad.datamodules.sources import Source
from vlad.errors import OptionError, nearest

__all__ = ["KINDS", "is_there", "keep_text", "protect", "typed_value"]

# option -> what it takes: one text, a list of texts, a path or list of paths, a data source or a list of them
KINDS = {
    "data.root": "text",
    "data.class_name": "text",
    "data.split_protocol": "text",
    "data.textures": "text",
    "data.categories": "names",
    "data.train": "sources",
    "data.val": "sources",
    "data.test": "sources",
    "data.predict": "paths",
    "data.references": "paths",
    "data.roi": "text",
    "data.ignore": "text",
    "ckpt_path": "text",
    "output": "text",
    "decisions.decision": "text",
    "trainer.default_root_dir": "text",
}
_VERBS = ("fit", "validate", "test", "predict")


class _TextLoader(yaml.SafeLoader):
    """Reads YAML and leaves every scalar the text that it is; only an unquoted null is None."""


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag.endswith((":null", ":merge"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _PlainLoader(_TextLoader):
    """The same for what was typed on the command line, where null is a text too."""


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith(":null")]
    for first, rules in _TextLoader.yaml_implicit_resolvers.items()
}


# -- configs ------------------------------------------------------------------------------------------------------


def keep_text(tree: Any, text: str) -> Any:
    """Puts the text that was written back into a loaded config, for the options that take text.

    Args:
        tree: What YAML made of the config.
        text: The config.
    """
    if not isinstance(tree, dict):
        return tree
    names = {name for key in KINDS for name in (key, key.rpartition(".")[2])}
    if not any(name in text for name in names):
        return tree
    return _merge(tree, yaml.load(text, _TextLoader))


def _merge(tree: Any, words: Any) -> Any:
    if not (isinstance(tree, dict) and isinstance(words, dict)):
        return tree
    merged = dict(tree)
    for key, value in tree.items():
        word = words.get(key, words.get(str(key)))
        if key in {"data", "trainer", "decisions"}:
            merged[key] = _section(value, word, f"{key}.")
        elif key in _VERBS and isinstance(value, dict) and {"model", "data", "trainer"} & set(value):
            merged[key] = _merge(value, word)
        elif key in KINDS or f"data.{key}" in KINDS:  # the latter: a file that is a data section
            merged[key] = word
    return merged


def _section(tree: Any, words: Any, prefix: str) -> Any:
    if not (isinstance(tree, dict) and isinstance(words, dict)):
        return tree
    return {key: words.get(key) if f"{prefix}{key}" in KINDS else value for key, value in tree.items()}


# -- the command line ---------------------------------------------------------------------------------------------


class _TextOption(ActionTypeHint):
    """An option of jsonargparse's whose values are taken as they are."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Takes a value from the command line."""
        _, namespace, value, option = args
        field = next((option[len(name) + 1 :] for name in self.option_strings if option.startswith(f"{name}.")), "")
        kind, before = KINDS[self.dest], namespace.get(self.dest)
        if field:  # --data.test.root FOLDER
            base = dict(_plain(before)) if isinstance(before, Mapping | Namespace) else {}
            taken = _check(kind, self.dest, {**base, field: typed_value("text", value)})
        else:
            taken = _check(kind, self.dest, typed_value(kind, value))
        if option.endswith("+") and before is not None:
            taken = [*_as_list(before), *_as_list(taken)]
        namespace.update(taken, self.dest)

    def _check_type(self, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
        """Checks a value that comes from a config, or once more at the end."""
        if isinstance(value, NestedArg):  # pragma: no cover - those of the command line do not come here
            value = {value.key: value.val}
        return _check(KINDS[self.dest], self.dest, _plain(value))

    def serialize(self, value: Any, dump_kwargs: Any = None) -> Any:
        """Returns a value as it is written to a config."""
        return _plain(value)

    def instantiate_classes(self, value: Any) -> Any:
        """Returns a value as the data module takes it."""
        return _plain(value)


def protect(parser: ArgumentParser) -> None:
    """Makes a parser take the options of :data:`KINDS` as they are typed."""
    for action in parser._actions:
        if action.dest in KINDS and isinstance(action, ActionTypeHint):
            action.__class__ = _TextOption


def _plain(value: Any) -> Any:
    """Returns namespaces and sources as mappings."""
    if isinstance(value, Namespace):
        return {key: _plain(one) for key, one in value.as_dict().items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items() if not str(key).startswith("__")}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def typed_value(kind: str, text: Any) -> Any:
    """Returns what a text of the command line stands for: itself, or a list or mapping in YAML's brackets."""
    if not isinstance(text, str) or text == "":
        return text or None
    stripped = text.strip()
    bracketed = stripped[:1] + stripped[-1:] in {"[]", "{}"}
    if kind == "text" or (kind != "names" and is_there(text)):
        return text
    if bracketed:
        with contextlib.suppress(ValueError):
            return json.loads(stripped, parse_float=str, parse_int=str)
        with contextlib.suppress(yaml.YAMLError):
            return yaml.load(stripped, _PlainLoader)
        return text
    if kind == "names" or (kind == "sources" and "," in text):
        parts = [part.strip() for part in text.split(",")]
        return parts if kind == "names" or len(parts) > 1 else text
    return text


def is_there(text: str) -> bool:
    """Whether a text is the path of something that exists."""
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


# -- checks -------------------------------------------------------------------------------------------------------


def _check(kind: str, key: str, value: Any) -> Any:
    """Returns a value in its usual form; refuses what is of another kind."""
    if value is None:
        return None
    if kind == "text":
        return _text(key, value)
    if kind == "names":
        names = value if isinstance(value, list) else [part.strip() for part in _text(key, value).split(",")]
        return [_text(key, name) for name in names]
    if kind == "paths":
        return [_text(key, path) for path in value] if isinstance(value, list) else _text(key, value)
    return [_source(key, one) for one in value] if isinstance(value, list) else _source(key, value)


def _text(key: str, value: Any) -> str:
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, bool | int | float) or value is None:
        raise OptionError(f"{key} must be a text, and {value!r} is none; quote it: '{value}'")
    raise OptionError(f"{key} must be a text, not {value!r}")


def _source(key: str, value: Any) -> Any:
    """Returns a data source: a name or path, or a mapping whose fields have the types of Source's."""
    if not isinstance(value, Mapping):
        return _text(key, value)
    kinds = typing.get_type_hints(Source)
    fields = {}
    for name, one in value.items():
        if name not in kinds:
            raise OptionError(f"{key}: a data source has no field '{name}'; {nearest(str(name), kinds)}")
        fields[name] = _field(f"{key}.{name}", one, kinds[name])
    return fields


def _field(key: str, value: Any, hint: Any) -> Any:
    """Returns a field of a data source in the type that it is declared with."""
    if value is None:
        return None
    kind, parts = str(hint), [hint, *typing.get_args(hint)]
    choices = [word for part in parts if typing.get_origin(part) is typing.Literal for word in typing.get_args(part)]
    if choices and value not in choices:
        raise OptionError(f"{key} must be one of {', '.join(filter(None, choices))}, not {value!r}")
    if hint is float:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise OptionError(f"{key} must be a number, not {value!r}") from None
    if kind.startswith("dict"):
        if not isinstance(value, Mapping):
            raise OptionError(f"{key} must be a mapping, not {value!r}")
        return {str(name): _text(f"{key}.{name}", one) for name, one in value.items()}
    if kind.startswith("list"):
        return _check("names", key, value)
    return _text(key, value)
