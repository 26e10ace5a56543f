"""What colours mean: the same score has the same colour in every image of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["Scale", "choose_scale"]

ENOUGH = 8
"""From so many images on, maxima of maps tell what is usual."""


@dataclass(frozen=True)
class Scale:
    """Scores of the colours.

    Attributes:
        low: What is not above this is usual: an overlay shows nothing there.
        high: From here on the colour is the strongest.
        floor: What is not above this is black in an anomaly map; it lies below ``low``.
        contour: Pixel threshold at which a contour line is drawn, or None where there is none.
        chosen: How the scale was chosen, for people.
        calibrated: Whether a decision file gave it; else it is the run's own.
    """

    low: float
    high: float
    floor: float
    contour: float | None = None
    chosen: str = ""
    calibrated: bool = False

    @classmethod
    def of_decision(cls, low: float, high: float, contour: float | None) -> Scale:
        """Returns the scale that a decision gives to a category.

        Its ``floor`` is as far below the contour as ``high`` is above it; without one, half as far below ``low``.
        """
        low, high = float(low), _above(float(low), float(high))
        floor = low - (high - low) / 2 if contour is None else 2 * float(contour) - high
        floor = min(floor, 2 * low - _above(low, low))
        return cls(low, high, floor, None if contour is None else float(contour), "by the decision", calibrated=True)

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Scale:
        """Returns the scale that :meth:`to_dict` wrote.

        Raises:
            ValueError: It says something else.
        """
        try:
            scale = cls(**{name: values[name] for name in cls.__dataclass_fields__})
            numbers = [scale.floor, scale.low, scale.high, *([] if scale.contour is None else [scale.contour])]
            if all(map(math.isfinite, numbers)) and scale.floor < scale.low < scale.high:
                return scale
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"no scale: {error}") from error
        raise ValueError("no scale: its numbers are out of order")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return asdict(self)

    def strength(self, values: np.ndarray) -> np.ndarray:
        """Returns how far scores are between ``low`` and ``high``, in [0, 1]."""
        return np.clip((values - self.low) / (self.high - self.low), 0, 1)

    def depth(self, values: np.ndarray) -> np.ndarray:
        """Returns how far scores are between ``floor`` and ``low``, in [0, 1]."""
        return np.clip((values - self.floor) / (self.low - self.floor), 0, 1)


def _above(low: float, high: float) -> float:
    """Returns ``high``, or the next number that can be told from ``low``."""
    return max(high, low + max(1e-6, 1e-6 * abs(low)))


def choose_scale(maxima: np.ndarray, levels: np.ndarray, labels: np.ndarray | None = None) -> Scale:
    """Chooses the scale of a run that has no calibrated one.

    A folder of good parts must not glow, and neither must defects vanish where they are the majority. So the images of
    lower maxima stand for what is usual; normal images alone, where labels tell them. ``low`` is the 95 % quantile of
    their maxima, or, if that is less, their 25 % quantile plus five times its distance from the 5 % quantile: the first
    holds where most images are normal, the second where most are not. ``high`` is three times as far above ``low`` as
    ``low`` is above that 25 % quantile; less, but at least once as far, where no more than 1 % of all images come so
    far. Median and MAD of all maxima would do for good parts too, but hide most defects
    once a third of the images has one (measured on MVTec AD's bottles: docs/heatmaps.md).

    Args:
        maxima: Maximum of each image's anomaly map (N,), finite; at least one.
        levels: Median of each image's anomaly map (N,), finite.
        labels: Labels of the images (N,): 0 normal, 1 anomalous, -1 unknown; or None.

    Returns:
        The scale, without a contour.

    Examples:
        >>> scale = choose_scale(np.array([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 9.0]), np.zeros(8))
        >>> 1.2 < scale.low < scale.high < 9
        True
    """
    maxima, levels = np.asarray(maxima, float), np.asarray(levels, float)
    floor = float(np.median(levels))
    normal = maxima[np.asarray(labels) == 0] if labels is not None else maxima[:0]
    known = len(normal) >= ENOUGH
    basis = normal if known else maxima
    if len(basis) >= ENOUGH:
        least, usual, most = (float(quantile) for quantile in np.quantile(basis, [0.05, 0.25, 0.95]))
        low = min(most, usual + 5 * (usual - least))
        top = max(float(np.quantile(maxima, 0.99)), 2 * low - usual)
        high = min(low + 3 * (low - usual), top)
        chosen = (
            f"from the maxima of {len(basis)} {'normal ' if known else ''}images' maps: "
            "low = min(q95, q25 + 5 (q25 - q05)), high = low + 3 (low - q25) or the q99 of all"
        )
    else:
        high = float(maxima.max())
        low = floor + 0.6 * (high - floor)
        chosen = f"{len(basis)} images cannot tell what is usual: low is 60 % of the way from the median to the maximum"
    high = _above(low, high)
    return Scale(low, high, min(floor, 2 * low - _above(low, low)), None, chosen)
