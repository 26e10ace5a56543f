"""The sentences of WinCLIP, and those of anomalib's WinCLIP."""

from __future__ import annotations

from typing import Literal

from vlad.prompts import PromptSet

__all__ = ["SENTENCES", "Sentences"]

Sentences = Literal["paper", "anomalib"]
"""``paper``: 22 templates, 154 normal and 88 anomalous sentences. ``anomalib``: its 21 lines, of which one comes twice
and two are missing; 147 and 84 sentences."""

_NORMAL = (
    *("{}", "flawless {}", "perfect {}", "unblemished {}"),
    *("{} without flaw", "{} without defect", "{} without damage"),
)
_ANOMALOUS = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
_TEMPLATES = (
    *("a cropped photo of the {}.", "a cropped photo of a {}."),
    *("a close-up photo of a {}.", "a close-up photo of the {}."),
    *("a bright photo of a {}.", "a bright photo of the {}."),
    *("a dark photo of the {}.", "a dark photo of a {}."),
    *("a jpeg corrupted photo of a {}.", "a jpeg corrupted photo of the {}."),
    *("a blurry photo of the {}.", "a blurry photo of a {}."),
    *("a photo of a {}.", "a photo of the {}."),
    *("a photo of a small {}.", "a photo of the small {}."),
    *("a photo of a large {}.", "a photo of the large {}."),
    *("a photo of the {} for visual inspection.", "a photo of a {} for visual inspection."),
    *("a photo of the {} for anomaly detection.", "a photo of a {} for anomaly detection."),
)
_IN_ANOMALIB = tuple(
    template.replace("jpeg corrupted photo of a ", "jpeg corrupted photo of the ")  # the mean weights it double
    for template in _TEMPLATES
    if template != "a cropped photo of a {}."
)

SENTENCES: dict[Sentences, PromptSet] = {
    "paper": PromptSet(_NORMAL, _ANOMALOUS, _TEMPLATES),
    "anomalib": PromptSet(_NORMAL, _ANOMALOUS, _IN_ANOMALIB),
}
