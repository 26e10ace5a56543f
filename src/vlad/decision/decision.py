"""A decision classifies a score as normal or anomalous and finds regions in a map."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlad.decision.conformal import p_value
from vlad.decision.file import FORMAT, digest_of, plain_rule, read_fields
from vlad.decision.regions import Region, find_regions
from vlad.decision.rules import Kind, ReferenceRecord, Rule
from vlad.decision.verdict import Verdict
from vlad.errors import DecisionError
from vlad.files import write_json

__all__ = ["Decision"]


@dataclass(frozen=True)
class Decision:
    """Rules per category, with a record of the scores they were made from; see ``docs/decisions.md``.

    Attributes:
        kind: How the thresholds were computed.
        rules: Rule of each category.
        default: Rule of all other categories, only for a bare number; None: an unknown category gets no decision.
        identity: What the scores depended on, see :func:`vlad.identity.scoring_identity`; empty for a bare number.
        false_alarm_rate: The requested rate, or None.
        target: For ``labelled``: the criterion of the threshold, ``f1`` or ``fpr``; otherwise "".
        min_area: Smallest area of a region as a share of the map.
        seed: Seed of the draws.
        created: When it was made (ISO 8601), or "".
        version: Version of vlad that made it, or "".
        source: Its origin, for messages.

    Examples:
        >>> decision = Decision.number(0.5)
        >>> decision.verdict("bottle", 0.62, np.zeros((2, 2), np.float32), (4, 4), (4, 4)).decision
        'anomalous'
    """

    kind: Kind
    rules: Mapping[str, Rule] = field(default_factory=dict)
    default: Rule | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    false_alarm_rate: float | None = None
    target: Literal["", "f1", "fpr"] = ""
    min_area: float = 0.0
    seed: int = 0
    created: str = ""
    version: str = ""
    source: str = field(default="the decision", compare=False, repr=False)

    # -- making, reading, writing ------------------------------------------------------------------------------

    @classmethod
    def number(cls, threshold: float) -> Decision:
        """Returns a decision with one threshold for every category.

        Raises:
            DecisionError: The number is not finite.
        """
        if not math.isfinite(threshold):
            raise DecisionError(f"a decision needs a finite threshold, not {threshold}")
        return cls("number", default=Rule(float(threshold)), source=f"--decision {threshold:g}")

    @classmethod
    def load(cls, path: str | Path) -> Decision:
        """Reads a decision file.

        Raises:
            DecisionError: The file does not exist or is not a decision file.
        """
        return cls(**read_fields(Path(path)))

    @classmethod
    def read(cls, given: str | float | Path | None) -> Decision | None:
        """Returns the decision for an option value: a file, a number, or none (None, ``none``).

        Raises:
            DecisionError: The value is neither a number nor a decision file.
        """
        if given is None or str(given).strip().lower() == "none":
            return None
        try:
            number = float(str(given))
        except ValueError:
            return cls.load(str(given))
        return cls.number(number)

    def save(self, path: str | Path) -> Path:
        """Writes the decision as JSON, atomically; returns the file.

        Raises:
            DecisionError: A value is not finite.
        """
        try:
            return write_json(Path(path), self._plain())
        except ValueError as error:
            raise DecisionError(f"the decision cannot be written to {path}: {error}") from error

    def to_json(self) -> str:
        """Returns the content of the decision file."""
        return json.dumps(self._plain(), allow_nan=False)

    def _plain(self) -> dict[str, Any]:
        content = {
            "format": FORMAT,
            "vlad": self.version,
            "created": self.created,
            "kind": self.kind,
            "target": self.target,
            "false_alarm_rate": self.false_alarm_rate,
            "min_area": self.min_area,
            "seed": self.seed,
            "identity": dict(self.identity),
            "categories": {name: plain_rule(rule) for name, rule in self.rules.items()},
            "default": None if self.default is None else plain_rule(self.default),
        }
        return {**content, "digest": digest_of(json.loads(json.dumps(content)))}

    # -- does it belong to what is scored? ---------------------------------------------------------------------

    def check(
        self, identity: Mapping[str, Any], references: Sequence[tuple[str, ReferenceRecord]] | None = None
    ) -> None:
        """Raises an error if the current scores are not those that the decision was made with.

        Args:
            identity: What the scores depend on now, from :func:`vlad.identity.scoring_identity`.
            references: Categories of the decision and the references that their images are compared with now, so that
                other categories may have others. None: what was fitted for all categories is compared as a whole.

        Raises:
            DecisionError: Something differs; the message names every difference.
        """
        from vlad.identity import differences

        if not self.identity:
            return
        before, now = dict(self.identity), json.loads(json.dumps(identity))  # tuples are lists in the file
        if references is not None:
            before.pop("references", None)
            now.pop("references", None)
        found = differences(before, now)
        for category, present in references or ():
            recorded = self.rules[category].references
            if not recorded.agrees(present):
                words = [(one.images or one.memory or "none")[:12] for one in (recorded, present)]
                found.append(f"the references of {category} (was {words[0]}, is {words[1]})")
        if found:
            raise DecisionError(
                f"{self.source} was made with other scores: what differs is {'; '.join(found)}; calibrate again (vlad "
                "calibrate), score with what it was made with, or give --decision none"
            )

    def check_class_name(self, category: str, class_name: str) -> None:
        """Rejects images of a known category with another class name, since prompts change scores.

        Raises:
            DecisionError: The names differ.
        """
        rule = self.rules.get(category)
        if rule is not None and rule.class_name not in {"", class_name}:
            raise DecisionError(
                f"{self.source} was made for images of {category} called '{rule.class_name}' in the prompts, and here "
                f"they are called '{class_name}': give the same class name, or calibrate again"
            )

    # -- deciding ----------------------------------------------------------------------------------------------

    def category_of(self, category: str, class_name: str | None = None) -> str | None:
        """Returns the category whose rule applies to an image: its category, otherwise its class name.

        None if both are unknown. Images in a folder have its name as category, so the class name is tried too.
        """
        if category in self.rules:
            known = self.rules[category].class_name
            return category if class_name is None or known in {"", class_name} else None
        if class_name is not None and class_name in self.rules:
            return class_name if self.rules[class_name].class_name in {"", class_name} else None
        return None

    def rule_of(self, category: str, class_name: str | None = None) -> Rule | None:
        """Returns the rule of an image, or None for no decision."""
        known = self.category_of(category, class_name)
        return self.default if known is None else self.rules[known]

    def verdict(
        self,
        category: str,
        score: float,
        anomaly_map: np.ndarray,
        seen_size: Sequence[int],
        original_size: Sequence[int],
        *,
        class_name: str | None = None,
    ) -> Verdict:
        """Decides on an image. Only the score decides; regions show where, and may disagree.

        Args:
            category: Its category.
            score: Its score; a non-finite score gets no decision.
            anomaly_map: Its map (H, W), float32.
            seen_size: Height and width of the part of the image that the map covers, from the top left.
            original_size: Height and width of the image; boxes are clipped to it.
            class_name: Its class name, used if its category is unknown.
        """
        rule = self.rule_of(category, class_name)
        score = float(np.float32(score))
        if rule is None or not math.isfinite(score):
            return Verdict()
        area: int | None = None
        regions: tuple[Region, ...] = ()
        if rule.pixel_threshold is not None:
            seen = [min(int(one), int(other)) for one, other in zip(seen_size, original_size, strict=True)]
            found, area = find_regions(anomaly_map, rule.pixel_threshold, seen, min_area=self.min_area)
            regions = tuple(found)
        return Verdict(
            "anomalous" if score >= rule.threshold else "normal",
            p_value(rule.normal, score) if rule.normal else None,
            rule.threshold,
            area,
            regions,
        )

    def scale(self, category: str, class_name: str | None = None) -> tuple[float, float, float] | None:
        """Returns the colour scale of a category's maps, or None if unknown.

        Returns:
            Three values. Below the first, half way from the median of the normal images' maxima to the third, maps are
            transparent; from the second on the colour is opaque; the third is the pixel threshold of the contour.
        """
        rule = self.rule_of(category, class_name)
        if rule is None or rule.pixel_threshold is None or not rule.maxima or rule.level is None:
            return None
        contour = rule.pixel_threshold
        low = (min(rule.maxima[(len(rule.maxima) - 1) // 2], contour) + contour) / 2
        span = max(contour - rule.level, 1e-6 * max(1.0, abs(contour)))
        return low, contour + span, contour
