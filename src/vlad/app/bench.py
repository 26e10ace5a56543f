"""What the page does, without the page: detectors made by what was chosen, images scored, a threshold moved."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlad.errors import DataError, MethodError

if TYPE_CHECKING:
    from PIL import Image

    from vlad.detector import Detector

__all__ = ["Bench", "Choice", "Found", "Scored", "decide", "training_free"]

_LONGEST = 1024  # px of an overlay


class Choice(NamedTuple):
    """What a detector is made by.

    Attributes:
        method: A method's name, a run folder, or a checkpoint.
        class_name: What is in the images; "" for nothing said.
        references: Files of normal images that are compared with.
        calibration: Files of normal images that a decision is made by.
        rate: Share of normal images that may be called anomalous.
    """

    method: str
    class_name: str = ""
    references: tuple[str, ...] = ()
    calibration: tuple[str, ...] = ()
    rate: float = 0.05


@dataclass(frozen=True)
class Scored:
    """An image on the page.

    Attributes:
        name: Its file's name.
        score: Its score; None where there is none.
        overlay: Its map over it; None where there is none.
        decision: ``normal``, ``anomalous``, or "" where nothing decides.
        error: Why there is no score, or "".
    """

    name: str
    score: float | None
    overlay: Image.Image | None
    decision: str = ""
    error: str = ""


class Found(NamedTuple):
    """What was found.

    Attributes:
        images: The images, in the order in which they were given.
        threshold: Smallest score that is anomalous; None where nothing decides.
        told: What is said of it, in a line.
    """

    images: list[Scored]
    threshold: float | None
    told: str


def decide(images: Sequence[Scored], threshold: float) -> list[Scored]:
    """Returns images as a threshold decides on them: anomalous from it on."""
    words = {True: "anomalous", False: "normal"}
    return [one if one.score is None else replace(one, decision=words[one.score >= threshold]) for one in images]


def training_free() -> list[str]:
    """Returns the names of the installed methods that need no training; each is imported.

    One that scores whole test sets alone tells so when it is used.
    """
    from vlad.errors import RegistryError
    from vlad.methods.base import Method
    from vlad.registry import get_method, list_methods

    found = []
    for name in list_methods():
        try:
            cls = get_method(name)
        except RegistryError:  # a plug-in that cannot be imported
            continue
        if cls.loss is Method.loss:
            found.append(name)
    return found


class Bench:
    """Detectors, the last one kept; one image list is scored at a time."""

    def __init__(self, load: Callable[[str], Detector]) -> None:
        """Takes what loads a method by its name or run folder."""
        self._load = load
        self._lock = threading.Lock()
        self._last: tuple[Choice, Detector] | None = None

    def score(self, files: Sequence[str], choice: Choice) -> Found:
        """Scores images.

        Args:
            files: Image files.
            choice: What the detector is made by.

        Raises:
            VladError: Nothing to score, or the detector cannot be made; the message is for people.
        """
        if not files:
            raise DataError("drop an image first")
        with self._lock:
            detector = self._detector(choice)
            results = list(detector.predict(list(files)))
        if all(result.error for result in results):
            raise DataError(results[0].error)
        images = [
            Scored(
                Path(result.path).name,
                result.score,
                None if result.error else result.overlay(longest=_LONGEST),
                result.decision,
                result.error,
            )
            for result in results
        ]
        thresholds = [result.threshold for result in results if result.threshold is not None]
        threshold = thresholds[0] if thresholds else None
        return Found(images, threshold, self._told(detector, choice, threshold))

    def _detector(self, choice: Choice) -> Detector:
        if self._last is not None and self._last[0] == choice:
            return self._last[1]
        self._last = None  # its memory is given back ahead of the next
        detector = self._load(choice.method)
        detector.class_name = choice.class_name.strip() or detector.class_name
        if detector.method.tags.transductive:
            raise MethodError(f"{choice.method} scores a whole test set at once and cannot score single images")
        if choice.references:
            detector.fit_references(list(choice.references))
        if detector.method.tags.needs_references and not detector.method.fitted:
            raise MethodError(f"{choice.method} compares with normal images: drop some as references")
        if choice.calibration:
            detector.calibrate(list(choice.calibration), false_alarm_rate=choice.rate)
        self._last = choice, detector
        return detector

    @staticmethod
    def _told(detector: Detector, choice: Choice, threshold: float | None) -> str:
        decision = detector.decision
        if decision is None:
            return "Nothing decides yet: give good parts to calibrate on, or move the threshold."
        if threshold is None:
            known = ", ".join(decision.rules)
            return (
                f"No decision: {decision.source} knows images of {known}. Say what is in these, or move the threshold."
            )
        if not choice.calibration:
            return f"Threshold of {decision.source}."
        rule = next(iter(decision.rules.values()))
        return (
            f"Calibrated on {len(rule.normal)} good parts: at most {choice.rate:.3g} of such parts are called "
            "anomalous, in the mean over calibrations."
        )


def slider_range(images: Sequence[Scored], threshold: float | None) -> tuple[float, float, float, float]:
    """Returns minimum, maximum, value and step of the threshold for some images.

    Where nothing decides, the value is the maximum, above every score.
    """
    values = [one.score for one in images if one.score is not None]
    values += [] if threshold is None else [threshold]
    low, high = min(values), max(values)
    pad = 0.1 * (high - low) or 0.1 * abs(high) or 0.1
    low, high = low - pad, high + pad
    digits = 3 - math.floor(math.log10(high - low))
    low, high = round(low, digits), round(high, digits)
    return low, high, high if threshold is None else threshold, 10.0**-digits
