"""The decision file: JSON with exact numbers, validated when it is read; it contains no code."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from vlad.decision.conformal import alarms_allowed, conformal_threshold
from vlad.decision.rules import Kind, ReferenceRecord, Rule
from vlad.errors import DecisionError
from vlad.files import read_plain

__all__ = ["FORMAT", "digest_of", "find_decision", "plain_rule", "read_fields"]

FORMAT = 2
"""Version of the file; changes when an older vlad could misread it."""

_LIMIT = 256 << 20  # bytes; a million images need a third of it


def find_decision(run: str | Path | None) -> Path | None:
    """Returns the file with the decision of a run: its ``decision.json``, or exported weights that contain one.

    Args:
        run: A run folder, a checkpoint in one, or a file of ``vlad export-weights``.
    """
    if not run:
        return None
    path = Path(run)
    if path.suffix == ".safetensors":
        return path if path.is_file() and _exported(path) else None
    if not path.is_dir() and path.parent.name != "checkpoints":
        return None
    file = (path if path.is_dir() else path.parent.parent) / "decision.json"
    return file if file.is_file() else None


def _exported(path: Path) -> str:
    """Returns the decision that exported weights hold, as text; "" for none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("decision", "")
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def plain_rule(rule: Rule) -> dict[str, Any]:
    """Returns a rule as JSON values."""
    return {
        "threshold": rule.threshold,
        "pixel_threshold": rule.pixel_threshold,
        "class_name": rule.class_name,
        "counts": {"normal": len(rule.normal), "anomalous": rule.anomalous},
        "references": rule.references._asdict(),
        "level": rule.level,
        "scores": list(rule.normal),
        "maxima": list(rule.maxima),
        "digests": dict(rule.digests),
    }


def digest_of(content: Mapping[str, Any]) -> str:
    """Returns the digest of a decision file's content, stored in it as ``digest``."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class _WrongError(Exception):
    """What is wrong in a file."""


def read_fields(path: Path) -> dict[str, Any]:
    """Reads a decision file; returns the arguments of :class:`vlad.decision.Decision`.

    Raises:
        DecisionError: The file does not exist or is not a decision file; the message says what is wrong.
    """
    try:
        if path.is_dir():
            found = find_decision(path)
            if found is None:
                raise DecisionError(f"folder {path} holds no decision.json; make one with vlad calibrate")
            path = found
        if path.suffix == ".safetensors" and path.is_file():
            text: str | bytes = _exported(path)
        else:
            text = read_plain(path, _LIMIT)
        return _fields(json.loads(text, parse_constant=_no_constant), path)
    except FileNotFoundError:
        raise DecisionError(
            f"decision {path} is neither a number nor a file; make one with: vlad calibrate RUN_OR_METHOD good/ "
            f"--output {path}"
        ) from None
    except (OSError, UnicodeDecodeError, RecursionError, OverflowError, ValueError, _WrongError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise DecisionError(
            f"{path} is no decision file of vlad ({cause}); make one with: vlad calibrate RUN_OR_METHOD good/"
        ) from error


def _no_constant(text: str) -> float:
    raise _WrongError(f"it holds {text}")


def _get(content: Mapping[str, Any], key: str, where: str, fits: Callable[[Any], bool], what: str) -> Any:
    value = content.get(key)
    if key not in content or not fits(value):
        raise _WrongError(f"{where}{key} must be {what}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _fields(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or "format" not in content:
        raise _WrongError("it has no format")
    if content["format"] != FORMAT:
        raise _WrongError(f"its format is {content['format']}, this vlad reads {FORMAT}")
    kind: Kind = _get(content, "kind", "", lambda value: value in get_args(Kind), f"one of {', '.join(get_args(Kind))}")
    rate = _get(content, "false_alarm_rate", "", _or_none(lambda v: _is_number(v) and 0 <= v < 1), "null or in [0, 1)")
    categories = _get(content, "categories", "", _is_mapping, "a mapping")
    default = _get(content, "default", "", _or_none(_is_mapping), "null or a mapping")
    if kind == "conformal" and not rate:
        raise _WrongError("false_alarm_rate must be above 0")
    if kind != "number" and (default is not None or not categories):
        raise _WrongError("it has no categories" if not categories else "only a number has a default")
    fields = {
        "kind": kind,
        "rules": {name: _rule(value, f"{name}: ", kind, rate) for name, value in categories.items()},
        "default": None if default is None else _rule(default, "default: ", kind, rate),
        "identity": _get(content, "identity", "", _is_mapping, "a mapping"),
        "false_alarm_rate": rate,
        "target": _get(content, "target", "", lambda value: value in ("", "f1", "fpr"), "f1, fpr or empty"),
        "min_area": _get(content, "min_area", "", lambda v: _is_number(v) and 0 <= v < 1, "in [0, 1)"),
        "seed": _get(content, "seed", "", _is_count, "a whole number"),
        "created": _get(content, "created", "", _is_text, "text"),
        "version": _get(content, "vlad", "", _is_text, "text"),
        "source": str(path),
    }
    if _get(content, "digest", "", _is_text, "text") != digest_of(content):
        raise _WrongError("its digest does not fit: it was damaged or edited; for a number of your own give "
                          "--decision NUMBER")  # fmt: skip
    return fields


def _numbers(content: Mapping[str, Any], key: str, where: str) -> tuple[float, ...]:
    values = _get(content, key, where, lambda v: isinstance(v, list) and all(map(_is_number, v)), "a list of numbers")
    return tuple(sorted(float(value) for value in values))


def _rule(content: Any, where: str, kind: Kind, rate: float | None) -> Rule:
    if not isinstance(content, dict):
        raise _WrongError(f"{where}it must be a mapping")
    counts = _get(content, "counts", where, _is_mapping, "a mapping")
    references = _get(content, "references", where, _is_mapping, "a mapping")
    digests = _get(content, "digests", where, lambda v: _is_mapping(v) and all(map(_is_count, v.values())), "a mapping")
    threshold = float(_get(content, "threshold", where, _is_number, "a number"))
    normal = _numbers(content, "scores", where)
    if _get(counts, "normal", f"{where}counts.", _is_count, "a whole number") != len(normal):
        raise _WrongError(f"{where}counts.normal is {counts['normal']}, and there are {len(normal)} scores")
    if kind == "conformal":  # what decides and what explains it must agree
        allowed = alarms_allowed(len(normal), rate or 0.0)
        if allowed < 1 or conformal_threshold(normal, rate or 0.0) != threshold:
            raise _WrongError(f"{where}threshold does not follow from the scores: it was edited; for a number of your "
                              "own give --decision NUMBER")  # fmt: skip
    level = _get(content, "level", where, _or_none(_is_number), "null or a number")
    pixels = _get(content, "pixel_threshold", where, _or_none(_is_number), "null or a number")
    return Rule(
        threshold=threshold,
        pixel_threshold=None if pixels is None else float(pixels),
        class_name=_get(content, "class_name", where, _is_text, "text"),
        normal=normal,
        maxima=_numbers(content, "maxima", where),
        level=None if level is None else float(level),
        anomalous=_get(counts, "anomalous", f"{where}counts.", _is_count, "a whole number"),
        references=ReferenceRecord(
            _get(references, "images", f"{where}references.", _is_text, "text"),
            _get(references, "memory", f"{where}references.", _is_text, "text"),
        ),
        digests=digests,
    )
