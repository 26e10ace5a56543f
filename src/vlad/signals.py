"""Handlers of SIGTERM and SIGINT for as long as something lasts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["handling"]

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handles SIGTERM and SIGINT, unless they are ignored from outside, as by ``nohup``.

    In another thread than the main one, where Python allows no handlers, it does nothing.

    Args:
        handler: Is called with the signal's number and the frame that it interrupts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    for number, earlier in before.items():
        if earlier is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
