"""``vlad methods``, ``vlad datasets``: what is installed and known, unimported; and ``vlad export-weights``."""

from __future__ import annotations

import argparse
import ast
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlad.datamodules.catalog import get_record, list_datasets
from vlad.registry import Plugin, discover

__all__ = ["datasets", "export", "methods"]


def _options(arguments: list[str], text: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"vlad {arguments[0]}", description=text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments[1:])


def _summary(plugin: Plugin) -> tuple[str, str]:
    """Returns the first line of a class's docstring, read from its source, and why it is not available."""
    try:
        spec = find_spec(plugin.module)
    except Exception as error:  # importing the parent package of a plug-in may fail in any way
        return "", f"{type(error).__name__}: {error}"
    if spec is None or spec.origin is None:
        return "", f"module {plugin.module} is not there"
    try:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        return "", f"{type(error).__name__}: {error}"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == plugin.attribute:
            return (ast.get_docstring(node) or "").split("\n")[0], ""
    return "", ""  # defined elsewhere and imported there: known only by importing it


def _print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    columns = list(rows[0])
    widths = [max(len(column), *(len(str(row[column])) for row in rows)) for column in columns]
    for line in [columns, *([str(row[column]) for column in columns] for row in rows)]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def methods(arguments: list[str]) -> int:
    """Prints every installed method with its origin; a plug-in that cannot be found is marked."""
    options = _options(arguments, "List the installed methods; none of them is imported.")
    rows = []
    for plugin in discover().values():
        text, problem = _summary(plugin)
        rows.append(
            {
                "name": plugin.name,
                "from": f"{plugin.distribution} {plugin.version}",
                "class_path": plugin.class_path,
                "summary": f"not available: {problem}" if problem else text,
            }
        )
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
    return 0


def export(arguments: list[str]) -> int:
    """Writes a run's trained parameters, with everything needed to use them, to one file."""
    parser = argparse.ArgumentParser(prog="vlad export-weights", description="Write what a run has trained to a file.")
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument("-o", "--output", required=True, help="file ending in .safetensors")
    parser.add_argument("--decision", help="decision file to keep in it; by default the run's own decision.json")
    options = parser.parse_args(arguments[1:])
    from pathlib import Path

    from vlad.checkpoint import export_weights
    from vlad.decision import Decision, find_decision

    file = options.decision or find_decision(options.run)
    decision = Decision.load(file).to_json() if file else ""
    print(f"written to {export_weights(options.run, Path(options.output), decision)}")
    if file:
        print(f"with the decision of {file}")
    return 0


def datasets(arguments: list[str]) -> int:
    """Prints every data set of the catalogue."""
    options = _options(arguments, "List the data sets of the catalogue.")
    records = [get_record(name) for name in list_datasets()]
    if options.json:
        keys = (
            "name",
            "title",
            "domain",
            "levels",
            "folders",
            "categories",
            "licence",
            "url",
            "steps",
            "expected",
        )
        print(json.dumps([{key: getattr(record, key) for key in keys} for record in records], indent=2))
        return 0
    _print_table(
        [
            {
                "name": record.name,
                "title": record.title,
                "domain": record.domain,
                "truth": "+".join(record.levels),
                "categories": len(record.categories),
                "test images": sum(record.expected.get("test", {}).values()) or "?",
                "licence": record.licence,
            }
            for record in records
        ]
    )
    print("\nalso: folder (good/bad folders, masks optional), table (CSV, JSON lines, parquet), or any path")
    return 0
