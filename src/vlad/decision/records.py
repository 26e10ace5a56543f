"""Identifies images and references by content, to compare what a decision was made with and is used on."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.datamodules.overlap import file_digest
from vlad.decision.decision import Decision
from vlad.decision.rules import NO_REFERENCES, ReferenceRecord
from vlad.errors import DataError, DecisionError
from vlad.files import read_plain
from vlad.table import plain_text

if TYPE_CHECKING:
    import pandas as pd

    from vlad.methods.base import Method

__all__ = ["check_decision", "content_keys", "reference_records", "refuse_calibration_images", "run_folder"]


def run_folder(path: str | Path | None) -> Path | None:
    """Returns the run folder of a path: the path itself, or the folder of a checkpoint."""
    if not path:
        return None
    path = Path(path)
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else None


def content_keys(frame: pd.DataFrame, *, missing: str = "") -> list[str]:
    """Returns the content key of each image of an index: SHA-256 of its file, row crop, page or frame.

    Args:
        frame: The index.
        missing: The key of a file that cannot be read.
    """
    digests: dict[str, str] = {}
    keys = []
    for path, crop, page in frame[["image_path", "row_crop", "frame"]].itertuples(index=False):
        if path not in digests:
            try:
                digests[path] = file_digest(path)
            except DataError:
                digests[path] = ""
        part = f"{f' rows {crop}' if crop else ''}{f' page {page}' if page >= 0 else ''}"
        keys.append(digests[path] + part if digests[path] else missing)
    return keys


def reference_records(
    method: Method, frame: pd.DataFrame | None = None, run: str | Path | None = None
) -> dict[str, ReferenceRecord]:
    """Returns the references of each category that a method was fitted on, by ``dataset/category``.

    Args:
        method: The method, fitted.
        frame: Index of the references, if it was fitted in this run.
        run: Otherwise, the run folder or checkpoint that it was restored from, whose ``references.csv`` lists them.
    """
    names = list(method.memory.categories)
    images: dict[str, list[str]] = {}
    folder = run_folder(run)
    if frame is not None and len(frame):
        for dataset, category, key in zip(frame["dataset"], frame["category"], content_keys(frame), strict=True):
            images.setdefault(f"{dataset}/{category}", []).append(key)
    elif method.fitted and folder is not None and (folder / "references.csv").is_file():
        for row in recorded_references(folder):
            images.setdefault(f"{row['dataset']}/{row['category']}", []).append(row["sha256"])
    found = {}
    for name in dict.fromkeys([*names, *images]):
        memory = hashlib.sha256()
        for level in method.memory.levels_of(name) if name in names else ():
            memory.update(level.detach().cpu().float().contiguous().numpy().tobytes())
        found[name] = ReferenceRecord(
            hashlib.sha256("\n".join(sorted(images[name])).encode()).hexdigest()[:16] if name in images else "",
            memory.hexdigest()[:16] if name in names else "",
        )
    return found


def recorded_references(folder: Path) -> list[dict[str, str]]:
    """Returns the rows of a run's ``references.csv``.

    Raises:
        DecisionError: The file is damaged.
    """
    import pandas as pd

    file = folder / "references.csv"
    try:
        table = pd.read_csv(io.BytesIO(read_plain(file)), dtype=str, keep_default_na=False)
        table = table[["dataset", "category", "sha256"]].map(plain_text)
        rows: list[dict[str, str]] = table.to_dict("records")
    except (OSError, ValueError, KeyError) as error:
        raise DecisionError(f"{file} is damaged ({str(error).splitlines()[0]}); test or predict again") from error
    return rows


def check_decision(
    decision: Decision,
    method: Method,
    *,
    precision: str = "32-true",
    data: Mapping[str, Any] | None = None,
    scored: pd.DataFrame | None = None,
    references: pd.DataFrame | None = None,
    run: str | Path | None = None,
) -> None:
    """Rejects a decision that was made with scores other than the method's current ones.

    Args:
        decision: The decision.
        method: The method, trained and fitted on its references.
        precision: Lightning's name of the precision.
        data: Options of the data that scores depend on.
        scored: Index of the scored images; None if not known in advance.
        references: Index of the references, if they were fitted in this run.
        run: The run folder or checkpoint that the method was restored from.

    Raises:
        DecisionError: Something differs; the message names every difference.
        MethodError: The scores of the method need the whole test set.
    """
    from vlad.identity import scoring_identity

    refuse_transductive(method)
    if not decision.identity:
        return
    records = reference_records(method, references, run)
    names: Iterable[tuple[str, str, str | None]] = [(*name.partition("/")[::2], None) for name in records]
    if scored is not None:
        names = scored[["dataset", "category", "class_name"]].drop_duplicates().itertuples(index=False, name=None)
    pairs = []
    for dataset, category, class_name in names:
        if class_name is not None:
            decision.check_class_name(category, class_name)
        known = decision.category_of(category, class_name)
        if known is not None:
            pairs.append((known, records.get(f"{dataset}/{category}", NO_REFERENCES)))
    if scored is None and not records:
        pairs = [(category, NO_REFERENCES) for category in decision.rules]
    decision.check(scoring_identity(method, precision=precision, data=data), pairs)


def refuse_transductive(method: Any) -> None:
    """Rejects methods whose scores need the whole test set.

    Raises:
        DecisionError: The method is transductive.
    """
    if method.tags.transductive:
        raise DecisionError(
            f"{type(method).__name__} as configured scores a whole test set at once (transductive): its scores cannot "
            "be compared with those of calibration images; choose a setting that is not transductive"
        )


def refuse_calibration_images(decision: Decision, tested: pd.DataFrame) -> None:
    """Rejects test images that the decision was made with.

    Only files with the size of one of those images are read.

    Args:
        decision: The decision.
        tested: Index of the tested images.

    Raises:
        DecisionError: There are such images; the message names the first.
    """
    known = {digest for rule in decision.rules.values() for digest in rule.digests}
    sizes = {size for rule in decision.rules.values() for size in rule.digests.values()}
    alike = tested[[_size(path) in sizes for path in tested["image_path"]]]
    found = [path for path, key in zip(alike["image_path"], content_keys(alike), strict=True) if key in known]
    if found:
        raise DecisionError(
            f"{len(found)} of the tested images are among those that {decision.source} was made with (first: "
            f"{found[0]}): results on them would be meaningless; test on others, or calibrate on others"
        )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
