"""The detector that :func:`vlad.load` returns, and its results."""

from vlad.detector.detector import Detector
from vlad.detector.results import Result, Results

__all__ = ["Detector", "Result", "Results"]
