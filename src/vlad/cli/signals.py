"""SIGTERM, as schedulers and ``docker stop`` send it, ends a command as Ctrl+C does: at once, in order, in one line."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

__all__ = ["Terminated", "graceful", "terminable"]


class Terminated(BaseException):
    """SIGTERM has come."""


def _stop(number: int, frame: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is being ended is not ended twice
    raise Terminated


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    """Handles SIGTERM otherwise for a while; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def terminable() -> Iterator[None]:
    """Raises :class:`Terminated` where SIGTERM comes."""
    with _handled(_stop):
        yield


@contextmanager
def graceful(wanted: bool) -> Iterator[None]:
    """Leaves SIGTERM to Lightning, which ends the batch in flight first: training keeps what it has learned."""
    if not wanted:
        yield
        return
    with _handled(signal.SIG_DFL):
        yield
