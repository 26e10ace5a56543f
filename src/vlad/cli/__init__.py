"""The ``vlad`` command: a table of verbs. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

__all__ = ["main"]

# verb -> what it does, and where: module:function, called with the arguments after the verb
VERBS = {
    "fit": ("train a method on auxiliary data", "vlad.cli.lightning:run"),
    "validate": ("evaluate on the validation data", "vlad.cli.lightning:run"),
    "test": ("evaluate on test data: table, scores, heat maps", "vlad.cli.lightning:run"),
    "predict": ("score your own images: CSV and heat maps", "vlad.cli.lightning:run"),
    "calibrate": ("calibrate a threshold on normal images: decision.json", "vlad.cli.calibrate:run"),
    "serve": ("run an HTTP service; can also watch a folder", "vlad.cli.serve:run"),
    "app": ("open the browser app: drop images, see maps and decisions", "vlad.cli.app:run"),
    "export": ("write a method as a file for ONNX Runtime, OpenVINO or torch", "vlad.cli.export:run"),
    "methods": ("list the installed methods", "vlad.cli.listing:methods"),
    "new-method": ("create a plug-in package for your own method", "vlad.cli.new_method:run"),
    "export-weights": ("export the trained weights of a run as safetensors", "vlad.cli.listing:export"),
    "weights": ("download published weights into a folder, for machines without a network", "vlad.cli.weights:run"),
    "benchmark": ("methods x data sets x shots x seeds: one table", "vlad.cli.benchmark:run"),
    "reproduce": ("run a paper's own table", "vlad.cli.benchmark:reproduce"),
    "compare": ("compare two test runs, with intervals", "vlad.cli.compare:run"),
    "results": ("published numbers, with their sources", "vlad.cli.results:run"),
    "data": ("list, get, check and index data sets", "vlad.cli.data:run"),
    "datasets": ("list the data sets of the catalogue", "vlad.cli.listing:datasets"),
}

_RUNS = {"fit", "validate", "test", "predict"}  # verbs of Lightning's command line
_LOADING = {*_RUNS, "calibrate", "serve", "app", "export", "benchmark", "reproduce"}  # verbs that load encoders

# what the machine, and not vlad, is at fault for
_MENDABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ENFILE, errno.ENOENT, errno.EEXIST, errno.ELOOP, errno.ESTALE),
}

USAGE = """usage: vlad VERB [options]      (see vlad VERB --help)

{verbs}

examples:
  vlad predict photos/                                             # score images: no training, no labels
  vlad test --model sdp --data.root data --data.test mvtec_ad      # measure on a data set
  vlad fit --model sdp_plus --data.root data --data.train mvtec_ad # train

--version prints the version; VLAD_DEBUG=1 shows tracebacks."""


def _usage() -> str:
    return USAGE.format(verbs="\n".join(f"  {verb:<14} {text}" for verb, (text, _) in VERBS.items()))


def _escape_what_cannot_be_written() -> None:
    """Makes letters that the terminal's or the pipe's encoding lacks escapes, and no error after the work is done."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a stream of a test's may have none
        if reconfigure is not None and getattr(stream, "errors", "") in {"strict", "surrogateescape"}:
            reconfigure(errors="backslashreplace")


def _help(verb: str, arguments: list[str]) -> list[str] | None:
    """Prints the short help of a verb, or returns the arguments that make the verb print all of its own."""
    if "--help-all" in arguments:
        return [*(argument for argument in arguments if argument != "--help-all"), "--help"]
    if verb in _RUNS and {"-h", "--help"} & set(arguments):
        from vlad.cli.help import verb_help

        print(verb_help(verb))
        return None
    return arguments


def main(args: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        args: Arguments after ``vlad``; those of the process by default.

    Returns:
        Exit status: 0 all is well; 1 nothing usable, or wrong data; 2 a wrong command line; 3 finished, with error
        rows; 4 with ``--fail-on-anomaly``, an image is anomalous; 130 stopped by Ctrl+C, 143 by SIGTERM.
    """
    from vlad.errors import nearest

    _escape_what_cannot_be_written()
    arguments = sys.argv[1:] if args is None else args
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(_usage())
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb == "--version":
        from vlad import __version__

        print(f"vlad {__version__}")
        return 0
    if verb not in VERBS:
        print(f"vlad: no verb '{verb}'; {nearest(verb, VERBS)} (vlad --help)", file=sys.stderr)
        return 2
    asked = _help(verb, rest)
    return 0 if asked is None else _run(verb, asked)


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Writes a warning as one line, without the place in the code that it comes from."""
    before = warnings.formatwarning
    if not os.environ.get("VLAD_DEBUG"):
        warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _stopped(line: str) -> None:
    """Says that the command was stopped; one of several processes speaks for all."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(line, file=sys.stderr)


@contextmanager
def _weights_folder(verb: str, arguments: list[str]) -> Iterator[list[str]]:
    """Takes ``--weights-dir DIR`` off a command line; meanwhile, weights come from there, in all processes."""
    words = [word for argument in arguments for word in _pair(argument)]
    if "--weights-dir" not in words:
        yield arguments
        return
    from vlad.errors import OptionError
    from vlad.offline import VARIABLE, read_manifest

    place = words.index("--weights-dir")
    if verb not in _LOADING or place + 1 == len(words):
        fix = "give a folder of vlad weights get" if verb in _LOADING else "leave it out"
        raise OptionError(f"--weights-dir has no effect here; {fix}")
    folder, before = os.path.abspath(words[place + 1]), os.environ.get(VARIABLE)
    read_manifest(Path(folder))
    os.environ[VARIABLE] = folder
    try:
        yield words[:place] + words[place + 2 :]
    finally:
        os.environ.pop(VARIABLE)
        os.environ.update({VARIABLE: before} if before is not None else {})


def _pair(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--weights-dir=") else [argument]


def _run(verb: str, arguments: list[str]) -> int:
    """Runs a verb; every error that the user can fix becomes one line."""
    from vlad.cli.lifetime import importing
    from vlad.cli.signals import Terminated, terminable
    from vlad.errors import OptionError, VladError

    module, function = VERBS[verb][1].split(":")
    try:
        with terminable(), _short_warnings(), _weights_folder(verb, arguments) as arguments:
            if verb in _RUNS:
                import_module("vlad.cli.early").refuse_missing(verb, arguments)
            with importing():
                verb_function = getattr(import_module(module), function)
            return verb_function([verb, *arguments]) or 0
    except VladError as error:
        if os.environ.get("VLAD_DEBUG"):
            raise
        from vlad.cli.messages import one_line

        print(f"vlad {verb}: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, OptionError) else 1
    except BrokenPipeError:  # the reader of our output, head or less, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _stopped(f"vlad {verb}: stopped")
        return 130
    except Terminated:
        _stopped(f"vlad {verb}: stopped by SIGTERM")
        return 143
    except OSError as error:
        if error.errno not in _MENDABLE or os.environ.get("VLAD_DEBUG"):
            raise
        print(f"vlad {verb}: {error.filename or os.getcwd()}: {error.strerror}", file=sys.stderr)
        return 1


def command() -> None:
    """Entry point of the console script: runs the command and exits with its status."""
    from vlad.cli.lifetime import begin, end

    begin()
    status = main()
    end(status)
    sys.exit(status)
