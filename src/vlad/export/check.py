"""How far an exported graph is from vlad: deviations of map and score, and what that costs in AUROC and PRO."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from vlad.errors import DataError
from vlad.types import Batch, Prediction

if TYPE_CHECKING:
    import pandas as pd

    from vlad.methods.base import Method
    from vlad.types import Preprocess

__all__ = ["Accuracy", "CheckSet", "Deviation", "check_sets", "generated_images", "measure", "own_prediction"]

Scorer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From normalised images (N, 3, H, W) to maps (N, H, W) and scores (N,)."""

_METRICS = ("image_auroc", "pixel_auroc", "pixel_aupro")


@dataclass
class Deviation:
    """How far two scorers are from each other at most.

    Attributes:
        images: Number of images.
        map_range: Range of vlad's maps: their largest less their smallest value.
        map_absolute: Largest difference of a pixel.
        score_absolute: Largest difference of an image score.
        score_largest: Largest magnitude of vlad's scores.
    """

    images: int = 0
    low: float = np.inf
    high: float = -np.inf
    map_absolute: float = 0.0
    score_absolute: float = 0.0
    score_largest: float = 0.0

    def add(self, expected: Prediction, maps: np.ndarray, scores: np.ndarray) -> None:
        """Adds a batch: what vlad says, and what the graph says."""
        own_maps, own_scores = expected.anomaly_map.numpy(), expected.image_score.numpy()
        if not (np.isfinite(maps).all() and np.isfinite(scores).all()):
            self.map_absolute = self.score_absolute = np.inf
        self.images += len(maps)
        self.low, self.high = min(self.low, float(own_maps.min())), max(self.high, float(own_maps.max()))
        self.map_absolute = max(self.map_absolute, float(abs(maps - own_maps).max()))
        self.score_absolute = max(self.score_absolute, float(abs(scores - own_scores).max()))
        self.score_largest = max(self.score_largest, float(abs(own_scores).max()))

    @property
    def map_range(self) -> float:
        """Range of vlad's maps over all images."""
        return max(self.high - self.low, 1e-12)

    @property
    def relative(self) -> float:
        """The larger one of both relative deviations: the map's by its range, the score's by its largest magnitude."""
        return max(self.map_absolute / self.map_range, self.score_absolute / max(self.score_largest, 1e-12))

    def plain(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "images": self.images,
            "map": {"absolute": self.map_absolute, "of_range": self.map_absolute / self.map_range},
            "map_range": self.map_range,
            "score": {
                "absolute": self.score_absolute,
                "relative": self.score_absolute / max(self.score_largest, 1e-12),
            },
        }


