"""``vlad export``: from a method or run to files that run without vlad."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.cli.lifetime import importing
from vlad.errors import OptionError

if TYPE_CHECKING:
    from vlad.detector import Detector

__all__ = ["run"]

_TEXT = """Writes a method as a file that ONNX Runtime, OpenVINO or torch runs without vlad: normalised images in, a map
and a score out, the text of a class and the references in it. A JSON file beside it says how images are prepared.

Every file is compared with vlad before it is put in its place, and is not written where it deviates too much."""

_EXAMPLES = """examples:
  vlad export sdp --class-name bottle --format openvino --output out/
  vlad export runs/sdp_plus/RUN --class-name nut screw --format onnx --output out/
  vlad export patch_memory --references good/ --format onnx --calibrate more_good/ --output out/
  vlad export sdp --format openvino --precision int8 --quantise-images photos/ --check my_parts/ --output out/"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlad export",
        description=_TEXT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="vlad export RUN_OR_METHOD --output DIR --format FORMAT [options]",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("method", metavar="RUN_OR_METHOD", help="a method's name, a run folder, or a checkpoint")
    add("-o", "--output", required=True, metavar="DIR", help="where the files go")
    add("--format", required=True, choices=("onnx", "openvino", "torch"), help="whose file")
    add("--class-name", nargs="+", default=["object"], metavar="NAME", help="what is in the images: a file for each")
    add("--image-size", metavar="H", help="side of the images in pixels; HxW for a method that keeps the aspect ratio")
    add("--references", metavar="FOLDER", help="normal images that the method compares with")
    add("--model.NAME", dest="model_", metavar="VALUE", help="a setting of the method, such as --model.layers [3,6]")
    add("--allow-untrained", action="store_true", help="export an untrained method, to try things")
    precise = parser.add_argument_group("precision")
    precise.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16", "int8"),
                         help="fp16 halves the file, bf16 and int8 are faster where the CPU has them")  # fmt: skip
    precise.add_argument(
        "--quantise-images", metavar="FOLDER", help="images for the ranges of OpenVINO's 8-bit integers"
    )
    precise.add_argument("--tolerance", type=float, default=0.01, metavar="SHARE",
                         help="largest deviation below fp32, as a share of the map's range (default 0.01)")  # fmt: skip
    precise.add_argument("--max-loss", type=float, default=0.3, metavar="POINTS",
                         help="largest loss of AUROC or PRO on a labelled set (default 0.3)")  # fmt: skip
    checked = parser.add_argument_group("check")
    what = "what vlad and the file are compared on: images, or labelled sets as for vlad test (default: rendered ones)"
    checked.add_argument("--check", nargs="+", default=[], metavar="IMAGES", help=what)
    checked.add_argument("--check-limit", type=int, metavar="N", help="so many images of each category and label")
    checked.add_argument("--root", metavar="DIR", help="the folder that holds the data sets (or VLAD_DATA)")
    decided = parser.add_argument_group("decision")
    decided.add_argument("--calibrate", metavar="GOOD", help="normal images: make a decision with the file's scores")
    decided.add_argument("--false-alarm-rate", type=float, default=0.05, metavar="RATE",
                         help="share of normal images that it may call anomalous (default 0.05)")  # fmt: skip
    return parser


def run(arguments: list[str]) -> int:
    """Runs ``vlad export``; the arguments start with the verb."""
    from vlad.cli.calibrate import _settings as split_settings

    rest, settings = split_settings(arguments[1:])
    options = _parser().parse_intermixed_args(rest)
    if settings["data"]:
        raise OptionError(f"--data.{next(iter(settings['data']))} does nothing in vlad export; leave it out")
    size = _size(options.image_size)
    if options.tolerance <= 0 or (options.check_limit is not None and options.check_limit < 1):
        raise OptionError("--tolerance and --check-limit are numbers above 0")
    if Path(options.output).exists() and not Path(options.output).is_dir():
        raise OptionError(f"--output {options.output} is a file; give a folder")
    with importing():
        from vlad.export.write import ExportWish, refuse_combination

    wish = ExportWish(
        engine=options.format,
        precision=options.precision,
        tolerance=options.tolerance,
        max_loss=options.max_loss,
        quantise=options.quantise_images or "",
        calibrate=options.calibrate or "",
        false_alarm_rate=options.false_alarm_rate,
    )
    refuse_combination(wish)
    return _export(options, settings["model"], wish, size)


def _size(text: str | None) -> tuple[int, int] | None:
    """Returns height and width of ``H`` or ``HxW``."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise OptionError(f"--image-size is a number of pixels, or HxW, not '{text}'")
    return int(parts[0]), int(parts[-1])


def _export(options: Any, settings: dict[str, str], wish: Any, size: tuple[int, int] | None) -> int:
    from vlad.cli.calibrate import _load as load_method
    from vlad.detector import Detector
    from vlad.export.check import check_sets
    from vlad.export.graph import refusal
    from vlad.export.write import export_class
    from vlad.names import safe_name
    from vlad.runs.pointers import resolve_run

    options.method = str(resolve_run(options.method))
    if size is not None:
        settings = {**settings, "image_size": str(min(size))}
    method, folder = load_method(options, settings)
    reason = refusal(method)
    if reason:
        from vlad.errors import MethodError

        raise MethodError(reason)
    names = list(dict.fromkeys(options.class_name))
    if not method.tags.class_names and len(names) > 1:
        raise OptionError(f"{type(method).__name__} takes no class names: one file serves all; leave --class-name out")
    run_of = None if folder is None else str(folder)
    detector = Detector(method, run=run_of)
    height, width = _graph_size(detector, size)
    root = options.root or os.environ.get("VLAD_DATA")
    for name in names:
        if options.references:
            detector.fit_references(options.references, class_name=name)
        method.refuse_unfit()
        target = Path(options.output) / ("model" if len(names) == 1 else safe_name(name))
        sets = check_sets(
            options.check, method, size=(height, width), class_name=name, root=root, limit=options.check_limit
        )
        sidecar = export_class(
            detector, wish, target, sets, class_name=name, category=_category(detector, name), size=(height, width),
            run=run_of,
        )  # fmt: skip
        print(f"exported: {sidecar.with_suffix('')}.* ('{name}', {height} x {width}, {wish.precision})", flush=True)
    return 0


def _graph_size(detector: Detector, size: tuple[int, int] | None) -> tuple[int, int]:
    """Returns height and width of the graph's images."""
    wanted = detector.preprocess
    height, width = size or (wanted.size, wanted.size)
    if wanted.aspect == "squash":
        if height != width:
            raise OptionError(
                f"--image-size {height}x{width}: this method squashes images to a square; give one number"
            )
        return wanted.size, wanted.size
    return height // wanted.multiple * wanted.multiple, width // wanted.multiple * wanted.multiple


def _category(detector: Detector, class_name: str) -> str | None:
    """Returns whose references images of a class are compared with; None without references."""
    from vlad.detector.scorer import references_of

    method = detector.method
    return references_of(method, "images", class_name) if method.memory.categories else None
