"""``vlad serve``: a detector behind an address, and beside a folder that is watched."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vlad.cli.lifetime import importing
from vlad.errors import OptionError, VladError

if TYPE_CHECKING:
    import socket

    from vlad.detector import Detector

__all__ = ["add_detector_options", "load_detector", "needs_extra", "run"]

_TEXT = """Scores images that are sent by HTTP, in batches, and files that appear in a watched folder.

POST /predict gives score, decision and regions as JSON, POST /map the heat map as PNG; GET /health, /ready, /metrics.
SIGTERM or Ctrl+C: nothing new is taken, what was let in is answered, exit status 0."""

_EXAMPLES = """examples:
  vlad serve sdp --class-name "metal part"
  curl --data-binary @photos/0.png http://127.0.0.1:8400/predict
  curl -F image=@photos/0.png -F class_name=bottle http://127.0.0.1:8400/map --output map.png
  vlad serve runs/sdp_plus/RUN --decision decision.json --watch in/ --output out/"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlad serve",
        description=_TEXT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="vlad serve RUN_OR_METHOD [options]",
        allow_abbrev=False,
    )
    parser.add_argument("method", metavar="RUN_OR_METHOD", help="a method's name, a run folder, or a checkpoint")
    address = parser.add_argument_group("address")
    address.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine)")
    address.add_argument("--port", type=int, default=8400, help="port (default 8400; 0 for a free one)")
    folder = parser.add_argument_group("watched folder")
    folder.add_argument("--watch", metavar="DIR", help="score the image files that appear in this folder, too")
    folder.add_argument("-o", "--output", metavar="DIR", help="where their results go; given again, it goes on")
    add_detector_options(parser)
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-batch", type=int, default=8, metavar="N", help="images scored together (default 8)")
    limits.add_argument("--max-wait", type=float, default=5.0, metavar="MS",
                        help="milliseconds that an image waits for others (default 5)")  # fmt: skip
    limits.add_argument("--max-queue", type=int, default=64, metavar="N",
                        help="requests let in and not answered; more get status 429 (default 64)")  # fmt: skip
    limits.add_argument("--max-upload", type=float, default=32.0, metavar="MIB",
                        help="MiB of an image file; more get status 413 (default 32)")  # fmt: skip
    return parser


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that a detector is made by."""
    detector = parser.add_argument_group("detector")
    detector.add_argument("--class-name", metavar="TEXT", help="default class name")
    detector.add_argument("--references", metavar="IMAGES", help="normal images that the method compares with")
    detector.add_argument("--decision", metavar="FILE", help="a file of vlad calibrate, a number, or none")
    detector.add_argument("--device", default="cpu", help="where it is computed (default cpu)")
    detector.add_argument("--max-pixels", type=int, default=25_000_000, metavar="N",
                          help="images of more pixels are refused (default 25 million)")  # fmt: skip
    detector.add_argument("--tile", type=int, metavar="N", help="score by tiles of N pixels (docs/tiling.md)")
    detector.add_argument("--overlap", type=float, metavar="SHARE", help="share of a tile that its neighbours cover")
    detector.add_argument("--allow-untrained", action="store_true", help="score with an untrained method, to try "
                          "things")  # fmt: skip
    detector.add_argument("--model.NAME", dest="model_", metavar="VALUE", help="a setting of the method, such as "
                          "--model.image_size 240")  # fmt: skip


def needs_extra(extra: str, *modules: str) -> None:
    """Refuses where a package of an extra is missing.

    Args:
        extra: The extra of vlad that brings them.
        *modules: What is imported.

    Raises:
        OptionError: One is missing; the message tells the command that installs it.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise OptionError(f"vlad {extra} needs {', '.join(missing)}: pip install 'vlad[{extra}]'")


def load_detector(name: str, options: argparse.Namespace, settings: Mapping[str, str]) -> Detector:
    """Loads a detector by the options of :func:`add_detector_options`.

    Args:
        name: A method's name, a run folder, or a checkpoint.
        options: The options.
        settings: Settings of the method, as text.
    """
    from vlad.cli.calibrate import _typed
    from vlad.loading import _run_of, load, restore
    from vlad.registry import get_method

    typed: dict[str, Any] = {}
    if settings:
        run = _run_of(name)
        cls = get_method(name) if run is None else type(restore(run, allow_untrained=options.allow_untrained))
        typed = _typed(cls, "model", settings)
    return load(
        name,
        references=options.references,
        decision=options.decision,
        class_name=options.class_name,
        device=options.device,
        max_pixels=options.max_pixels,
        tile=options.tile,
        overlap=options.overlap,
        allow_untrained=options.allow_untrained,
        **typed,
    )