@dataclass
class Accuracy:
    """Metrics of a labelled set before and after, means over its categories, in [0, 1]."""

    before: dict[str, float]
    after: dict[str, float]

    @property
    def loss(self) -> float:
        """Largest loss of a metric in points (hundredths); below 0 where all have gained."""
        return max(100 * (self.before[name] - self.after[name]) for name in self.before)

    def plain(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {"before": self.before, "after": self.after, "loss_points": self.loss}


@dataclass
class CheckSet:
    """Images of a check.

    Attributes:
        name: What was given.
        batches: Yields them, normalised for the method; labelled ones with label and mask.
        labelled: Whether both normal and anomalous images are among them.
        files: Their files; none of generated images.
    """

    name: str
    batches: Callable[[], Iterator[Batch]]
    labelled: bool = False
    files: list[str] = field(default_factory=list)


def generated_images(size: int) -> list[Image.Image]:
    """Returns four rendered images, each with a defect, the same on every machine."""
    from vlad.rendered import Look, render

    looks = [Look("gear", "brushed", "teal"), Look("pill", "plain", "red"), Look("nut", "speckled", "grey")]
    looks.append(Look("surface", "woven", "brown"))
    defects = ("scratch", "stain", "hole", "contamination")
    found = zip(looks, defects, strict=True)
    return [Image.fromarray(render(look, defect, seed=(7,), size=size).image) for look, defect in found]


def check_sets(
    given: Iterable[Any], method: Method, *, size: tuple[int, int], class_name: str, root: str | None, limit: int | None
) -> list[CheckSet]:
    """Finds the images of a check; without any, four are generated.

    Args:
        given: Folders, files or tables of images, or data sets of the catalogue.
        method: The method, which says how images are prepared.
        size: Height and width of the graph.
        class_name: What is in the images.
        root: The folder that holds data sets.
        limit: At most so many images of each category and label; None for all.

    Raises:
        DataError: Something is not there.
    """
    preprocess = method.requirements.preprocess
    sets = [_set_of(one, preprocess, class_name, root, limit) for one in given]
    if sets:
        return sets
    images = [image.resize((size[1], size[0])) for image in generated_images(max(size))]
    return [CheckSet("generated images", lambda: _batches_of(images, class_name, preprocess))]


def _set_of(given: Any, preprocess: Preprocess, class_name: str, root: str | None, limit: int | None) -> CheckSet:
    from vlad.datamodules.sources import Locations, as_sources

    path = Path(given) if isinstance(given, str) else None
    if path is not None and path.exists() and not _is_labelled(path):
        from vlad.detector.inputs import find

        (found,) = find(str(given), class_name, size=64)
        frame = found.frame if limit is None else found.frame.head(limit)
        return _frame_set(str(given), frame.reset_index(drop=True), preprocess, labelled=False)
    (source,) = as_sources(given)
    frame = Locations(root, class_name).index(source)
    split = source.split or "test"
    frame = frame if split == "all" else frame[frame["split"] == split]
    frame = frame[frame["label"] >= 0]
    if source.categories:
        frame = frame[frame["category"].isin(source.categories)]
    if limit is not None:
        frame = frame.groupby(["category", "label"], sort=False).head(limit)
    if frame.empty:
        raise DataError(f"--check {given} holds no labelled images of the {split} split")
    return _frame_set(str(given), frame.reset_index(drop=True), preprocess, labelled=frame["label"].nunique() == 2)


def _is_labelled(path: Path) -> bool:
    """Whether folders tell good images from others, or a table may."""
    from vlad.datamodules.custom import label_of

    if not path.is_dir():
        return path.suffix.lower() in {".csv", ".jsonl", ".json", ".parquet", ".toml"}
    return any(label_of([one.name.lower()]) >= 0 for one in path.iterdir() if one.is_dir())


def _frame_set(name: str, frame: pd.DataFrame, preprocess: Preprocess, *, labelled: bool) -> CheckSet:
    from vlad.datamodules.dataset import AnomalyDataset, collate

    dataset = AnomalyDataset(frame, preprocess, truth=labelled)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(frame), 4):
            batch: Any = collate([dataset[row] for row in range(start, min(start + 4, len(frame)))])
            yield batch

    return CheckSet(name, batches, labelled, frame["image_path"].tolist())


def _batches_of(images: list[Image.Image], class_name: str, preprocess: Preprocess) -> Iterator[Batch]:
    from vlad.detector.images import GivenImages
    from vlad.detector.inputs import find

    for found in find(images, class_name, size=64):
        yield from GivenImages(found, preprocess).batches(len(images))


def own_prediction(method: Method, images: torch.Tensor, class_name: str, category: str | None) -> Prediction:
    """Returns what vlad itself says of normalised images."""
    with torch.inference_mode():
        categories = None if category is None else [category] * len(images)
        return method.score(images, [class_name] * len(images), categories).detached()


def measure(
    method: Method, run: Scorer, checked: CheckSet, class_name: str, category: str | None, deviation: Deviation
) -> Accuracy | None:
    """Compares a graph with vlad on images.

    Args:
        method: The method.
        run: The graph.
        checked: The images.
        class_name: What the graph takes to be in the images; vlad is told the same.
        category: Whose references are in the graph.
        deviation: Takes the deviations.

    Returns:
        What a labelled set says before and after; None of other images.

    Raises:
        DataError: The images are of another size than the graph.
    """
    from vlad.metrics.evaluation import Evaluation

    before, after = (Evaluation(("image", "pixel"), pro_limits=(0.3,)) for _ in range(2))
    for batch in checked.batches():
        for _, reason in batch.get("failed", []):
            raise DataError(f"an image of --check cannot be used: {reason}")
        expected = own_prediction(method, batch["image"], class_name, category)
        maps, scores = run(batch["image"].numpy())
        deviation.add(expected, maps, scores)
        if checked.labelled:
            told = Prediction(torch.from_numpy(maps), torch.from_numpy(scores), torch.from_numpy(maps))
            before.update(batch, expected._replace(stages=None, score_components=None))
            after.update(batch, told)
    if not checked.labelled:
        return None
    results = [one.compute().mean for one in (before, after)]
    names = [name for name in _METRICS if all(np.isfinite(one.get(name, np.nan)) for one in results)]
    old, new = ({name: float(one[name]) for name in names} for one in results)
    return Accuracy(old, new)
