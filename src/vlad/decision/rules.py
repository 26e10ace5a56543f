"""The rule of one category, and a record of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

__all__ = ["NO_REFERENCES", "Kind", "ReferenceRecord", "Rule"]

Kind = Literal["conformal", "labelled", "number"]
"""``conformal``: from normal images alone; ``labelled``: from labelled images; ``number``: a threshold as given."""


class ReferenceRecord(NamedTuple):
    """Identifies the references of a category.

    Attributes:
        images: Digest of the image files, or "" if unknown.
        memory: Digest of the fitted state, or "".
    """

    images: str = ""
    memory: str = ""

    def agrees(self, other: ReferenceRecord) -> bool:
        """Whether two records identify the same references: by the files if both know them, else by the memory."""
        if self.images and other.images:
            return self.images == other.images
        return self.memory == other.memory


NO_REFERENCES = ReferenceRecord()


@dataclass(frozen=True)
class Rule:
    """The rule of a category.

    Attributes:
        threshold: Smallest score that is anomalous.
        pixel_threshold: Smallest value of a map that belongs to a region; None for no regions.
        class_name: Class name of the images in the prompts; "" if the method ignores it.
        normal: Scores of the normal calibration images, sorted; empty if a number was given.
        maxima: Maxima of their maps, sorted.
        level: Median over these images of the median of the map, the typical value of a normal pixel; None if unknown.
        anomalous: Number of anomalous calibration images.
        references: The references that the scores were compared with.
        digests: SHA-256 of every image file used, with its size in bytes.
    """

    threshold: float
    pixel_threshold: float | None = None
    class_name: str = ""
    normal: tuple[float, ...] = ()
    maxima: tuple[float, ...] = ()
    level: float | None = None
    anomalous: int = 0
    references: ReferenceRecord = NO_REFERENCES
    digests: Mapping[str, int] = field(default_factory=dict)
