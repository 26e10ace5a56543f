"""The protocol card: what a number depends on, from the record of the run and its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["protocol_card"]

Lines = list[tuple[str, str]]


def protocol_card(
    record: Mapping[str, Any], settings: Mapping[str, Any], data: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> dict[str, Lines]:
    """Returns sections of lines, a name and a text each; what is not known is left out.

    Args:
        record: What ``run.json`` holds.
        settings: The method's settings.
        data: What is known of the data beside the record, by name.
        evaluation: How was measured, by name.
    """
    method, weights, checkpoint = (record.get(key) or {} for key in ("method", "weights", "checkpoint"))
    git = record.get("git") or {}
    git_text = f"{git.get('commit', '')[:12]}{', changed' if git.get('changed') else ''}" if git else ""
    sections: dict[str, Lines] = {
        "Method": _lines(
            {
                "class": method.get("class_path"),
                "trained": "no: random parameters" if record.get("untrained") else method.get("origin"),
                "checkpoint": checkpoint.get("path") or checkpoint.get("file"),
                "its SHA-256": checkpoint.get("sha256"),
                "encoder": method.get("backbone"),
                "encoder's weights": weights.get("from") or method.get("pretrained"),
                "their SHA-256": weights.get("sha256"),
                "fingerprint": method.get("fingerprint"),
                **{f"{name}": value for name, value in settings.items() if name not in {"backbone", "pretrained"}},
            }
        ),
        "Data": _lines({**_counts(record.get("data") or {}), **data}),
        "Evaluation": _lines(evaluation),
        "Run": _lines(
            {
                "command": record.get("command_line"),
                "started": record.get("started"),
                "device": record.get("device"),
                "processes": record.get("processes"),
                "precision": record.get("precision"),
                "threads": record.get("threads"),
                "platform": record.get("platform"),
                "python": record.get("python"),
                "vlad": method.get("version"),
                "commit": git_text,
                **(record.get("packages") or {}),
            }
        ),
    }
    return {heading: lines for heading, lines in sections.items() if lines}


def _counts(data: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Returns how many images each part of the data holds."""
    found = {}
    for part, sets in data.items():
        for one in sets:
            counts = ", ".join(f"{one[kind]} {kind}" for kind in ("normal", "anomalous", "unlabelled") if one.get(kind))
            found[f"{part}: {one['dataset']}"] = f"{one['images']} images of {one['categories']} categories: {counts}"
    return found


def _lines(values: Mapping[str, Any]) -> Lines:
    return [(name, _text(value)) for name, value in values.items() if value not in (None, "", [], {})]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(one) for one in value)
    return str(value)
