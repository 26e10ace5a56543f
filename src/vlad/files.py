"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["cache_folder", "write_atomic", "write_json", "write_text"]


def cache_folder() -> Path:
    """Returns where vlad keeps what it can make again: ``VLAD_CACHE``, or ``~/.cache/vlad``."""
    return Path(os.environ.get("VLAD_CACHE") or Path.home() / ".cache" / "vlad")


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Calls ``write`` with a temporary path beside the target, then renames it; makes the folder if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 text."""

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    return write_atomic(path, write)


def write_json(path: Path, value: Any) -> Path:
    """Writes indented JSON; NaN is not JSON and must be None by now."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
