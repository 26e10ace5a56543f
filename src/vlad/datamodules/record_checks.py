"""Whether a record of a data set says what a record can say: types, bounds, paths that stay below their folder."""

from __future__ import annotations

import re
import string
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from vlad.errors import DataError, nearest

if TYPE_CHECKING:
    from vlad.datamodules.record import Download, Layout, Record

__all__ = ["MOST_BYTES", "check_record", "check_types"]

MOST_BYTES = 1 << 20
"""Largest record that is read, in bytes; ours have some thousand."""

_BOUNDS = {"mask_threshold": (0, 65535), "normal_test": (0, 1), "row_crops": (0, 64), "size": (0, 1 << 50)}
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", re.IGNORECASE)


def check_types(cls: Any, table: Mapping[str, Any], origin: str) -> None:
    """Refuses values of other types than a dataclass declares, and numbers out of their bounds.

    Args:
        cls: The dataclass.
        table: Its values as TOML gives them: lists for tuples.
        origin: What an error begins with.

    Raises:
        DataError: One is wrong, or a required one is missing.
    """
    hints = typing.get_type_hints(cls)
    for one in fields(cls):
        if one.name not in table:
            if one.default is MISSING and one.default_factory is MISSING:
                raise DataError(f"{origin}: '{one.name}' is missing")
            continue
        value = table[one.name]
        if typing.get_origin(hints[one.name]) is typing.Literal and isinstance(value, str):
            known = typing.get_args(hints[one.name])
            if value not in known:
                raise DataError(f"{origin}: {one.name} {_shown(value)}; {nearest(value, known)}")
        elif not _fits(value, hints[one.name]):
            raise DataError(f"{origin}: '{one.name}' must be {_words(hints[one.name])}, not {_shown(value)}")
        low, high = _BOUNDS.get(one.name, (None, None))
        if low is not None and high is not None and not low <= value <= high:
            raise DataError(f"{origin}: '{one.name}' must be from {low} to {high}, not {_shown(value)}")


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in parts
    if origin in {typing.Union, types.UnionType}:
        return any(_fits(value, part) for part in parts)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(_fits(one, parts[1]) for one in value.values())
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_fits(one, parts[0]) for one in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _words(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(map(str, parts))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a table of {_words(parts[1]).removeprefix('a ')}s"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list of {_words(parts[0]).removeprefix('a ')}s"
    return _WORDS.get(hint, "of another kind")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:80]}…"


# -- what belongs together --------------------------------------------------------------------------------------------


def check_record(record: Record, origin: str) -> None:
    """Refuses paths that lead elsewhere, templates of unknown parts, and what is missing where it is needed.

    Raises:
        DataError: Something of the kind.
    """
    if not record.layouts or not record.categories:
        raise DataError(f"{origin}: a record needs [categories] and at least one [[layouts]]")
    _check_path(record.name, "name", origin)
    for folder in record.folders:
        _check_path(folder, "folders", origin)
    for layout in record.layouts:
        _check_layout(layout, f"{origin}: layout '{layout.name}'")
    for download in record.downloads:
        _check_download(download, f"{origin}: a download")


def _check_path(path: str, key: str, origin: str) -> None:
    parts = path.replace("\\", "/").split("/")
    if path.startswith(("/", "\\")) or ".." in parts or "\0" in path or ":" in parts[0]:
        raise DataError(f"{origin}: '{key}' {_shown(path)} leads out of the data set's folder; give a relative path")


def _check_layout(layout: Layout, origin: str) -> None:
    try:
        groups = set(re.compile(layout.image).groupindex)
    except (re.error, RecursionError, OverflowError) as error:
        raise DataError(f"{origin}: image is no regular expression: {error}") from error
    for key in ("table", "json"):
        _check_path(getattr(layout, key), key, origin)
    for template in layout.masks:
        _check_template(template, groups, "masks", origin)
    for template in layout.base:
        _check_template(template, {"category"}, "base", origin)
    if layout.labels:
        _need(layout.labels, ("file", "key", "value"), "labels", origin)
        _check_path(layout.labels["file"], "labels.file", origin)
        if "stem" not in groups:
            raise DataError(f"{origin}: 'labels' needs the group stem in image")
    if layout.table or layout.json:
        _need(layout.columns, ("defect_type", "image", *(("mask",) if layout.json else ())), "columns", origin)


def _check_template(template: str, known: set[str], key: str, origin: str) -> None:
    """Refuses a template whose fields are no plain names of groups: format strings can do more."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"{origin}: '{key}' {_shown(template)}: {error}") from error
    for _, name, form, conversion in parts:
        if name is not None and (name not in known or form or conversion):
            raise DataError(f"{origin}: '{key}' {_shown(template)} names {{{name}}}; known: {', '.join(sorted(known))}")
    _check_path(template, key, origin)


def _need(table: Mapping[str, str], keys: Sequence[str], what: str, origin: str) -> None:
    missing = [key for key in keys if key not in table]
    if missing:
        raise DataError(f"{origin}: '{what}' lacks {', '.join(missing)}")


def _check_download(download: Download, origin: str) -> None:
    if not download.url.startswith(("https://", "http://")):
        raise DataError(f"{origin}: url {_shown(download.url)} must begin with https:// or http://")
    if not _CHECKSUM.fullmatch(download.checksum):
        raise DataError(f"{origin}: checksum {_shown(download.checksum)} must be sha256: or md5: and its digits")
    _check_path(download.folder, "folder", origin)
