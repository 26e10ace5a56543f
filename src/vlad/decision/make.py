"""Makes a decision from the scores of calibration images."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vlad import __version__
from vlad.decision.conformal import alarms_allowed, conformal_threshold, rate_range, refuse_too_few
from vlad.decision.decision import Decision
from vlad.decision.images import digest_sizes
from vlad.decision.labelled import labelled_threshold
from vlad.decision.records import reference_records
from vlad.decision.rules import NO_REFERENCES, Rule
from vlad.decision.scoring import Scored
from vlad.errors import DecisionError
from vlad.identity import scoring_identity

if TYPE_CHECKING:
    import pandas as pd

    from vlad.methods.base import Method

__all__ = ["Wish", "describe", "make_decision"]


@dataclass(frozen=True)
class Wish:
    """Options of a decision.

    Attributes:
        rate: False-alarm rate: the guaranteed rate, or for ``fpr`` the rate on the given images.
        target: ``f1`` or ``fpr`` for labelled images; "" for normal images only.
        threshold: A given threshold; None to compute it from the images.
        min_area: Smallest area of a region as a share of the map.
        seed: Seed of the draws, for the record.
    """

    rate: float = 0.05
    target: Literal["", "f1", "fpr"] = ""
    threshold: float | None = None
    min_area: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Rejects values out of range.

        Raises:
            DecisionError: One is.
        """
        if not (0 < self.rate < 1 or (self.target == "fpr" and self.rate == 0)):
            raise DecisionError(f"--false-alarm-rate lies between 0 and 1, such as 0.05, not {self.rate:g}")
        if not 0 <= self.min_area < 1:
            raise DecisionError(f"--min-area is a share of the image, at least 0 and below 1, not {self.min_area:g}")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise DecisionError(f"--threshold must be a finite number, not {self.threshold}")

    def check_counts(self, frame: pd.DataFrame) -> None:
        """Rejects too few images for the rate, before any is scored.

        Raises:
            DecisionError: A category has too few normal ones.
        """
        if self.threshold is not None or self.target:
            return
        for category, part in frame.groupby("category", sort=False):
            try:
                refuse_too_few(int((part["label"] == 0).sum()), self.rate)
            except DecisionError as error:
                raise DecisionError(f"{category}: {error}") from None


def make_decision(
    method: Method,
    frame: pd.DataFrame,
    keys: Sequence[str],
    scored: Scored,
    wish: Wish,
    *,
    data: Mapping[str, Any] | None = None,
    references: pd.DataFrame | None = None,
    run: Any = None,
) -> Decision:
    """Makes a decision with one rule per category.

    Args:
        method: The method that scored the images.
        frame: Index of the images, labels 0 and 1; those without a score are left out.
        keys: Content key of each image.
        scored: Their scores.
        wish: The options.
        data: Options of the data that the scores depend on.
        references: Index of the references that the method was fitted on.
        run: The run folder it was restored from.

    Raises:
        DecisionError: There are too few images; the message says how many are needed.
    """
    wish.check()
    records = reference_records(method, references, run)
    good = np.array([row not in scored.errors for row in range(len(frame))], dtype=bool)
    rules: dict[str, Rule] = {}
    for (dataset, category), part in frame[good].groupby(["dataset", "category"], sort=False):
        if category in rules:
            raise DecisionError(f"there are two data sets with a category '{category}'; calibrate on one of them")
        names = part["class_name"].unique()
        if len(names) > 1 and method.tags.class_names:
            raise DecisionError(
                f"the images of {category} go by several class names ({', '.join(names[:3])}), and scores depend on "
                "it: give them one"
            )
        rule = _rule(str(category), part, scored, wish)
        rows = part.index.tolist()
        rules[str(category)] = Rule(
            **{
                **rule,
                "class_name": str(names[0]) if method.tags.class_names else "",
                "references": records.get(f"{dataset}/{category}", NO_REFERENCES),
                "digests": digest_sizes(part, [keys[row] for row in rows]),
            }
        )
    if not rules:
        first = next(iter(scored.errors.values()), "")
        raise DecisionError(f"none of {len(frame)} images has a score (first: {first})")
    identity = scoring_identity(method, precision=scored.precision, data=data)
    return Decision(
        kind="number" if wish.threshold is not None else "labelled" if wish.target else "conformal",
        rules=rules,
        identity=json.loads(json.dumps(identity)),
        false_alarm_rate=wish.rate,
        target=wish.target if wish.threshold is None else "",
        min_area=wish.min_area,
        seed=wish.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
    )


