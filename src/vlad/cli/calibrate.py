"""``vlad calibrate``: from images to a decision file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.cli.lifetime import importing
from vlad.errors import OptionError, nearest

if TYPE_CHECKING:
    from vlad.decision import Decision
    from vlad.decision.images import Chosen
    from vlad.methods.base import Method

__all__ = ["run"]

_TEXT = """Finds from which score on an image is anomalous, and writes it to a file for predict and test (--decision).

From normal images alone the rate of false alarms is promised: split conformal prediction. Images that the method was
trained on, its references, and copies are left out."""

_EXAMPLES = """examples:
  vlad calibrate sdp good/ --class-name bottle --false-alarm-rate 0.05
  vlad calibrate patch_memory good/ --shots 4          4 of them become references, the rest calibrates
  vlad calibrate runs/sdp_plus/RUN parts/ --labelled f1     parts/ holds good, bad and perhaps masks
  vlad calibrate sdp good/ --threshold 0.62            your own number, regions from the good images
  vlad predict photos/ --model sdp --data.class_name bottle --decision decision.json"""

_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true")
_FILES = {".ckpt", ".pth", ".pt", ".safetensors"}
_DATA = ("batch_size", "num_workers", "fast_jpeg", "intensity_range", "max_pixels", "roi", "ignore")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlad calibrate",
        description=_TEXT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="vlad calibrate RUN_OR_METHOD GOOD [BAD …] [options]",
        allow_abbrev=False,
    )
    parser.add_argument("method", metavar="RUN_OR_METHOD", help="a method's name, a run folder, or a checkpoint")
    parser.add_argument("good", metavar="GOOD", help="normal images: folder, files or table; or with --labelled both")
    parser.add_argument("bad", metavar="BAD", nargs="*", help="anomalous images, for --labelled")
    wanted = parser.add_argument_group("what is wanted")
    wanted.add_argument("--false-alarm-rate", type=float, default=0.05, metavar="RATE",
                        help="share of normal images that may be called anomalous (default 0.05)")  # fmt: skip
    wanted.add_argument("--labelled", choices=("f1", "fpr"), help="from labelled images: the best F1, or the rate of "
                        "false alarms on the normal ones")  # fmt: skip
    wanted.add_argument("--threshold", type=float, metavar="NUMBER", help="take this number as the image threshold")
    wanted.add_argument("--min-area", type=float, default=0.0, metavar="SHARE",
                        help="leave out regions smaller than this share of the image (default 0)")  # fmt: skip
    wanted.add_argument("-o", "--output", metavar="FILE", help="the decision file (default decision.json, in the run "
                        "folder where one is given)")  # fmt: skip
    images = parser.add_argument_group("images")
    images.add_argument("--class-name", metavar="TEXT", help="what is in the images, for prompts and as the category")
    images.add_argument("--references", nargs="+", metavar="IMAGES", help="normal images that the method compares with")
    images.add_argument("--shots", type=int, metavar="K", help="draw K references: of --references, else of GOOD")
    images.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    method = parser.add_argument_group("method")
    method.add_argument("--model.NAME", dest="model_", metavar="VALUE", help="a setting of the method, such as "
                        "--model.image_size 240")  # fmt: skip
    method.add_argument("--data.NAME", dest="data_", metavar="VALUE", help="an option of the data, such as "
                        "--data.batch_size 32")  # fmt: skip
    method.add_argument("--tile", type=int, metavar="N", help="score by tiles of N pixels, as --tile of predict")
    method.add_argument("--overlap", type=float, metavar="SHARE", help="share of a tile that its neighbours cover too")
    method.add_argument("--engine", choices=("openvino", "onnx", "torch"), help="as --engine of predict")
    method.add_argument("--engine.precision", dest="engine_precision", default="fp32", choices=("fp32", "bf16"),
                        help="as --engine.precision of predict")  # fmt: skip
    method.add_argument("--precision", default="32-true", choices=_PRECISIONS, help="as --trainer.precision of predict")
    method.add_argument(
        "--accelerator", default="auto", choices=("auto", "cpu", "gpu", "mps"), help="where it is scored"
    )
    method.add_argument("--allow-untrained", action="store_true", help="score with an untrained method, to try things")
    return parser


def _settings(arguments: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Takes ``--model.NAME VALUE`` and ``--data.NAME VALUE`` out of a command line."""
    rest: list[str] = []
    found: dict[str, dict[str, str]] = {"model": {}, "data": {}}
    position = 0
    while position < len(arguments):
        name, equals, value = arguments[position].partition("=")
        section, dot, key = name.removeprefix("--").partition(".")
        if not (name.startswith("--") and dot and section in found):
            rest.append(arguments[position])
        else:
            if not equals:
                position += 1
                if position == len(arguments):
                    raise OptionError(f"{name} needs a value")
                value = arguments[position]
            found[section][key] = value
        position += 1
    return rest, found


