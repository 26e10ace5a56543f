"""``vlad app``: the page in the browser."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vlad.cli.lifetime import importing
from vlad.errors import OptionError

if TYPE_CHECKING:
    import socket

    from vlad.detector import Detector

__all__ = ["run"]

_TEXT = """Serves a page for the browser of this machine: drop images, choose a method, see maps, scores and decisions;
give good parts to compare with and to calibrate on; move the threshold. Works without a network."""

_EXAMPLES = """examples:
  vlad app                              every method that needs no training
  vlad app runs/sdp_plus/RUN sdp        a trained run, and another method to compare
  vlad app sdp --model.backbone vlad-tiny --model.image_size 96 --class-name nut"""


def _parser() -> argparse.ArgumentParser:
    from vlad.cli.serve import add_detector_options

    parser = argparse.ArgumentParser(
        prog="vlad app",
        description=_TEXT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="vlad app [RUN_OR_METHOD …] [options]",
        allow_abbrev=False,
    )
    parser.add_argument("methods", metavar="RUN_OR_METHOD", nargs="*", help="what can be chosen; by default every "
                        "method that needs no training")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine)")
    parser.add_argument("--port", type=int, default=7860, help="port (default 7860; 0 for a free one)")
    add_detector_options(parser)
    return parser


def run(arguments: Sequence[str]) -> int:
    """Runs ``vlad app``; the arguments start with the verb."""
    from vlad.cli.calibrate import _settings
    from vlad.cli.serve import check_port, load_detector, needs_extra
    from vlad.loading import _run_of
    from vlad.registry import resolve

    rest, settings = _settings(list(arguments[1:]))
    options = _parser().parse_intermixed_args(rest)
    check_port(options.port)
    if settings["data"]:
        raise OptionError(f"--data.{next(iter(settings['data']))} is not an option of vlad app")
    for name in options.methods:  # a typo is told at once
        if _run_of(name) is None:
            resolve(name)
    needs_extra("app", "gradio", "fastapi", "uvicorn")
    from vlad.serve.server import bind

    bound = bind(options.host, options.port)
    try:
        return _open(options, lambda name: load_detector(name, options, settings["model"]), bound)
    finally:
        bound.close()


def _open(options: argparse.Namespace, load: Callable[[str], Detector], bound: socket.socket) -> int:
    import os
    import tempfile

    with importing():
        from vlad.cli.lightning import _quiet
    from vlad.app.bench import Bench, training_free
    from vlad.app.page import build
    from vlad.cli.serve import tell_reach, url_of
    from vlad.serve.server import serve

    if not os.environ.get("VLAD_DEBUG"):
        _quiet()
    methods = options.methods or training_free()
    if len(methods) == 1:  # what cannot be loaded is told here, and not in the page
        ready = load(methods[0])
        load = _once(ready, load)
    tell_reach(options.host)
    with tempfile.TemporaryDirectory(prefix="vlad-app-") as folder:
        app = build(Bench(load), methods, class_name=options.class_name or "", folder=folder)
        place = url_of(bound)
        # an open page keeps a connection for as long as it is open
        serve(
            app, bound, lambda: print(f"open {place} in the browser (Ctrl+C stops)", flush=True), _nothing, patience=1
        )
    print("stopped", flush=True)
    return 0


def _once(ready: Detector, load: Callable[[str], Detector]) -> Callable[[str], Detector]:
    """Returns a function that gives out what is loaded already, the first time."""
    waiting = [ready]
    return lambda name: waiting.pop() if waiting else load(name)


def _nothing() -> None:
    """Is called when the page stops; there is nothing to drain."""
