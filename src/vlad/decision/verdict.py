"""What a decision says of one image."""

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
    """A decision on one image; everything is empty where there is none.

    Attributes:
        decision: ``normal``, ``anomalous``, or "" for none: an unknown category, or a score that is no number.
        p_value: Share of normal calibration images that score at least as high, the image counted in; None where the
            decision knows no normal scores.
        threshold: Smallest score that is anomalous.
        anomalous_area: Pixels of the image in its regions; None where the decision has no threshold for pixels.
        regions: Where the map reaches the pixel threshold, the highest first. They inform: the score alone decides.
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