def _typed(cls: type, section: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Returns settings as a constructor takes them.

    Raises:
        OptionError: There is no such setting, or its value is of another kind.
    """
    from contextlib import redirect_stderr
    from io import StringIO

    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    from vlad.methods.arguments import init_parameters

    known = [name for name in init_parameters(cls) if section == "model" or name in _DATA]
    for name in texts:
        if name.partition(".")[0] not in known:
            raise OptionError(f"there is no --{section}.{name} here; {nearest(name, known)}")
    if not texts:
        return {}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, section)
    given = [part for name, text in texts.items() for part in (f"--{section}.{name}", text)]
    try:
        with redirect_stderr(StringIO()):
            parsed = parser.parse_args(given)[section]
    except (ArgumentError, SystemExit) as error:
        raise OptionError(f"--{section}: {' '.join(str(error).split())[:300]}") from error
    found = {name: parsed[name] for name in dict.fromkeys(text.partition(".")[0] for text in texts)}
    return {name: value.as_dict() if isinstance(value, Namespace) else value for name, value in found.items()}


def _load(options: argparse.Namespace, settings: Mapping[str, str]) -> tuple[Method, Path | None]:
    """Returns the method, and the run folder it comes from."""
    from vlad.decision.records import run_folder
    from vlad.encoders.facts import with_image_size
    from vlad.loading import restore
    from vlad.registry import get_method, list_methods

    path = Path(options.method)
    if options.method not in list_methods() and (path.is_dir() or path.suffix in _FILES):
        overrides: dict[str, Any] = {}
        if settings:
            overrides = _typed(type(restore(path, allow_untrained=options.allow_untrained)), "model", settings)
        method = restore(path, overrides, allow_untrained=options.allow_untrained)
        return method.eval(), run_folder(path)
    cls = get_method(options.method)
    method = cls(**with_image_size(cls, _typed(cls, "model", settings)))
    method.allow_untrained = options.allow_untrained
    if method.trains:
        method.refuse_unfit()
    return method.eval(), None


def run(arguments: list[str]) -> int:
    """Runs ``vlad calibrate``; the arguments start with the verb."""
    rest, settings = _settings(arguments[1:])
    options = _parser().parse_intermixed_args(rest)
    with importing():
        from vlad.decision.make import Wish
    from vlad.runs.pointers import resolve_run

    options.method = str(resolve_run(options.method))

    if options.bad and not options.labelled:
        raise OptionError(f"{options.bad[0]}: anomalous images are used with --labelled f1 or --labelled fpr alone")
    if options.labelled and options.threshold is not None:
        raise OptionError("--labelled finds a threshold and --threshold gives one: leave one of them out")
    if options.shots is not None and options.shots < 1:
        raise OptionError(f"--shots is a number of reference images per category, at least 1, not {options.shots}")
    if options.seed < 0:
        raise OptionError(f"--seed is a whole number, at least 0, not {options.seed}")
    wish = Wish(options.false_alarm_rate, options.labelled or "", options.threshold, options.min_area, options.seed)
    wish.check()
    output = _output(options)
    return _calibrate(options, settings, wish, output)


def _output(options: argparse.Namespace) -> Path:
    """Returns where the decision goes; only a decision is ever written over."""
    from vlad.decision import Decision
    from vlad.errors import DecisionError

    folder = Path(options.method)
    output = Path(options.output or (folder / "decision.json" if folder.is_dir() else "decision.json"))
    if output.is_dir():
        output = output / "decision.json"
    if output.exists():
        try:
            Decision.load(output)
        except DecisionError as error:
            raise DecisionError(f"--output {output} exists and is not a decision file: give another name") from error
    return output


def _calibrate(options: argparse.Namespace, settings: Mapping[str, Mapping[str, str]], wish: Any, output: Path) -> int:
    from vlad.cli.lightning import _quiet
    from vlad.datamodules import AnomalyDataModule
    from vlad.datamodules.references import given_references
    from vlad.datamodules.sources import Locations
    from vlad.decision.images import choose_images, index_labelled, index_normal
    from vlad.decision.make import describe, make_decision
    from vlad.decision.records import refuse_transductive
    from vlad.decision.scoring import score_images
    from vlad.engines.frozen import FrozenEngine, set_engine
    from vlad.tiling import Tiling

    if not os.environ.get("VLAD_DEBUG"):
        _quiet()
    data = _typed(AnomalyDataModule, "data", settings["data"])
    locations = Locations(None, options.class_name)
    if options.labelled:  # before the method is loaded: a wrong folder is told at once
        frame, ignored = index_labelled(options.good, options.bad, locations)
    else:
        frame, ignored = index_normal([options.good], locations)
    wish.check_counts(frame)
    if options.references:
        given_references(options.references, None, 0, frame)
    AnomalyDataModule(**data)
    tiling = Tiling.of(options.tile, options.overlap, data.get("batch_size", 8))
    method, run_of = _load(options, settings["model"])
    refuse_transductive(method)
    if tiling is not None:
        tiling.apply(method)
    if options.engine is not None:
        if options.precision != "32-true":
            raise OptionError("--engine and --precision exclude each other: leave one out")
        set_engine(method, FrozenEngine(options.engine, options.engine_precision, tell=print))
    elif options.engine_precision != "fp32":
        raise OptionError("--engine.precision needs an engine: --engine openvino, or torch")
    if (options.references or options.shots) and not method.tags.takes_references:
        raise OptionError(f"{type(method).__name__} takes no reference images; leave out --references and --shots")
    chosen = choose_images(
        frame, method, references=options.references, shots=options.shots, seed=options.seed, run=run_of
    )
    _tell(ignored, "ignored")
    _tell(chosen.left_out, "left out")
    wish.check_counts(chosen.frame)
    scored, depends = score_images(
        method,
        chosen.frame,
        chosen.references,
        precision=options.precision,
        accelerator=options.accelerator,
        masks=bool(options.labelled) and bool(chosen.frame["mask_path"].any()),
        data=data,
    )
    for row, reason in list(scored.errors.items())[:5]:
        print(f"not scored: {chosen.frame['image_path'].iloc[row]}: {reason}")
    if len(scored.errors) > 5:
        print(f"not scored: {len(scored.errors) - 5} more")
    decision = make_decision(
        method, chosen.frame, chosen.keys, scored, wish, data=depends, references=chosen.references, run=run_of
    )
    print("\n".join(describe(decision, chosen.frame, scored)))
    decision.save(output)
    print(f"decision: {output}")
    print(f"next: {_next(options, settings, chosen, decision, output, run_of)}", flush=True)
    return 0


def _tell(found: Mapping[str, Sequence[str]], what: str) -> None:
    for reason, paths in found.items():
        print(f"{what}: {len(paths)} {reason} (first: {paths[0]})")


def _next(
    options: argparse.Namespace,
    settings: Mapping[str, Mapping[str, str]],
    chosen: Chosen,
    decision: Decision,
    output: Path,
    run_of: Path | None,
) -> str:
    """Returns the command that predicts with the decision; writes the list of drawn references that it names."""
    import shlex

    words = ["vlad", "predict", "photos/"]
    words += ["--ckpt_path", options.method] if run_of or Path(options.method).exists() else ["--model", options.method]
    words += [part for name, value in settings["model"].items() for part in (f"--model.{name}", value)]
    words += [part for name, value in settings["data"].items() for part in (f"--data.{name}", value)]
    words += ["--data.class_name", options.class_name] if options.class_name else []
    words += ["--trainer.precision", options.precision] if options.precision != "32-true" else []
    words += ["--tile", str(options.tile)] if options.tile is not None else []
    words += ["--overlap", f"{options.overlap:g}"] if options.overlap is not None else []
    words += ["--engine", options.engine] if options.engine else []
    words += ["--engine.precision", options.engine_precision] if options.engine_precision != "fp32" else []
    words += ["--allow-untrained"] if options.allow_untrained else []
    if chosen.references is not None:
        words += ["--references", *_references(options, chosen, output)]
    return shlex.join([*words, "--decision", str(output)])


def _references(options: argparse.Namespace, chosen: Chosen, output: Path) -> list[str]:
    """Returns the references as an option takes them: those given, or a list of those drawn."""
    from vlad.table import write_frame

    if not chosen.drawn:
        return [*options.references]
    assert chosen.references is not None
    frame = chosen.references
    table = frame[["category"]].assign(image_path=[os.path.abspath(path) for path in frame["image_path"]])
    file = output.with_name(f"{output.stem}.references.csv")
    write_frame(file, table[["image_path", "category"]])
    print(f"references: {len(frame)} drawn by the seed {options.seed}: {file}", file=sys.stdout)
    return [str(file)]
