"""The ``vlad`` command: a table of verbs. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import os
import sys
from importlib import import_module

__all__ = ["main"]

# verb -> what it does, and where: module:function, called with the arguments after the verb
VERBS = {
    "fit": ("train a method on auxiliary data", "vlad.cli.lightning:run"),
    "validate": ("evaluate on the validation data", "vlad.cli.lightning:run"),
    "test": ("evaluate on test data: table, scores, heat maps", "vlad.cli.lightning:run"),
    "predict": ("score your own images: CSV and heat maps", "vlad.cli.lightning:run"),
    "methods": ("list the installed methods", "vlad.cli.listing:methods"),
    "export-weights": ("write what a run has trained as safetensors", "vlad.cli.listing:export"),
    "data": ("list, get, check and index data sets", "vlad.cli.data:run"),
    "datasets": ("list the data sets of the catalogue", "vlad.cli.listing:datasets"),
}

USAGE = """usage: vlad VERB [options]      (vlad VERB --help says more)

{verbs}

examples:
  vlad predict photos/ --model sdp                       score a folder of images, no training, no labels
  vlad test --model sdp --data.root data --data.test mvtec_ad
  vlad fit --config experiments/clip_ad/sdp_plus.yaml

--version prints the version; VLAD_DEBUG=1 shows tracebacks."""


def _usage() -> str:
    return USAGE.format(verbs="\n".join(f"  {verb:<14} {text}" for verb, (text, _) in VERBS.items()))


def _short(error: BaseException) -> str:
    """Returns an error's own sentence, without the traceback that a data-loading worker wraps around it."""
    text = str(error)
    return text.rsplit(f"{type(error).__name__}: ", 1)[-1].strip() if "Original Traceback" in text else text


def main(args: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        args: Arguments after ``vlad``; those of the process by default.

    Returns:
        Exit status: 0, 1 for what the user gave, 2 for a wrong command line.
    """
    from vlad.errors import OptionError, VladError, nearest

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
    module, function = VERBS[verb][1].split(":")
    try:
        return getattr(import_module(module), function)([verb, *rest]) or 0
    except VladError as error:
        if os.environ.get("VLAD_DEBUG"):
            raise
        print(f"vlad {verb}: {_short(error)}", file=sys.stderr)
        return 2 if isinstance(error, OptionError) else 1
    except BrokenPipeError:  # the reader of our output, head or less, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"vlad {verb}: stopped", file=sys.stderr)
        return 130


def command() -> None:
    """Entry point of the console script: runs the command and exits with its status."""
    sys.exit(main())
