"""Tables from files: CSV in its dialects, TSV, JSON, JSON lines, parquet, and sheets where pandas can read them."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.datamodules.image_files import printable
from vlad.datamodules.notes import say
from vlad.errors import DataError
from vlad.files import read_plain
from vlad.table import plain_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TABLE_SUFFIXES", "is_table", "read_table", "with_new_names"]

_SHEETS = {".xlsx", ".xls", ".xlsm", ".ods"}
_TEXT = {".csv", ".tsv", ".tab"}
_LINES = {".jsonl", ".ndjson"}
TABLE_SUFFIXES = frozenset(_TEXT | _LINES | _SHEETS | {".json", ".parquet", ".pq"})
"""Suffixes of files that are read as tables."""

_MOST_BYTES, _MOST_ROWS = 1 << 30, 20_000_000
_DELIMITERS = ",;\t|"
_RENAMED = {"species": "defect_type", "band": "row_crop", "key": "image_id"}


def is_table(path: str | Path) -> bool:
    """Returns whether a path is that of a table, by its suffix in any case."""
    return Path(path).suffix.lower() in TABLE_SUFFIXES


def with_new_names(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Renames the columns of tables that an earlier ``vlad data index`` wrote, and says so.

    ``key`` alone makes no such table: it may be anybody's column.
    """
    old = {name: new for name, new in _RENAMED.items() if name in table.columns and new not in table.columns}
    if not old.keys() - {"key"}:
        return table
    told = ", ".join(f"{name} is {new} now" for name, new in old.items())
    warnings.warn(
        f"table {file} has columns of an older version ({told}); write it anew: vlad data index", stacklevel=3
    )
    return table.rename(columns=old)


def read_table(file: Path) -> pd.DataFrame:
    """Reads a table, whatever its columns: .csv, .tsv, .json, .jsonl, .parquet, and .xlsx where pandas can.

    Of text, the separator (comma, semicolon, tab, bar) and the encoding (UTF-8, UTF-16, else Windows-1252, which is
    said) are found out; blanks around names and values are dropped. Cells are text, "" where nothing is there.

    Raises:
        DataError: No such file, an unknown suffix, or a broken table.
    """
    import pandas as pd

    suffix, name = file.suffix.lower(), printable(file)
    if not file.is_file():
        raise DataError(f"table {name} does not exist")
    try:
        if suffix in _TEXT:
            return _read_text(file, "\t" if suffix in {".tsv", ".tab"} else ",")
        if suffix in _LINES:
            lines = [line for line in _decoded(file).splitlines() if line.strip()]
            return _of_records([_parsed(line, f"line {number}") for number, line in enumerate(lines, start=1)])
        if suffix == ".json":
            return _of_records(_records(_parsed(_decoded(file), "the file")))
        if suffix in {".parquet", ".pq"}:
            _refuse_large_parquet(file)
            return _of_frame(pd.read_parquet(file))
        if suffix in _SHEETS:
            _refuse_large_sheet(file)
            return _of_frame(pd.read_excel(file, dtype=str, keep_default_na=False))
    except ImportError as error:
        if suffix in _SHEETS:
            needed = re.search(r"'?(openpyxl|xlrd|odfpy)'?", str(error))
            raise DataError(
                f"table {name} is a sheet: save it as CSV and use .csv, or pip install "
                f"{needed[1] if needed else 'openpyxl'}"
            ) from error
        raise DataError(f"table {name}: reading parquet needs pyarrow; pip install 'vlad[parquet]'") from error
    except DataError as error:
        raise DataError(f"table {name} cannot be read: {error}") from error
    except Exception as error:  # pyarrow, pandas, openpyxl and zipfile have errors of their own
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "; save it as CSV and use .csv" if suffix in _SHEETS else ""
        raise DataError(f"table {name} cannot be read: {printable(cause)}{fix}") from error
    raise DataError(f"table {name} has the suffix {file.suffix}; use .csv, .tsv, .json, .jsonl or .parquet")


