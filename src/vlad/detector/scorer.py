"""From a batch to the results of its images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from vlad.datamodules.overlap import image_digest
from vlad.detector.images import GivenImages
from vlad.detector.results import Result
from vlad.errors import MethodError
from vlad.types import Batch, Prediction

if TYPE_CHECKING:
    from vlad.decision import Decision
    from vlad.methods.base import Method

__all__ = ["references_of", "score_batch", "set_scales"]


def score_batch(
    method: Method,
    decision: Decision | None,
    dataset: GivenImages,
    batch: Batch,
    references: Mapping[bytes, str],
    told: set[str],
) -> list[Result]:
    """Scores a batch.

    Args:
        method: The method.
        decision: What makes a score normal or anomalous, or None.
        dataset: Where the batch comes from.
        batch: The batch, on the CPU.
        references: The reference images by :func:`image_digest`, where they are known: one that is scored is warned of.
        told: What has been warned of already; it is added to.

    Returns:
        Results in the order of the dataset, those of images that cannot be read with their ``error``.
    """
    failed = dict(batch["failed"])
    scored = batch["index"].tolist() if "index" in batch else []
    results = {row: _blank(dataset, row) for row in sorted([*failed, *scored])}
    for row, reason in failed.items():
        results[row].error = reason
    if not scored:
        return list(results.values())
    keys = [
        references_of(method, dataset_name, category)
        for dataset_name, category in zip(batch["dataset"], batch["category"], strict=True)
    ]
    datasets, categories = ([key.partition("/")[part] for key in keys] for part in (0, 2))
    placed: Batch = {
        **batch,
        "image": batch["image"].to(method.device),
        "dataset": datasets,
        "category": categories,
    }
    with torch.inference_mode():
        prediction = method.predict_step(placed, 0)
    assert isinstance(prediction, Prediction)
    maps, scores = prediction.anomaly_map.cpu().numpy(), prediction.image_score.tolist()
    for place, row in enumerate(scored):
        result = results[row]
        height, width = batch["original_size"][place].tolist()
        seen_height, seen_width = batch["seen_size"][place].tolist()
        result.original_size, result.seen_size = (height, width), (seen_height, seen_width)
        _fill(result, scores[place], maps[place].copy())  # a view would keep the maps of the whole batch
        same = references.get(image_digest(batch["image"][place])) if references else None
        if same is not None:
            name = result.path or f"image {result.image_id}"
            _tell("reference", f"{name} is the same image as the reference {same}: its score means nothing", told)
        if decision is not None and result.score is not None:
            _decide(result, decision, told)
    return list(results.values())


def _tell(kind: str, text: str, told: set[str]) -> None:
    """Warns of something, once for all images that are scored together."""
    if kind not in told:
        told.add(kind)
        warnings.warn(text, stacklevel=5)


def _blank(dataset: GivenImages, row: int) -> Result:
    about = dataset.rows[row]
    return Result(
        path=about["image_path"],
        image_id=about["image_id"],
        category=about["category"],
        class_name=about["class_name"],
        dataset=about["dataset"],
        source=partial(dataset.open, row),
    )


def _fill(result: Result, score: float, anomaly_map: np.ndarray) -> None:
    maximum = float(anomaly_map.max())
    if math.isfinite(score) and math.isfinite(maximum):
        result.score, result.raw_map = score, anomaly_map
    else:
        result.error = f"the method's score is not finite (score {score}, map maximum {maximum})"


def _decide(result: Result, decision: Decision, told: set[str]) -> None:
    assert result.score is not None
    assert result.raw_map is not None
    if decision.rule_of(result.category, result.class_name) is None:
        known = ", ".join(decision.rules)
        text = f"no decision on images of '{result.category}': {decision.source} knows {known}; give class_name"
        _tell(f"decision {result.category}", text, told)
        return
    sizes = result.seen_size, result.original_size
    verdict = decision.verdict(result.category, result.score, result.raw_map, *sizes, class_name=result.class_name)
    result.decision, result.p_value, result.threshold = verdict.decision, verdict.p_value, verdict.threshold
    result.anomalous_area, result.regions = verdict.anomalous_area, verdict.regions
    scale = decision.scale(result.category, result.class_name)
    if scale is not None:
        from vlad.drawing import Scale

        result.scale = Scale.of_decision(*scale)


def references_of(method: Method, dataset: str, category: str) -> str:
    """Returns the name of the references that images of a category are compared with.

    Its own, ``dataset/category``; else the only ones of a category of that name, whatever the data set; else, where
    on one side nothing was said of what is in the images (``object``), the only ones at all.

    Raises:
        MethodError: There are references, and none for the category.
    """
    key, known = f"{dataset}/{category}", method.memory.categories
    if not known or key in known:
        return key
    names = [name.partition("/")[2] for name in known]
    if names.count(category) == 1:
        return known[names.index(category)]
    if len(known) == 1 and "object" in {category, names[0]}:
        return known[0]
    raise MethodError(
        f"the method has no references of '{category}': give class_name, of {', '.join(dict.fromkeys(names))}"
    )


def set_scales(results: Sequence[Result]) -> None:
    """Gives results that have no decision's colours the same ones."""
    scored = [result for result in results if result.raw_map is not None]
    if all(result.scale is not None for result in scored):
        return
    from vlad.drawing import choose_scale

    maxima, levels = zip(*(result.range() for result in scored), strict=True)
    scale = choose_scale(np.array(maxima), np.array(levels))
    for result in scored:
        result.scale = result.scale or scale
