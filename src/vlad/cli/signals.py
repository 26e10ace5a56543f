"""SIGTERM, as schedulers and ``docker stop`` send it, and Ctrl+C end a command in order: at once, saved, in one line.

The first of them raises :class:`Terminated` or KeyboardInterrupt where the command is, or, while a training step
changes parameters (:func:`hold`), right after it. Others are ignored: what is being ended is not ended twice. What has
not ended half a minute later, such as a command that waits for another computer, is ended without more ado.

Of several processes the first decides: it passes the signal on, saves, and ends the others. They go on until then, so
that the first does not fail for want of them.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from vlad.signals import handling

__all__ = ["Terminated", "forward_to", "hold", "pending", "release", "terminable"]

_PATIENCE = 30.0  # seconds that an ending may take


class Terminated(BaseException):
    """SIGTERM has come."""


@dataclass
class _State:
    """What a process knows of the signals that it has got.

    Attributes:
        owner: The process that handles them; those forked from it, which read images, just end.
        held: Whether an ending has to wait.
        pending: The signal that waits; 0 for none.
        ending: Whether one was raised.
        forward: Process ids to pass signals on to.
    """

    owner: int = field(default_factory=os.getpid)
    held: bool = False
    pending: int = 0
    ending: bool = False
    forward: Callable[[], list[int]] = list


_state = _State()


def _handle(number: int, frame: Any) -> None:
    state = _state
    if os.getpid() != state.owner:
        os._exit(128 + number)
    if state.ending or state.pending:
        return
    for process in state.forward():
        with suppress(OSError):
            os.kill(process, signal.SIGTERM)
    follows = os.environ.get("LOCAL_RANK", "0") != "0"
    if state.held or follows:
        state.pending = number
    if follows:
        _give_up_later(number, state)
    elif not state.held:
        _end(number)


def _end(number: int) -> None:
    state = _state
    state.pending, state.ending = 0, True
    _give_up_later(number, state)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _give_up_later(number: int, state: _State) -> None:
    """Ends the process for certain; by a bare thread, since a handler may interrupt whatever starts one of Python's."""

    def wait() -> None:
        time.sleep(_PATIENCE)
        if _state is state:  # the command has not ended yet
            os._exit(128 + number)

    _thread.start_new_thread(wait, ())


@contextmanager
def terminable() -> Iterator[None]:
    """Handles SIGTERM and SIGINT as this module says, unless they are ignored from outside, as by ``nohup``."""
    global _state
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state = _State()
    with handling(_handle):
        try:
            yield
        finally:
            _state = _State()


def forward_to(processes: Callable[[], list[int]]) -> None:
    """Passes signals on to the processes whose ids a function gives."""
    _state.forward = processes


def hold() -> None:
    """Lets an ending wait until :func:`release`."""
    _state.held = True


def release() -> None:
    """Ends where a signal has come meanwhile."""
    _state.held = False
    if _state.pending and os.environ.get("LOCAL_RANK", "0") == "0":
        _end(_state.pending)


def pending() -> int:
    """Returns the signal that this process has got and not raised; 0 for none."""
    return _state.pending
