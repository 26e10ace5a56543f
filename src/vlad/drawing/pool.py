"""Threads that draw while a run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any

__all__ = ["Pool", "usable_cpus"]


def usable_cpus() -> int:
    """Returns how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


class Pool:
    """A pool of threads with a bounded queue: who adds work waits once too much of it is waiting.

    Resizing and writing PNG leave Python's lock, so that threads are enough.

    Examples:
        >>> done = []
        >>> pool = Pool(2)
        >>> pool.add(done.append, 1)
        >>> pool.close()
        >>> done
        [1]
    """

    def __init__(self, threads: int, *, waiting: int = 8) -> None:
        """Starts no thread yet.

        Args:
            threads: Threads, at most.
            waiting: Pieces of work per thread that may be begun or waiting.
        """
        self._executor = ThreadPoolExecutor(max(1, threads), thread_name_prefix="vlad-draw")
        self._room = BoundedSemaphore(max(1, threads) * waiting)
        self._problem: BaseException | None = None

    def add(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Has a piece of work done soon.

        Raises:
            Exception: An earlier piece failed with it.
        """
        self._raise()
        self._room.acquire()
        self._executor.submit(work, *arguments).add_done_callback(self._done)

    def _done(self, future: Future[Any]) -> None:
        self._room.release()
        if not future.cancelled() and future.exception() is not None:
            self._problem = self._problem or future.exception()

    def _raise(self) -> None:
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def close(self) -> None:
        """Waits until all is done.

        Raises:
            Exception: A piece failed with it.
        """
        self._executor.shutdown(wait=True)
        self._raise()

    def abandon(self) -> None:
        """Leaves undone what is not begun."""
        self._executor.shutdown(wait=True, cancel_futures=True)
