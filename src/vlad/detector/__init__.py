"""From images to results in one call: what :func:`vlad.load` returns, and what it says of images."""

from vlad.detector.detector import Detector
from vlad.detector.results import Result, Results

__all__ = ["Detector", "Result", "Results"]
