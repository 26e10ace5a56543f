"""Exported files and engines: what works, how large, how far from vlad, how fast against torch in the same run.

    python benchmarks/export.py methods [NAME ...]   every method on vlad-tiny, trained, all formats and precisions
    python benchmarks/export.py speed                SDP with random weights (--backbone), files and engines

Prints the tables of docs/export.md. CPU time of one thread (process_time), the least of a few passes. What trains is
trained as in experiments/few_shot.py, into --trained, and what is there is used again. Nothing is refused here for its
deviation or loss, which are what is measured.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import vlad
from vlad.detector.images import GivenImages
from vlad.detector.inputs import find
from vlad.engines.frozen import FrozenEngine, set_engine
from vlad.engines.sessions import has_bf16
from vlad.errors import VladError
from vlad.export import ExportedModel
from vlad.export.check import CheckSet, check_sets
from vlad.export.graph import refusal
from vlad.export.write import ExportWish, export_class, refuse_combination
from vlad.rendered import Look, render
from vlad.rendered.parts import SHAPES, TEXTURES

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import few_shot

_KINDS = list(itertools.product(("torch", "onnx", "openvino"), ("fp32", "fp16", "bf16", "int8")))
_METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_aupro": "PRO"}
_CATEGORY = "striped_gear"  # whose references are in the graphs of methods that need some


def _rendered(count: int, size: int, seed: int) -> list[Image.Image]:
    looks = [Look(shape, texture, "teal") for shape, texture in itertools.product(SHAPES, TEXTURES)]
    chosen = [looks[(11 * number + seed) % len(looks)] for number in range(count)]
    images = [render(look, "stain" if n % 2 else "", seed=(seed, n), size=size) for n, look in enumerate(chosen)]
    return [Image.fromarray(rendered.image) for rendered in images]


def _batch(detector: vlad.Detector, count: int, seed: int) -> np.ndarray:
    (found,) = find(_rendered(count, detector.preprocess.size, seed), "object", size=256)
    batches = GivenImages(found, detector.preprocess).batches(count)
    return np.concatenate([batch["image"].numpy() for batch in batches])


def _seconds(run: Callable[[], Any], images: int, passes: int = 3) -> float:
    """Returns CPU seconds an image: the least of some passes, after one that does not count."""
    run()
    spent = []
    for _ in range(passes):
        before = time.process_time()
        run()
        spent.append((time.process_time() - before) / images)
    return min(spent)


@dataclass
class Measured:
    """A method, what it is measured on, and the CPU seconds an image that torch takes."""

    detector: vlad.Detector
    category: str | None
    batch: np.ndarray
    labelled: list[CheckSet]
    quantise: str
    base: float = 0.0

    def __post_init__(self) -> None:
        """Times torch."""
        self.images = torch.from_numpy(self.batch)
        self.base = _seconds(self.score, len(self.batch))

    @torch.inference_mode()
    def score(self) -> Any:
        """Scores the batch with torch."""
        count = len(self.batch)
        return self.detector.method.score(
            self.images, ["object"] * count, self.category and [self.category] * count
        ).detached()

    def row(self, engine: Any, precision: Any) -> str:
        """Exports and returns cells: file, deviations, time, accuracy; or why not."""
        side = self.detector.preprocess.size
        calibrated = (engine, precision) == ("openvino", "int8")
        wish = ExportWish(
            engine, precision, tolerance=1e9, max_loss=1e9, quantise=self.quantise if calibrated else ""
        )  # fmt: skip
        sets = [] if precision == "fp32" else self.labelled
        options = {"size": (side, side), "class_name": "object"}
        sets = sets or check_sets([], self.detector.method, **options, root=None, limit=None)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            try:
                refuse_combination(wish)
                sidecar = export_class(
                    self.detector, wish, Path(folder) / "model", sets, category=self.category, say=lambda line: None,
                    **options,  # type: ignore[arg-type]
                )  # fmt: skip
            except VladError as error:
                return f"no: {error} | | | | | |"
            model = ExportedModel.load(sidecar, threads=1)
            seconds = _seconds(lambda: model(self.batch), len(self.batch))
            size = sum((Path(folder) / file).stat().st_size for file in model.facts["files"]) / 1e6
        check, accuracy = model.facts["check"], model.facts["accuracy"] or {}
        told = ", ".join(
            f"{100 * (one['after'][name] - one['before'][name]):+.2f}" if name in one["before"] else "-"
            for one in accuracy.values()
            for name in _METRICS
        )
        off, score = 100 * check["map"]["of_range"], 100 * check["score"]["relative"]
        return f"{size:.1f} | {off:.2g} % | {score:.2g} % | {1000 * seconds:.1f} | {seconds / self.base:.2f} | {told} |"

    def engine_row(self, engine: Any, precision: Any) -> str:
        """Returns the same cells for the frozen pass by an engine."""
        expected = self.score()
        set_engine(self.detector.method, FrozenEngine(engine, precision))
        seconds, found = _seconds(self.score, len(self.batch)), self.score()
        set_engine(self.detector.method, None)
        span = float(expected.anomaly_map.max() - expected.anomaly_map.min())
        off = 100 * float((found.anomaly_map - expected.anomaly_map).abs().max()) / span
        score = 100 * float((found.image_score - expected.image_score).abs().max() / expected.image_score.abs().max())
        return f"| {off:.2g} % | {score:.2g} % | {1000 * seconds:.1f} | {seconds / self.base:.2f} | |"


def _head(*first: str) -> None:
    columns = [*first, "file, MB", "map off by", "score off by", "CPU ms an image", "of torch"]
    columns.append(f"points of {', '.join(_METRICS.values())}")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)


def methods(names: list[str], trained: Path, limit: int, quantise: str) -> None:
    """Prints a row for each method, format and precision."""
    _head("method", "format", "precision")
    for name in names or list(few_shot.METHODS):
        detector = vlad.Detector(few_shot.build(name, trained))
        reason = refusal(detector.method)
        if reason:
            print(f"| `{name}` | none | | {reason} | | | | | |", flush=True)
            continue
        category = None
        if detector.method.tags.needs_references:
            detector.fit_references(_training_images(4, _CATEGORY), class_name="object")
            (category,) = detector.method.memory.categories
        side = detector.preprocess.size
        chosen: Any = {"name": "synthetic", "categories": [_CATEGORY]} if category else "synthetic"
        labelled = check_sets([chosen], detector.method, size=(side, side), class_name="object", root=None, limit=limit)
        measured = Measured(detector, category, _batch(detector, 4, 2), labelled, quantise)
        print(f"| `{name}` | vlad | fp32 | | | | {1000 * measured.base:.1f} | 1 | |", flush=True)
        for engine, precision in _KINDS:
            print(f"| `{name}` | {engine} | {precision} | {measured.row(engine, precision)}", flush=True)


def _training_images(count: int, category: str | None = None) -> list[Image.Image]:
    """Returns normal training images of `synthetic`, so many of each category."""
    from vlad.datamodules.sources import Locations, as_sources

    (source,) = as_sources("synthetic")
    frame = Locations(None, "object").index(source)
    frame = frame[(frame["split"] == "train") & (category is None or frame["category"] == category)]
    frame = frame.groupby("category").head(count)
    return [Image.open(path).convert("RGB") for path in frame["image_path"]]


def speed(backbone: str, size: int | None, count: int, quantise: str) -> None:
    """Prints a row for each format and precision of SDP, and for the engines inside vlad."""
    torch.manual_seed(0)
    given: dict[str, Any] = {} if size is None else {"image_size": size}
    detector = vlad.load("sdp", backbone=backbone, pretrained="random", **given)
    measured = Measured(detector, None, _batch(detector, count, 2), [], quantise)
    _head("format", "precision")
    print(f"| vlad (torch) | fp32 | | | | {1000 * measured.base:.1f} | 1 | |", flush=True)
    for engine, precision in _KINDS:
        print(f"| {engine} | {precision} | {measured.row(engine, precision)}", flush=True)
    kinds: Iterable[tuple[str, str]] = (("openvino", "fp32"), ("openvino", "bf16"), ("onnx", "fp32"), ("torch", "bf16"))
    for engine, precision in kinds:
        if precision == "fp32" or has_bf16():
            print(f"| `--engine {engine}` | {precision} | {measured.engine_row(engine, precision)}", flush=True)


def main() -> None:
    """Runs a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("methods", "speed"))
    parser.add_argument("names", nargs="*", help="methods; all by default")
    parser.add_argument("--trained", type=Path, default=Path("runs/few_shot"), help="where trained methods are kept")
    parser.add_argument("--limit", type=int, default=12, help="images of each category and label, for the accuracy")
    parser.add_argument("--backbone", default="ViT-B-16-plus-240")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, default=4, help="in a batch, for speed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(_training_images(3)):
            image.save(Path(folder) / f"{number}.png")
        if options.part == "methods":
            methods(options.names, options.trained, options.limit, folder)
        else:
            speed(options.backbone, options.image_size, options.images, folder)


if __name__ == "__main__":
    main()
