"""Selects the images of a calibration: no duplicates, and none that the method has seen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlad.datamodules.custom import label_of
from vlad.datamodules.datamodule import AnomalyDataModule
from vlad.datamodules.overlap import shared_rows
from vlad.datamodules.references import given_references
from vlad.datamodules.selection import draw
from vlad.datamodules.sources import Locations, Source, as_sources
from vlad.decision.records import content_keys, recorded_references
from vlad.errors import DataError, DecisionError, VladError
from vlad.runs.pointers import checkpoint_of

if TYPE_CHECKING:
    import pandas as pd

    from vlad.methods.base import Method

__all__ = ["Chosen", "choose_images", "digest_sizes", "index_labelled", "index_normal"]


class Chosen(NamedTuple):
    """Images selected for a calibration.

    Attributes:
        frame: Index of the images.
        keys: Content key of each image, see :func:`vlad.decision.records.content_keys`.
        references: Index of the references, or None.
        drawn: Whether the references were drawn from the given images.
        left_out: Paths of the images left out, by reason.
    """

    frame: pd.DataFrame
    keys: list[str]
    references: pd.DataFrame | None
    drawn: bool
    left_out: dict[str, list[str]]


def index_normal(given: Sequence[str], locations: Locations) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Indexes normal images (folders, files, patterns, tables) and lists ignored files by reason.

    Raises:
        DataError: No image is found, or some are anomalous by their folder or label.
    """
    frame, ignored = _found(locations, given)
    anomalous = [
        label == 1 or (label != 0 and label_of(name.lower().split("/")[:-1]) == 1)
        for label, name in zip(frame["label"], frame["image_id"], strict=True)
    ]
    if any(anomalous):
        raise DataError(
            f"calibration images are normal, and {sum(anomalous)} of those given are not (first: "
            f"{frame['image_path'][anomalous].iloc[0]}); give the normal images alone, or --labelled f1"
        )
    return frame.assign(label=0), ignored


def _found(locations: Locations, given: Sequence[str]) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    found = locations.index_predict(list(given))
    return found.frame, found.ignored


def index_labelled(good: str, bad: Sequence[str], locations: Locations) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Indexes labelled images: a folder of good and one of bad images, or one folder or table with labels.

    A folder of both, or a table, may have masks.

    Raises:
        DataError: No image is found, or there are no labels.
    """
    import pandas as pd

    if bad:
        normal, ignored = index_normal([good], locations)
        other, more = _found(locations, bad)
        ignored = {reason: [*ignored.get(reason, []), *more.get(reason, [])] for reason in {**ignored, **more}}
        return pd.concat([normal, other.assign(label=1)], ignore_index=True), ignored
    (source,) = as_sources(good)
    if source.name not in {"folder", "table"}:
        raise DataError(f"labelled images come from a folder or a table, not from {good}")
    frame = locations.index(Source(source.name, root=source.root))
    known = frame[frame["label"] >= 0].reset_index(drop=True)
    if known.empty:
        raise DataError(f"{good} does not tell good images from bad ones")
    if locations.class_name is not None and source.name == "folder":
        known = known.assign(category=locations.class_name)
    unknown = frame["image_path"][frame["label"] < 0].tolist()
    return known, {"images of which nothing tells whether they are good": unknown} if unknown else {}


def choose_images(
    frame: pd.DataFrame,
    method: Method,
    *,
    references: Sequence[str] | None = None,
    shots: int | None = None,
    seed: int = 0,
    run: Path | None = None,
) -> Chosen:
    """Selects the images that a decision can be made with, and separates the references.

    Args:
        frame: Index of the calibration images.
        method: The method.
        references: Reference images, as ``data.references``; if they are the calibration images themselves, half of
            these are drawn as references by the seed.
        shots: Number of references drawn per category by the seed: from the references, or from the normal calibration
            images if none are given.
        seed: Seed of the draws.
        run: The run folder of the method, which records what it was trained and fitted on.

    Raises:
        DataError: There are too few images, or references of a category are missing.
        DecisionError: No image is left.
    """
    import pandas as pd

    keys = content_keys(frame)
    known = pd.Series(keys, index=frame.index)
    normal = frame[frame["label"] == 0]
    reference_frame: pd.DataFrame | None = None
    drawn = shots is not None
    if references:
        reference_frame = given_references(list(references), shots, seed, frame)
        if shots is None and set(known[normal.index]) <= set(content_keys(reference_frame)):
            reference_frame, drawn = draw(normal, 0.5, seed, "normal images", "--references"), True
    elif shots:
        reference_frame = draw(normal, shots, seed, "normal images", "--shots")
    reasons: dict[str, set[str]] = {}
    if reference_frame is not None:
        reasons["are references"] = set(content_keys(reference_frame))
    if run is not None and (run / "references.csv").is_file() and method.fitted:
        reasons["are references of the run"] = {row["sha256"] for row in recorded_references(run)}
    trained = _trained_rows(frame, method, run) if run is not None else set()
    left_out: dict[str, list[str]] = {}
    kept: list[int] = []
    seen: set[str] = set()
    for position, (key, path) in enumerate(zip(keys, frame["image_path"], strict=True)):
        reason = next((name for name, digests in reasons.items() if key in digests), "")
        reason = reason or ("the method was trained on" if position in trained else "")
        reason = reason or ("are copies of others" if key and key in seen else "")
        seen.add(key)
        if reason:
            left_out.setdefault(reason, []).append(path)
        else:
            kept.append(position)
    if not kept:
        raise DecisionError(
            f"of {len(frame)} images none is left to calibrate on: "
            + "; ".join(f"{len(paths)} {reason}" for reason, paths in left_out.items())
            + "; give other images, or --shots K to set K of them apart as references"
        )
    chosen = frame.iloc[kept].reset_index(drop=True)
    return Chosen(chosen, [keys[position] for position in kept], reference_frame, drawn, left_out)


def _trained_rows(frame: pd.DataFrame, method: Method, run: Path) -> set[int]:
    """Returns which images the method was trained or validated on, as far as the run's configuration tells.

    That its data are not there keeps nobody from calibrating: it is told.
    """
    import yaml
    from lightning.pytorch.utilities import rank_zero_warn

    found: set[int] = set()
    try:
        checkpoint = None if (run / "fit.yaml").is_file() else checkpoint_of(run)  # that of a test names its fit
        file = (run if checkpoint is None else checkpoint.parent.parent) / "fit.yaml"
        if not file.is_file():
            return set()
        section = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("data") or {}
        data = AnomalyDataModule(**section)
        for part in ("train", "val"):
            if data.sources[part]:
                rows = data.selection.index(part, method.requirements.supervision or "auxiliary")
                found |= {position for _, position in shared_rows(rows, frame)}
    except (VladError, OSError, ValueError, TypeError) as error:
        cause = str(error).splitlines()[0]
        rank_zero_warn(f"whether {run} was trained on some of these images is not known: {cause}")
    return found


def digest_sizes(frame: pd.DataFrame, keys: Sequence[str]) -> dict[str, int]:
    """Returns the size in bytes of the file of each key."""
    found: dict[str, int] = {}
    for path, key in zip(frame["image_path"], keys, strict=True):
        try:
            found[key] = os.stat(path).st_size
        except OSError:
            continue
    return found
