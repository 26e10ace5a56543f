"""What a run leaves on disk and on the screen: tables, scores, heat maps."""

from vlad.callbacks.heatmaps import HeatMaps
from vlad.callbacks.results import Results

__all__ = ["HeatMaps", "Results"]
