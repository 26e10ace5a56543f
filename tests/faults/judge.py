"""What became of a case: the right result, a short error that names the file, or a fault."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vlad.errors import VladError

__all__ = ["FAULTS", "Outcome", "WrongError", "judge", "peak_memory", "time_limit"]

FAULTS = ("traceback", "hang", "silent wrong")
_LIMIT = 20.0  # seconds; the machine may be busy


class WrongError(AssertionError):
    """A reader was content with a damaged file and returned something wrong."""


class HangError(BaseException):
    """A case takes too long."""


class Outcome(NamedTuple):
    """``right``, ``told``, or one of :data:`FAULTS`; and what is known of it."""

    kind: str
    detail: str = ""


@contextmanager
def time_limit(seconds: float = _LIMIT) -> Iterator[None]:
    """Interrupts what takes longer; pytest's own alarm is put back."""

    def stop(number: int, frame: Any) -> None:
        raise HangError

    handler, (left, interval) = signal.signal(signal.SIGALRM, stop), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, handler)


def judge(case: Callable[[], Any], *names: str | Path, seconds: float = _LIMIT) -> Outcome:
    """Runs a case: a function that reads a damaged file and raises :class:`WrongError` where it sees a wrong result.

    Args:
        case: The case.
        names: One of these is named by an error; none where that does not matter.
        seconds: What takes longer hangs.
    """
    quiet = io.StringIO()
    try:
        with time_limit(seconds), warnings.catch_warnings(), contextlib.redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            case()
    except WrongError as error:
        return Outcome("silent wrong", str(error))
    except HangError:
        return Outcome("hang", f"more than {seconds} s")
    except VladError as error:
        text = str(error)
        if "\n" in text.replace("\n  ", " ") or "\x1b" in text or "\r" in text:
            return Outcome("traceback", f"no plain line: {text!r}")
        if len(text) > 2000:
            return Outcome("traceback", f"no short line: {len(text)} characters")
        if names and not any(os.fspath(name) in text for name in names):
            return Outcome("traceback", f"does not name {names[0]}: {text}")
        return Outcome("told", text)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = next(
            (one for one in reversed(traceback.extract_tb(error.__traceback__)) if "vlad" in one.filename), place
        )
        return Outcome("traceback", f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
    return Outcome("right")


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yields a function that tells by how many MiB the process was larger than at the start, at most."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status("VmRSS")
    yield lambda: max(0, status("VmHWM") - before)
