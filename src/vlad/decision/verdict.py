"""The verdict of a decision on one image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from vlad.decision.regions import Region

__all__ = ["COLUMNS", "Verdict"]

COLUMNS = ("p_value", "threshold", "decision", "anomalous_area", "regions")
"""Columns of a verdict in a table, in their order."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on one image; all fields are empty if there is none.

    Attributes:
        decision: ``normal``, ``anomalous``, or "" for none: an unknown category, or a non-finite score.
        p_value: Share of normal calibration images that score at least as high, counting the image itself; None if the
            decision has no normal scores.
        threshold: Smallest score that is anomalous.
        anomalous_area: Number of image pixels in the regions; None if the decision has no pixel threshold.
        regions: Regions where the map reaches the pixel threshold, highest score first; only the score decides.
    """

    decision: Literal["", "normal", "anomalous"] = ""
    p_value: float | None = None
    threshold: float | None = None
    anomalous_area: int | None = None
    regions: tuple[Region, ...] = ()

    def columns(self) -> dict[str, Any]:
        """Returns the verdict as cells of a table: None for an empty one, regions as JSON.

        Examples:
            >>> Verdict("anomalous", 0.02, 0.5, 40, (Region(1, 2, 8, 5, 40, 0.75),)).columns()["regions"]
            '[{"x": 1, "y": 2, "w": 8, "h": 5, "area": 40, "score": 0.75}]'
        """
        regions = None
        if self.anomalous_area is not None:
            regions = json.dumps([region._asdict() for region in self.regions])
        return {
            "p_value": self.p_value,
            "threshold": self.threshold,
            "decision": self.decision or None,
            "anomalous_area": self.anomalous_area,
            "regions": regions,
        }
