"""Progress of a run: images done, images per second, remaining time."""

from __future__ import annotations

import sys
import time
from typing import TextIO

__all__ = ["Meter", "format_seconds"]


def format_seconds(seconds: float) -> str:
    """Formats a duration.

    Examples:
        >>> format_seconds(75), format_seconds(3700)
        ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Meter:
    """Prints progress on the error stream: one changing line on a terminal, otherwise a line at intervals.

    Examples:
        >>> meter = Meter(3, "scoring", enabled=False)
        >>> meter.advance(2)
        >>> meter.done
        2
    """

    def __init__(
        self,
        total: int,
        what: str,
        *,
        share: int = 1,
        enabled: bool = True,
        every: float = 30.0,
        stream: TextIO | None = None,
    ) -> None:
        """Starts the clock.

        Args:
            total: Total number of images.
            what: Name of the task, such as ``scoring``.
            share: Number of processes with equal work; the count of one is multiplied by it.
            enabled: Whether to print anything.
            every: Seconds between two lines if the stream is not a terminal.
            stream: Output stream; the error stream by default.
        """
        self.total, self.what, self.share, self.enabled = total, what, share, enabled
        self.stream = stream or sys.stderr
        self.every = 0.2 if self._terminal() else every
        self.done = 0
        self.start = self._told = time.monotonic()
        self._width = 0

    def _terminal(self) -> bool:
        return hasattr(self.stream, "isatty") and self.stream.isatty()

    def advance(self, count: int) -> None:
        """Counts finished images, and prints a line when due."""
        self.done += count
        now = time.monotonic()
        if self.enabled and now - self._told >= self.every:
            self._told = now
            self._tell(now)

    def _tell(self, now: float) -> None:
        done = min(self.done * self.share, self.total)
        rate = done / max(now - self.start, 1e-9)
        left = f", {format_seconds((self.total - done) / rate)} left" if rate and done < self.total else ""
        text = f"{self.what} {done} of {self.total} images, {rate:.3g} images/s{left}"
        if self._terminal():
            self.stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def finish(self) -> None:
        """Clears the line of a terminal."""
        if self.enabled and self._terminal() and self._width:
            self.stream.write("\r" + " " * self._width + "\r")
            self.stream.flush()
