"""Tables that vlad writes: one line a row, whatever names hold, no cell that a spreadsheet computes; and back again."""

from __future__ import annotations

import csv
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["cell", "plain_text", "write_frame", "write_table"]

_COMPUTED = "=+-@\uff1d\uff0b\uff0d\uff20"  # what makes a cell a formula, full-width too
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPED = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)", re.DOTALL)


def cell(value: Any) -> str:
    r"""Returns a value as the text of one cell.

    Numbers are written to the last digit, what is not known is empty, lists are JSON. A text with line breaks, escape
    codes, bytes that are no UTF-8, or blanks around it is quoted as a shell does, ``$'…'``; one that a spreadsheet
    would compute gets an apostrophe before it. :func:`plain_text` takes both back.

    Examples:
        >>> cell(0.1 + 0.2), cell(None), cell(float("nan")), cell([1, 2])
        ('0.30000000000000004', '', '', '[1, 2]')
        >>> print(cell("two\nlines"), cell("=1+1"), cell("-0.5"), cell("a.png"))
        $'two\nlines' '=1+1 -0.5 a.png
    """
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy's
        value = value.item()
    if isinstance(value, str):
        return _text(value)
    if value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in _NOTHING:
        return ""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


_NOTHING = {"NAType", "NaTType"}  # pandas' own kinds of nothing


def _text(text: str) -> str:
    hidden = any(unicodedata.category(letter) in _HIDDEN for letter in text) if not text.isascii() else False
    if hidden or text != text.strip() or (text.isascii() and not text.isprintable()) or text.startswith("$'"):
        return f"$'{''.join(map(_escaped, text))}'"
    if text[:1] in set(_COMPUTED) and not _is_number(text):
        return f"'{text}"
    return f"'{text}" if text[:1] == "'" and text[1:2] in set(f"{_COMPUTED}'") else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _escaped(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    if unicodedata.category(letter) not in _HIDDEN:
        return letter
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def plain_text(text: str) -> str:
    r"""Returns the text that :func:`cell` has written.

    Examples:
        >>> plain_text(cell("two\nlines")) == "two\nlines", plain_text(cell("=1+1")), plain_text("it's")
        (True, '=1+1', "it's")
    """
    if text.startswith("$'") and text.endswith("'") and len(text) > 2:
        return _ESCAPED.sub(_unescaped, text[2:-1])
    if text[:1] == "'" and text[1:2] and text[1] in set(f"{_COMPUTED}'"):
        return text[1:]
    return text


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if len(code) == 1:
        return {"n": "\n", "r": "\r", "t": "\t"}.get(code, code)
    number = int(code[1:], 16)
    if number > 0x10FFFF:
        return match[0]
    return chr(number + 0xDC00) if code[0] == "x" and number >= 0x80 else chr(number)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], separator: str = ",") -> Path:
    """Writes a table as UTF-8 text; the file is whole or not there.

    Args:
        path: The file.
        header: Names of the columns.
        rows: Their values, one sequence a row; they may come one by one.
        separator: Comma, or tab.

    Raises:
        OutputError: It cannot be written.
    """

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=separator, lineterminator="\n")
            writer.writerow(map(cell, header))
            writer.writerows(map(cell, row) for row in rows)

    return write_atomic(path, write)


def write_frame(path: Path, frame: pd.DataFrame, separator: str = ",") -> Path:
    """Writes a pandas table without its index; see :func:`write_table`."""
    columns = [frame[name].tolist() for name in frame.columns]
    return write_table(path, [str(name) for name in frame.columns], zip(*columns, strict=True), separator)