def _rule(category: str, part: pd.DataFrame, scored: Scored, wish: Wish) -> dict[str, Any]:
    """Returns the fields of a rule that come from scores."""
    rows = part.index.to_numpy()
    normal_rows, anomalous_rows = (rows[(part["label"] == label).to_numpy()] for label in (0, 1))
    normal, anomalous = (sorted(scored.scores[some].tolist()) for some in (normal_rows, anomalous_rows))
    maxima = sorted(scored.maxima[normal_rows].tolist())
    try:
        if wish.threshold is not None:
            threshold = float(wish.threshold)
        elif wish.target:
            threshold = labelled_threshold(normal, anomalous, wish.target, wish.rate)
        else:
            threshold = conformal_threshold(normal, wish.rate)
    except DecisionError as error:
        raise DecisionError(f"{category}: {error}") from None
    pixels = scored.pixel_thresholds.get(category)
    if pixels is None and alarms_allowed(len(maxima), wish.rate) >= 1:
        pixels = conformal_threshold(maxima, wish.rate)
    levels = scored.levels[normal_rows].tolist()
    return {
        "threshold": threshold,
        "pixel_threshold": pixels,
        "normal": tuple(normal),
        "maxima": tuple(maxima),
        "level": statistics.median(levels) if levels else None,
        "anomalous": len(anomalous),
    }


def describe(decision: Decision, frame: pd.DataFrame, scored: Scored) -> list[str]:
    """Returns lines of text that describe a decision and its guarantees."""
    lines = []
    for category, rule in decision.rules.items():
        count = len(rule.normal)
        images = f"{count} normal" + (f" and {rule.anomalous} anomalous" if rule.anomalous else "") + " images"
        lines.append(f"{category}: anomalous from a score of {rule.threshold:.6g} on ({decision.kind}, {images})")
        if decision.kind == "conformal":
            rate = decision.false_alarm_rate or 0.0
            low, high = rate_range(count, rate)
            allowed = alarms_allowed(count, rate)
            lines.append(
                f"  promised: at most {rate:.3g} of normal images are called anomalous, in the mean over calibrations; "
                f"of this one the rate lies between {low:.3g} and {high:.3g} (5 % to 95 %)"
            )
            lines.append(f"  no rate below 1/{count + 1} = {1 / (count + 1):.3g} can be promised with {count} images")
            ties = sum(score == sorted(rule.normal)[-allowed] for score in rule.normal)
            if ties > 1:
                lines.append(
                    f"  {ties} normal images share the score at the threshold: the rate is lower than promised"
                )
        else:
            mine = (frame["category"] == category).to_numpy() & np.isfinite(scored.scores)
            called = scored.scores.astype(float) >= rule.threshold
            bad = frame["label"].to_numpy() == 1
            alarms, misses = int((mine & called & ~bad).sum()), int((mine & ~called & bad).sum())
            lines.append(
                f"  on these images themselves: {alarms} of {count} normal ones are called anomalous, {misses} of "
                f"{rule.anomalous} anomalous ones missed; on others it will be worse"
            )
        if rule.pixel_threshold is None:
            lines.append(
                "  no threshold for pixels: there are too few normal images and no masks; no regions are given"
            )
        else:
            how = (
                "the best pixel F1" if category in scored.pixel_thresholds else "the maxima of the normal images' maps"
            )
            lines.append(f"  regions: values of the map from {rule.pixel_threshold:.6g} on, by {how}")
    return lines
