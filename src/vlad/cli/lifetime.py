"""A command's own process: it starts and ends without work that only a longer life would repay.

While torch and what comes with it are imported, Python's collector goes through all objects again and again, and finds
next to nothing, since modules stay. And at its end Python frees the objects of five thousand modules one by one, whose
memory the system takes back at once anyway. Together that was a third of the CPU time of a short command.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

__all__ = ["begin", "end", "importing"]


@dataclass
class _Life:
    """What is known of the process.

    Attributes:
        owner: The process that began; those forked from it end as they always do. 0 before, and where Python has to
            end in full.
        young: Whether torch is still to be imported.
        status: The status to end with, once the command is done.
    """

    owner: int = 0
    young: bool = False
    status: int | None = None


_life = _Life()


def begin() -> None:
    """Prepares start and end of a process that is the command's alone.

    Python ends in full where others have asked before to be called at its end, as coverage does, and with
    ``VLAD_DEBUG``.
    """
    _life.young = gc.isenabled()
    if not atexit._ncallbacks() and not os.environ.get("VLAD_DEBUG"):
        _life.owner = os.getpid()
    atexit.register(_leave)  # the first to ask is the last to be called


@contextmanager
def importing() -> Iterator[None]:
    """Lets the collector wait while torch is imported, and keeps it from what is there by then.

    Does nothing once torch is imported, nor in a process that did not begin.
    """
    if not _life.young:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if "torch" in sys.modules:
            _life.young = False
            gc.freeze()
        gc.enable()


def end(status: int) -> None:
    """Says with which status the command is done; its threads, and all that asked for it, still come to their end."""
    _life.status = status


def _flush_files() -> None:
    """Writes out what files hold that nobody has closed, as Python's own end does."""
    for found in gc.get_objects():
        if issubclass(type(found), io.TextIOWrapper | io.BufferedWriter | io.BufferedRandom):
            with suppress(OSError, ValueError):  # closed, or nowhere to write to
                found.flush()


def _leave() -> None:
    """Ends the process; nothing is freed one by one where the command is done and nobody else waits for the end."""
    if _life.status is not None and _life.owner == os.getpid():
        _flush_files()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):  # nobody reads any more: Python says so itself
            pass
        else:
            os._exit(_life.status)
    gc.unfreeze()  # some libraries in C++ take what Python does not free in a full end for a leak, and say so