def check_port(port: int) -> None:
    """Refuses what is no port.

    Raises:
        OptionError: It is none.
    """
    if not 0 <= port <= 65535:
        raise OptionError(f"--port is a number from 0 to 65535, not {port}")


def url_of(bound: socket.socket) -> str:
    """Returns the URL of a socket that is bound."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def tell_reach(host: str) -> None:
    """Says where an address is reached from other machines."""
    from vlad.serve.server import is_loopback

    if not is_loopback(host):
        print(f"note: {host} is reachable from other machines without authentication", flush=True)


def _check(options: argparse.Namespace) -> None:
    for name, least in (("max_batch", 1), ("max_queue", 1), ("max_pixels", 1), ("max_wait", 0)):
        value = getattr(options, name)
        if not least <= value < float("inf"):
            raise OptionError(f"--{name.replace('_', '-')} is a number, at least {least}, not {value}")
    check_port(options.port)
    if not 0 < options.max_upload <= 1024:
        raise OptionError(f"--max-upload is a number of MiB, above 0 and at most 1024, not {options.max_upload:g}")
    if bool(options.watch) != bool(options.output):
        raise OptionError("--watch DIR and --output DIR belong together: the folder, and where its results go")


def run(arguments: Sequence[str]) -> int:
    """Runs ``vlad serve``; the arguments start with the verb."""
    from vlad.cli.calibrate import _settings

    rest, settings = _settings(arguments[1:])
    options = _parser().parse_args(rest)
    _check(options)
    if settings["data"]:
        raise OptionError(f"--data.{next(iter(settings['data']))} is not an option of vlad serve")
    needs_extra("serve", "fastapi", "uvicorn", "multipart", "prometheus_client")
    from vlad.serve.server import bind

    bound = bind(options.host, options.port)  # ahead of what takes seconds; it listens when the detector is there
    try:
        return _serve(options, settings["model"], bound)
    finally:
        bound.close()


def _serve(options: argparse.Namespace, settings: Mapping[str, str], bound: socket.socket) -> int:
    import os
    from contextlib import suppress

    from PIL import Image

    with importing():
        from vlad.cli.lightning import _quiet
    from vlad.serve.counters import Counters
    from vlad.serve.http import Limits, build
    from vlad.serve.server import serve
    from vlad.serve.watch import Watch
    from vlad.serve.worker import Worker, refuse_unservable

    if not os.environ.get("VLAD_DEBUG"):
        _quiet()
    detector = load_detector(options.method, options, settings)
    refuse_unservable(detector)
    with suppress(VladError):  # the first request does not wait for what is made once; of several classes none is known
        detector.predict(Image.new("RGB", (64, 64)))
    counters = Counters()
    watch = Watch(options.watch, options.output, detector, told=counters.file) if options.watch else None
    worker = Worker(
        detector,
        max_batch=options.max_batch,
        max_wait=options.max_wait / 1000,
        max_queue=options.max_queue,
        on_batch=counters.batch,
    )
    counters.watch_pending(lambda: worker.pending)
    app = build(worker, Limits(upload=int(options.max_upload * (1 << 20))), counters)
    tell_reach(options.host)
    print(f"serving {detector}", flush=True)
    if watch is not None:
        watch.start(worker)
        print(f"watching {options.watch}: results go to {options.output}", flush=True)
    place = url_of(bound)
    whole = serve(app, bound, lambda: print(f"at {place} (Ctrl+C stops)", flush=True), worker.stop_taking)
    if not whole:  # what is scored now nobody gets; to leave in order would wait for it, or crash in its thread
        print("stopped: some requests were not answered in time", flush=True)
        os._exit(1)
    if watch is not None:
        watch.close()
    worker.close()
    if watch is not None and watch.failure is not None:
        raise watch.failure
    print("stopped: all requests were answered", flush=True)
    return 0