def _refuse_large_parquet(file: Path) -> None:
    """Refuses a table that is small on disk and has no end in memory."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as opened:
        about = opened.metadata
        size = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
        if about.num_rows > _MOST_ROWS or size > _MOST_BYTES:
            raise DataError(f"it has {about.num_rows:,} rows of {size:,} bytes, more than a list of images has")


def _refuse_large_sheet(file: Path) -> None:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _MOST_BYTES:
            raise DataError(f"it unpacks to {size:,} bytes, more than a list of images has")


def _decoded(file: Path) -> str:
    """Decodes text: UTF-8 or UTF-16, with or without a byte order mark, else Windows-1252, and says so."""
    content = read_plain(file, _MOST_BYTES)
    if content[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return content.decode("utf-16")
    if content[1:2] == b"\0" and content[:1].isascii():
        return content.decode("utf-16-le")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
        say(f"table {printable(file)} is not UTF-8 and is read as Windows-1252; save it as UTF-8 where names are wrong")
        return text


def _read_text(file: Path, likely: str) -> pd.DataFrame:
    text = _decoded(file).replace("\r\n", "\n").replace("\r", "\n")
    first = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = ""
    if re.fullmatch(r"sep=.", first.strip(), re.IGNORECASE):  # Excel's own hint
        delimiter, text = first.strip()[4], text.split("\n", 1)[1]
        first = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = delimiter or _delimiter(first, likely)
    lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True))
    lines = [[plain_text(cell.strip()) for cell in line] for line in lines]
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if any(line)]
    if not numbered:
        raise DataError("it is empty")
    header, rows = numbered[0][1], numbered[1:]
    while header and not header[-1]:  # separators at the end of each line
        header = header[:-1]
    wide = [(number, line) for number, line in rows if any(line[len(header) :])]
    if wide:
        number, line = wide[0]
        raise DataError(f"line {number} has {len(line)} values for {len(header)} columns ({len(wide)} such lines)")
    filled = [(line + [""] * len(header))[: len(header)] for _, line in rows]
    return _table(header, filled)


def _delimiter(header: str, likely: str) -> str:
    """Returns what separates the names of a header: the most frequent of the usual ones outside quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    counts = {one: bare.count(one) for one in _DELIMITERS}
    most = max(counts.values())
    return likely if counts[likely] == most else next(one for one in _DELIMITERS if counts[one] == most)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Makes a table.

    Raises:
        DataError: A column comes twice.
    """
    import pandas as pd

    twice = [name for name, times in Counter(name.casefold() for name in header if name).items() if times > 1]
    if twice:
        places = [str(place) for place, name in enumerate(header, start=1) if name.casefold() == twice[0]]
        raise DataError(f"the column {printable(twice[0])!r} comes {len(places)} times (columns {', '.join(places)})")
    names = [name or f"column {place}" for place, name in enumerate(header, start=1)]
    return pd.DataFrame(list(rows), columns=names, dtype=object)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is no JSON ({str(error).splitlines()[0]})") from error


def _records(value: Any) -> list[Any]:
    """Returns the records of a JSON file: a list of them, one list inside a mapping, or columns as pandas writes them.

    Raises:
        DataError: None of these.
    """
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and value:
        if {"images", "annotations"} <= value.keys():
            raise DataError("it is COCO's format, which is not read as a table; list image_path and label")
        if {"columns", "data"} <= value.keys():  # pandas, orient="split"
            return [dict(zip(value["columns"], line, strict=True)) for line in value["data"]]
        lists = [one for one in value.values() if isinstance(one, list)]
        if len(lists) == 1 and all(isinstance(one, dict) for one in lists[0]):
            return lists[0]
        if all(isinstance(one, dict | list) for one in value.values()):
            columns = {name: one if isinstance(one, list) else list(one.values()) for name, one in value.items()}
            if len({len(one) for one in columns.values()}) == 1:
                return [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]
    raise DataError('it is no list of records: [{"image_path": ..., "label": ...}, ...]')


def _cell(value: Any) -> str:
    if value is None or type(value).__name__ == "NAType" or value != value:  # null, pandas' own, and NaN
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value).strip()


def _of_records(records: list[Any]) -> pd.DataFrame:
    wrong = next((number for number, one in enumerate(records, start=1) if not isinstance(one, dict)), None)
    if wrong is not None:
        raise DataError(f'record {wrong} is no mapping: {{"image_path": ..., "label": ...}}')
    header = list(dict.fromkeys(str(name) for record in records for name in record))
    named = [{str(name).strip(): _cell(value) for name, value in record.items()} for record in records]
    return _table([name.strip() for name in header], [[one.get(name.strip(), "") for name in header] for one in named])


def _of_frame(frame: pd.DataFrame) -> pd.DataFrame:
    rows = [[_cell(value) for value in line] for line in frame.astype(object).itertuples(index=False, name=None)]
    return _table([str(name).strip() for name in frame.columns], rows)
