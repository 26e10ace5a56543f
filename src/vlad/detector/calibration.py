"""Calibrates a decision on normal images in Python, as ``vlad calibrate`` does."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vlad.detector.images import GivenImages
from vlad.detector.inputs import Found, find, is_path
from vlad.detector.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from vlad.decision import Decision
    from vlad.decision.images import Chosen
    from vlad.methods.base import Method

__all__ = ["choose", "find_normal", "make"]


def find_normal(images: Any, class_name: str | None) -> Found:
    """Finds normal images by the rules of ``vlad calibrate``.

    Raises:
        DataError: No image is found, or some are anomalous by their folder or label.
    """
    import pandas as pd

    from vlad.datamodules.sources import Locations
    from vlad.decision.images import index_normal

    paths = [images] if is_path(images) else images
    if isinstance(paths, list | tuple) and paths and all(map(is_path, paths)):
        frame, ignored = index_normal([os.fspath(path) for path in paths], Locations(class_name=class_name))
        return Found(frame, [None] * len(frame), ignored)
    parts = list(find(images, class_name, size=64))
    frame = pd.concat([part.frame for part in parts], ignore_index=True).assign(label=0)
    return Found(frame, [pixels for part in parts for pixels in part.in_memory], {})


def choose(
    found: Found, method: Method, references: Sequence[Mapping[str, str]], run: str | None
) -> tuple[Chosen, Found]:
    """Excludes images that the method has seen, and duplicates, with a warning.

    Args:
        found: Normal images.
        method: The method.
        references: Records of its references, each with ``sha256``.
        run: The run folder or checkpoint that the method was loaded from.

    Returns:
        The selection, and its images.

    Raises:
        DecisionError: No image is left.
    """
    from vlad.decision.images import choose_images
    from vlad.decision.records import content_keys, run_folder

    dataset = GivenImages(found, method.requirements.preprocess)
    keys = content_keys(found.frame)
    for row, pixels in enumerate(found.in_memory):
        if pixels is not None:
            image = dataset.open(row)
            keys[row] = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    used = {record["sha256"] for record in references}
    seen: set[str] = set()
    kept: list[int] = []
    left_out: dict[str, list[str]] = {}
    for row, key in enumerate(keys):
        reason = "are references" if key[:64] in used else "are copies of others" if key and key in seen else ""
        seen.add(key)
        if reason:
            left_out.setdefault(reason, []).append(str(found.frame["image_path"].iloc[row] or f"image {row}"))
        else:
            kept.append(row)
    frame = found.frame.iloc[kept].assign(place=kept).reset_index(drop=True)
    chosen = choose_images(frame, method, run=run_folder(run)) if kept else None
    if chosen is None:
        from vlad.errors import DecisionError

        raise DecisionError(
            f"of {len(keys)} images none is left to calibrate on: all are references; give other images"
        )
    for reason, paths in {**chosen.left_out, **left_out}.items():
        warnings.warn(f"{len(paths)} images are left out: they {reason} (first: {paths[0]})", stacklevel=3)
    places = chosen.frame["place"].tolist()
    chosen = chosen._replace(frame=chosen.frame.drop(columns="place"), keys=[keys[place] for place in places])
    return chosen, Found(chosen.frame, [found.in_memory[place] for place in places], {})


def make(
    method: Method,
    chosen: Chosen,
    results: Iterable[Result],
    *,
    rate: float,
    min_area: float,
    data: Mapping[str, Any],
    references: pd.DataFrame | None,
    run: str | None,
) -> Decision:
    """Makes a decision from the results of normal images.

    Args:
        method: The method that scored them.
        chosen: The images.
        results: Their results, in order.
        rate: Share of normal images that may be called anomalous.
        min_area: Smallest area of a region as a share of the map.
        data: Options of the data that the scores depend on.
        references: Index of the references that the method was fitted on, if they are files.
        run: The run folder or checkpoint that the method was loaded from.

    Raises:
        DecisionError: Too few images for the rate.
    """
    from vlad.decision.make import Wish, make_decision
    from vlad.decision.records import run_folder
    from vlad.decision.scoring import Scored

    count = len(chosen.frame)
    scores, maxima, levels = (np.full(count, np.nan, np.float32) for _ in range(3))
    errors: dict[int, str] = {}
    for row, result in enumerate(results):
        if result.raw_map is None or result.score is None:
            errors[row] = result.error
            continue
        scores[row], maxima[row] = result.score, result.raw_map.max()
        levels[row] = torch.from_numpy(result.raw_map).median().item()
    if errors:
        first = next(iter(errors.values()))
        warnings.warn(f"{len(errors)} images are left out: they could not be scored (first: {first})", stacklevel=3)
    scored = Scored(scores, maxima, levels, errors, {}, "32-true")
    wish = Wish(rate=rate, min_area=min_area)
    folder = run_folder(run)
    return make_decision(method, chosen.frame, chosen.keys, scored, wish, data=data, references=references, run=folder)
