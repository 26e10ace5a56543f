"""Numbers beside numbers: what papers and re-runs report, tables, and intervals of differences.

``published.csv`` holds one number per line; see :class:`PublishedValue` for its columns. Importing this package is
light: neither torch nor pandas is needed to look a number up.
"""

from vlad.results.beside import Beside, RunFacts, beside, describe_beside
from vlad.results.literature import PUBLISHED, PublishedValue, published, select
from vlad.results.tables import Table, heading, render

__all__ = [
    "PUBLISHED",
    "Beside",
    "PublishedValue",
    "RunFacts",
    "Table",
    "beside",
    "describe_beside",
    "heading",
    "published",
    "render",
    "select",
]
