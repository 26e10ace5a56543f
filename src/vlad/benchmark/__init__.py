"""Methods × data sets × shots × seeds: a plan of independent cells, run wherever there is time, and one table of them.

Importing this package is light: plans are read, and finished cells gathered, without torch.
"""

from vlad.benchmark.gather import Gathered, gather, tables
from vlad.benchmark.plan import Cell, Plan, read_plan
from vlad.benchmark.run import run_cells

__all__ = ["Cell", "Gathered", "Plan", "gather", "read_plan", "run_cells", "tables"]
