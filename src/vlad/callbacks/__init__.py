"""Callbacks of a run: evaluation, references, tables, heat maps, and the record of the run."""

from vlad.callbacks.decide import Decide
from vlad.callbacks.evaluator import Evaluator
from vlad.callbacks.features import CachedFeatures
from vlad.callbacks.heatmaps import HeatMaps
from vlad.callbacks.maps import RawMaps
from vlad.callbacks.predictions import Predictions
from vlad.callbacks.record import RunRecord
from vlad.callbacks.references import References
from vlad.callbacks.report import Report
from vlad.callbacks.results import Results

__all__ = [
    "CachedFeatures",
    "Decide",
    "Evaluator",
    "HeatMaps",
    "Predictions",
    "RawMaps",
    "References",
    "Report",
    "Results",
    "RunRecord",
]
