"""Tables from files: CSV, TSV, JSON lines and parquet."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_table", "with_new_names"]

_RENAMED = {"species": "defect_type", "band": "row_crop", "key": "image_id"}


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
    """Reads a table, whatever its columns; .csv, .tsv, .jsonl or .parquet.

    Raises:
        DataError: No such file, an unknown suffix, or a broken table.
    """
    import pandas as pd

    if not file.is_file():
        raise DataError(f"table {file} does not exist")
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        if file.suffix in {".jsonl", ".ndjson"}:
            return pd.read_json(file, lines=True, dtype=False)
        if file.suffix in {".csv", ".tsv"}:
            return pd.read_csv(file, dtype=str, keep_default_na=False, sep="\t" if file.suffix == ".tsv" else ",")
    except ImportError as error:
        raise DataError(f"table {file}: reading parquet needs pyarrow; pip install 'vlad[parquet]'") from error
    except (ValueError, OSError) as error:
        raise DataError(f"table {file} cannot be read: {str(error).splitlines()[0]}") from error
    raise DataError(f"table {file} has the suffix {file.suffix}; use .csv, .tsv, .jsonl or .parquet")
