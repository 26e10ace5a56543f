"""Exported files and engines: what works, how large, how far from vlad, how fast against torch in the same run.

python benchmarks/export.py methods     every method on a small CLIP, all formats in float32
python benchmarks/export.py speed       SDP on ViT-B-16-plus-240 with random weights: CPU s an image, deviation
python benchmarks/export.py accuracy    SDP on vlad-tiny: loss on the labelled set `synthetic`

Prints the tables of docs/export.md. CPU time of one thread (process_time), the least of a few passes.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable
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
from vlad.export.check import check_sets
from vlad.export.graph import refusal
from vlad.export.write import ExportWish, export_class, refuse_combination
from vlad.rendered import Look, render
from vlad.rendered.parts import SHAPES, TEXTURES

# Settings that fit vlad-tiny: 12 blocks in the image tower, 2 in the text tower.
_SMALL: dict[str, dict[str, Any]] = {
    "adaclip": {"depth": 2},
    "april_gan": {"layers": [3, 6, 9, 12]},
    "clip_ada": {"full_size": 96},
    "crane_plus": {"dino": "vlad-tiny"},
}
_FORMATS = ("onnx", "openvino", "torch")


def _pictures(count: int, size: int, seed: int) -> list[Image.Image]:
    looks = [Look(shape, texture, "teal") for shape, texture in itertools.product(SHAPES, TEXTURES)]
    chosen = [looks[(11 * number + seed) % len(looks)] for number in range(count)]
    images = [render(look, "stain" if n % 2 else "", seed=(seed, n), size=size) for n, look in enumerate(chosen)]
    return [Image.fromarray(rendered.image) for rendered in images]


def _batch(detector: vlad.Detector, count: int, seed: int) -> np.ndarray:
    size = detector.preprocess.size
    (found,) = find(_pictures(count, size, seed), "object", size=256)
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


def _detector(name: str, **more: Any) -> vlad.Detector:
    cls = vlad.get_method(name)
    method = cls(backbone="vlad-tiny", pretrained=None, image_size=96, **_SMALL.get(name, {}), **more)
    method.allow_untrained = True
    detector = vlad.Detector(method)
    if method.tags.needs_references:
        detector.fit_references(_pictures(2, 96, 1), class_name="object")
    return detector


def methods(names: list[str]) -> None:
    """Prints which method works in which format, the size of the file, the largest deviation, and the time."""
    print("| method | format | file, MB | map off by, of its range | CPU ms an image | of torch |")
    print("|---|---|---|---|---|---|")
    for name in names or vlad.list_methods():
        torch.manual_seed(0)
        _rows(name, _detector(name))


def _rows(name: str, detector: vlad.Detector) -> None:
    method = detector.method
    reason = refusal(method)
    if reason:
        print(f"| `{name}` | none | {reason} | | | |", flush=True)
        return
    category = method.memory.categories[0] if method.memory.categories else None
    batch = _batch(detector, 4, 2)
    images, categories = torch.from_numpy(batch), None if category is None else [category] * 4
    with torch.inference_mode():
        base = _seconds(lambda: method.score(images, ["object"] * 4, categories), 4)
    for engine in _FORMATS:
        _row(name, detector, engine, category, batch, base)


def _row(name: str, detector: vlad.Detector, engine: Any, category: str | None, batch: np.ndarray, base: float) -> None:
    side = detector.preprocess.size
    sets = check_sets([], detector.method, size=(side, side), class_name="object", root=None, limit=None)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        try:
            sidecar = export_class(
                detector, ExportWish(engine), target, sets, class_name="object", category=category, size=(side, side),
                say=lambda line: None,
            )  # fmt: skip
        except VladError as error:
            print(f"| `{name}` | {engine} | no: {error} | | | |", flush=True)
            return
        model = ExportedModel.load(sidecar, threads=1)
        seconds = _seconds(lambda: model(batch), len(batch))
        size = sum((Path(folder) / file).stat().st_size for file in model.facts["files"]) / 1e6
        off = model.facts["check"]["map"]["of_range"]
    print(f"| `{name}` | {engine} | {size:.1f} | {off:.1e} | {1000 * seconds:.1f} | {seconds / base:.2f} |", flush=True)


def _low(detector: vlad.Detector, check: list[str], limit: int | None, class_name: str) -> None:
    """Prints a row for each format and precision; nothing is refused for its deviation, which is what is measured."""
    side = detector.preprocess.size
    sets = check_sets(check, detector.method, size=(side, side), class_name=class_name, root=None, limit=limit)
    batch = _batch(detector, 4, 2)
    images = torch.from_numpy(batch)
    method = detector.method
    with torch.inference_mode():
        base = _seconds(lambda: method.score(images, [class_name] * 4), 4)
    print("| format | precision | file, MB | map off by | score off by | CPU ms an image | of torch | AUROC, points |")
    print(f"|---|---|---|---|---|---|---|---|\n| vlad (torch) | fp32 | | | | {1000 * base:.1f} | 1 | |", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "quantise"
        folder.mkdir()
        for number, image in enumerate(_pictures(24, side, 5)):
            image.save(folder / f"{number}.png")
        for engine, precision in itertools.product(_FORMATS, ("fp32", "fp16", "bf16", "int8")):
            calibrated = (engine, precision) == ("openvino", "int8")
            quantise = str(folder) if calibrated else ""
            wish = ExportWish(engine, precision, tolerance=1e9, max_loss=1e9, quantise=quantise)  # type: ignore[arg-type]
            try:
                refuse_combination(wish)
                sidecar = export_class(
                    detector, wish, Path(place) / f"{engine}_{precision}", sets, class_name=class_name, category=None,
                    size=(side, side), say=lambda line: None,
                )  # fmt: skip
            except VladError as error:
                print(f"| {engine} | {precision} | no: {error} | | | | | |", flush=True)
                continue
            _low_row(sidecar, engine, precision, batch, base)
    for engine, precision in (("openvino", "fp32"), ("openvino", "bf16"), ("onnx", "fp32"), ("torch", "bf16")):
        if precision == "bf16" and not has_bf16():
            continue
        _engine_row(detector, engine, precision, images, class_name, base)


def _low_row(sidecar: Path, engine: str, precision: str, batch: np.ndarray, base: float) -> None:
    model = ExportedModel.load(sidecar, threads=1)
    seconds = _seconds(lambda: model(batch), len(batch))
    size = sum((sidecar.parent / file).stat().st_size for file in model.facts["files"]) / 1e6
    check, accuracy = model.facts["check"], model.facts["accuracy"]
    told = ", ".join(
        f"{name.removesuffix('_auroc').removeprefix('pixel_')} {100 * (one['after'][name] - one['before'][name]):+.2f}"
        for one in (accuracy or {}).values()
        for name in one["before"]
    )
    print(
        f"| {engine} | {precision} | {size:.1f} | {100 * check['map']['of_range']:.2g} % | "
        f"{100 * check['score']['relative']:.2g} % | {1000 * seconds:.1f} | {seconds / base:.2f} | {told} |",
        flush=True,
    )


def _engine_row(
    detector: vlad.Detector, engine: Any, precision: Any, images: torch.Tensor, class_name: str, base: float
) -> None:
    method = detector.method
    with torch.inference_mode():
        expected = method.score(images, [class_name] * len(images))
        set_engine(method, FrozenEngine(engine, precision))
        seconds = _seconds(lambda: method.score(images, [class_name] * len(images)), len(images))
        found = method.score(images, [class_name] * len(images))
    set_engine(method, None)
    span = float(expected.anomaly_map.max() - expected.anomaly_map.min())
    off = float((found.anomaly_map - expected.anomaly_map).abs().max()) / span
    score = float((found.image_score - expected.image_score).abs().max() / expected.image_score.abs().max())
    print(
        f"| `--engine {engine}` | {precision} | | {100 * off:.2g} % | {100 * score:.2g} % | {1000 * seconds:.1f} | "
        f"{seconds / base:.2f} | |",
        flush=True,
    )


def main() -> None:
    """Runs a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("methods", "speed", "accuracy"))
    parser.add_argument("names", nargs="*", help="methods; all by default")
    parser.add_argument("--limit", type=int, default=12, help="images of each category and label, for the accuracy")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.part == "methods":
        methods(options.names)
    elif options.part == "speed":
        torch.manual_seed(0)
        _low(vlad.load("sdp", pretrained="random"), [], None, "bottle")
    else:
        _low(vlad.load("sdp", backbone="vlad-tiny", pretrained=None, image_size=96, sigma=3.0), ["synthetic"],
             options.limit, "object")  # fmt: skip


if __name__ == "__main__":
    main()
