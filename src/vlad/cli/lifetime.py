"""A command's own process: start and exit without work that pays off only in longer processes.

While torch and its dependencies are imported, Python's garbage collector repeatedly scans all objects and finds almost
nothing, since modules stay alive. At exit, Python frees the objects of five thousand modules one by one, although the
system reclaims their memory at once. Together this took a third of the CPU time of a short command.
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
    """State of the process.

    Attributes:
        owner: The process that began; processes forked from it exit normally. 0 before, and if Python must exit
            normally.
        young: Whether torch is still to be imported.
        status: The exit status, once the command is done.
    """

    owner: int = 0
    young: bool = False
    status: int | None = None


_life = _Life()


def begin() -> None:
    """Prepares start and exit of a process that runs only the command.

    Python exits normally if others registered exit handlers before, as coverage does, and with ``VLAD_DEBUG``.
    """
    _life.young = gc.isenabled()
    if not atexit._ncallbacks() and not os.environ.get("VLAD_DEBUG"):
        _life.owner = os.getpid()
    atexit.register(_leave)  # the first to ask is the last to be called


@contextmanager
def importing() -> Iterator[None]:
    """Pauses the garbage collector while torch is imported, and excludes the objects present by then.

    Does nothing once torch is imported, or in a process that did not begin.
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
    """Sets the exit status of the finished command; its threads and exit handlers still complete."""
    _life.status = status


def _flush_files() -> None:
    """Flushes files that were not closed, as Python does at exit."""
    for found in gc.get_objects():
        if issubclass(type(found), io.TextIOWrapper | io.BufferedWriter | io.BufferedRandom):
            with suppress(OSError, ValueError):  # closed, or nowhere to write to
                found.flush()


def _leave() -> None:
    """Exits the process; objects are not freed one by one if the command is done and no other exit handler waits."""
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
