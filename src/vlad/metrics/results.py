"""What an evaluation returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EvaluationResult", "means"]


@dataclass
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        categories: One row per category: ``dataset``, ``category``, numbers of ``normal`` and ``anomalous`` images,
            and a column per value of each metric, such as ``image_auroc``: in [0, 1] for ours, NaN where undefined.
        images: One row per image: ``dataset``, ``category``, ``image_id``, ``path``, ``label``, ``image_score``, and
            ``error``: why it counts in no metric, "" where it does.
        mean: Unweighted mean over the categories in which a value is defined, per column.
        pooled: The metrics of all categories' images and pixels together, per column.
        undefined: Why a value is NaN: data set, category, level, metric, reason.
        stages: The same for earlier predictions of a method that refines its maps, by name, such as ``initial``.
        transductive: ``scores``: the image scores of a category were combined over its whole test set; ``features``:
            its images were scored together; "": each image by itself.
        curves: Curves to be drawn, by data set and category, then by name: x and y of their points.
    """

    categories: pd.DataFrame
    images: pd.DataFrame
    mean: dict[str, float]
    pooled: dict[str, float]
    undefined: list[dict[str, str]] = field(default_factory=list)
    stages: dict[str, EvaluationResult] = field(default_factory=dict)
    transductive: Literal["", "scores", "features"] = ""
    curves: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @property
    def failed(self) -> pd.DataFrame:
        """Returns the rows of the images that have no finite score."""
        return self.images[self.images["error"] != ""] if "error" in self.images else self.images.iloc[:0]


def means(lines: Sequence[dict[str, Any]], columns: Sequence[str]) -> dict[str, float]:
    """Returns the unweighted mean of each column over the lines in which it is there and not NaN."""
    found = {}
    for name in columns:
        defined = [line[name] for line in lines if not math.isnan(line.get(name, math.nan))]
        found[name] = sum(defined) / len(defined) if defined else math.nan
    return found
