"""One file of one class name: traced, converted, checked against vlad, described, and only then put in its place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vlad import __version__
from vlad.checkpoint import class_path_of, describe
from vlad.engines.convert import capture, write_graph
from vlad.engines.sessions import Engine, Precision, engine_version, has_bf16, open_session
from vlad.errors import MethodError, OptionError
from vlad.export.calibrate import calibrate, refuse_known
from vlad.export.check import Accuracy, CheckSet, Deviation, measure
from vlad.export.graph import OUTPUTS, ScoringGraph, capture_parts, checked_graph, with_help
from vlad.export.low import write_bf16_openvino, write_int8_onnx, write_int8_openvino
from vlad.export.runtime import FORMAT
from vlad.files import scratch_folder, write_json
from vlad.identity import scoring_identity

if TYPE_CHECKING:
    from vlad.detector import Detector

__all__ = ["EXACT", "ExportWish", "export_class", "refuse_combination"]

EXACT = 1e-3
"""Largest deviation in float32: of the map by its range, of the score by its largest magnitude."""

_REFUSED: dict[tuple[str, str], str] = {
    (
        "onnx",
        "bf16",
    ): "ONNX Runtime's CPU kernels do not compute in bfloat16; give --format openvino, or --precision fp16",
    ("torch", "fp16"): "torch's CPU kernels are slow in half precision; give --precision bf16, or --format onnx",
    ("torch", "int8"): "8-bit graphs are made for --format openvino and onnx",
}


@dataclass(frozen=True)
class ExportWish:
    """What is to be written.

    Attributes:
        engine: Which engine's file.
        precision: Of weights and arithmetic; see ``docs/export.md``.
        tolerance: Largest deviation where the precision is below fp32.
        max_loss: Largest loss of a metric on a labelled set, in points.
        quantise: Images that the ranges of 8-bit integers are taken from.
        calibrate: Normal images that a decision is made with on the exported graph; "" for none.
        false_alarm_rate: Rate of that decision.
    """

    engine: Engine
    precision: Precision = "fp32"
    tolerance: float = 0.01
    max_loss: float = 0.3
    quantise: str = ""
    calibrate: str = ""
    false_alarm_rate: float = 0.05

    @property
    def bound(self) -> float:
        """Largest deviation."""
        return EXACT if self.precision == "fp32" else self.tolerance


def refuse_combination(wish: ExportWish) -> None:
    """Refuses what does not go together, before anything is loaded.

    Raises:
        OptionError: A precision that the format or this CPU lacks, or images that would not be used.
    """
    reason = _REFUSED.get((wish.engine, wish.precision))
    if reason:
        raise OptionError(f"--format {wish.engine} --precision {wish.precision}: {reason}")
    if wish.precision == "bf16" and not has_bf16():
        raise OptionError("--precision bf16: this CPU has no bfloat16 arithmetic, so that it could not be checked here")
    calibrated = (wish.engine, wish.precision) == ("openvino", "int8")
    if calibrated and not wish.quantise:
        raise OptionError("--format openvino --precision int8 needs images for its ranges: --quantise-images FOLDER")
    if wish.quantise and not calibrated:
        raise OptionError("--quantise-images is used with --format openvino --precision int8 alone; leave it out")
    engine_version(wish.engine)


def export_class(
    detector: Detector,
    wish: ExportWish,
    target: Path,
    sets: Sequence[CheckSet],
    *,
    class_name: str,
    category: str | None,
    size: tuple[int, int],
    run: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Exports a method for one class name.

    Args:
        detector: The method, trained and fitted, on the CPU.
        wish: What is to be written.
        target: The file without its suffix.
        sets: Images that it is checked on.
        class_name: What is in the images.
        category: Whose references go into the graph; None without.
        size: Height and width of the images.
        run: The run folder or checkpoint that the method comes from.
        say: Takes the lines that tell what was found.

    Returns:
        The sidecar.

    Raises:
        MethodError: The method cannot be exported, or the graph deviates too much; nothing is left then.
    """
    method = detector.method
    autocast = (wish.engine, wish.precision) == ("torch", "bf16")
    graph = checked_graph(method, class_name, category, bf16=autocast)
    quantise = _quantisation_images(detector, wish, sets, size, class_name, run)
    example = torch.zeros(2, 3, *size)
    try:
        with scratch_folder(target) as folder:
            file = _write(wish, graph, example, folder / target.name, quantise)
            threads = torch.get_num_threads()
            session = open_session(wish.engine, file, threads=threads)

            def score(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                anomaly_map, image_score = session(images)
                return anomaly_map, image_score

            deviation = Deviation()
            found = [measure(method, score, one, class_name, category, deviation) for one in sets]
            accuracy = {one.name: value for one, value in zip(sets, found, strict=True) if value is not None}
            _tell(wish, deviation, accuracy, say)
            digests = {one.name: _digest(one) for one in sorted(folder.iterdir())}
            decision, note = calibrate(detector, score, wish.calibrate, class_name, wish.false_alarm_rate, run, digests)
            say(note)
            facts = _facts(detector, wish, file, digests, class_name, category, size)
            facts["check"] = {"on": [one.name for one in sets], "bound": wish.bound, **deviation.plain()}
            facts["accuracy"] = {name: value.plain() for name, value in accuracy.items()} or None
            facts["decision"], facts["decision_note"] = decision, note
            for one in sorted(folder.iterdir()):
                one.replace(target.parent / one.name)
    except MethodError as error:
        raise MethodError(with_help(f"{type(method).__name__}: {error}", class_path_of(type(method)))) from error
    sidecar = target.with_name(f"{target.name}.json")
    write_json(sidecar, facts)
    return sidecar


def _write(wish: ExportWish, graph: ScoringGraph, example: Tensor, path: Path, quantise: Sequence[np.ndarray]) -> Path:
    """Writes the graph; below fp32 what follows the encoder keeps float32."""
    kind = wish.engine, wish.precision
    if kind == ("openvino", "bf16"):
        return write_bf16_openvino(capture_parts(graph, example), path)
    if kind == ("openvino", "int8"):
        return write_int8_openvino(capture_parts(graph, example), quantise, path)
    if kind == ("onnx", "int8"):
        return write_int8_onnx(capture_parts(graph, example), path)
    program = capture(graph, example)
    if kind == ("torch", "bf16"):
        program = program.run_decompositions(
            {}
        )  # conversions in place of regions of autocast, which a file cannot hold
    return write_graph(wish.engine, program, path, OUTPUTS, wish.precision)


def _tell(wish: ExportWish, deviation: Deviation, accuracy: dict[str, Accuracy], say: Callable[[str], None]) -> None:
    """Prints the figures; refuses those out of bounds."""
    plain = deviation.plain()
    say(
        f"check: {deviation.images} images, map off by at most {plain['map']['absolute']:.2e} "
        f"({plain['map']['of_range']:.2e} of its range), score by {plain['score']['absolute']:.2e} "
        f"({plain['score']['relative']:.2e})"
    )
    for name, one in accuracy.items():
        values = ", ".join(f"{key} {100 * one.before[key]:.2f} -> {100 * one.after[key]:.2f}" for key in one.before)
        say(f"accuracy on {name}: {values} (%)")
    if not accuracy and wish.precision != "fp32":
        say("accuracy: not measured; give a labelled set: --check FOLDER_OR_DATASET")
    if not deviation.relative <= wish.bound:
        more = (
            ""
            if wish.precision == "fp32"
            else ", give a larger --tolerance if the accuracy on labelled images bears it"
        )
        raise MethodError(
            f"the {wish.engine} graph in {wish.precision} is off by {deviation.relative:.2e}, more than "
            f"{wish.bound:g}: nothing is written{more}"
        )
    worst = max((one.loss for one in accuracy.values()), default=0.0)
    if worst > wish.max_loss:
        raise MethodError(
            f"the {wish.engine} graph in {wish.precision} loses {worst:.2f} points, more than --max-loss "
            f"{wish.max_loss:g}: nothing is written"
        )


def _quantisation_images(
    detector: Detector,
    wish: ExportWish,
    sets: Iterable[CheckSet],
    size: tuple[int, int],
    class_name: str,
    run: str | None,
) -> list[np.ndarray]:
    """Returns the images for the ranges of 8-bit integers; refuses those that something else is measured on."""
    if not wish.quantise:
        return []
    from vlad.detector.images import GivenImages
    from vlad.detector.inputs import find

    (found,) = find(wish.quantise, class_name, size=64)
    refuse_known(found.frame, sets, wish.calibrate, class_name, run)
    images = []
    for batch in GivenImages(found, detector.preprocess).batches(8):
        for _, reason in batch["failed"]:
            raise OptionError(f"--quantise-images: {reason}")
        images += list(batch["image"].numpy())
    if any(image.shape[1:] != size for image in images):
        raise OptionError(f"--quantise-images come to other sizes than the graph's {size[0]} x {size[1]}")
    return images


def _facts(
    detector: Detector,
    wish: ExportWish,
    file: Path,
    digests: dict[str, str],
    class_name: str,
    category: str | None,
    size: tuple[int, int],
) -> dict[str, Any]:
    method, wanted = detector.method, detector.preprocess
    about = describe(method)
    return {
        "format": FORMAT,
        "vlad": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "engine": wish.engine,
        "made_with": {"torch": torch.__version__, wish.engine: engine_version(wish.engine)},
        "file": file.name,
        "files": digests,
        "precision": wish.precision,
        "method": about["class_path"],
        "origin": about["origin"],
        "backbone": {name: about[name] for name in ("backbone", "pretrained", "fingerprint")},
        "identity": scoring_identity(method, data=detector.data_options()),
        "class_name": class_name if method.tags.class_names else None,
        "references": category,
        "input": {"name": "image", "shape": ["batch", 3, *size], "dtype": "float32"},
        "outputs": {"map": ["batch", *size], "score": ["batch"]},
        "preprocess": {
            "resize": wanted.aspect,
            "size": wanted.size,
            "multiple": wanted.multiple,
            "interpolation": "Pillow's bicubic (antialiased)",
            "channels": "RGB, divided by 255",
            "mean": list(wanted.mean),
            "std": list(wanted.std),
        },
        "smoothing": {"sigma": method.sigma, "in_graph": True},
    }


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
