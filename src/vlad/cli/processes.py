"""Several processes that fail as one: all end within seconds, and the last line is the cause.

The first process starts the others with the same command. One that fails leaves its cause in a file that the first
one reads; what the others then raise, since one of them is gone, is no cause and is not told.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import subprocess_script

from vlad.cli.messages import one_line
from vlad.cli.signals import forward_to, pending
from vlad.errors import OptionError, VladError

__all__ = ["failing_together", "leave_processes", "watch_others"]

_FILE = "VLAD_FAILURE"  # environment variable with the name of the file
_GONE = "the main process has exited"
_GRACE = 3.0  # seconds in which a failing process tells its cause
_OTHERS = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe|[Ss]ocket|TCPStore|recvValue")

_processes: list[subprocess.Popen[bytes]] = []
_parent = os.getppid()


def _first() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def watch_others(trainer: Trainer, verb: str) -> None:
    """Prepares a trainer's processes: whom signals go to, who notices that one has failed, and where it is told.

    Args:
        trainer: The trainer, before it runs.
        verb: What the command is, for the last line.
    """
    if trainer.world_size == 1:
        return
    if not _first():
        threading.Thread(target=_watch_first, args=(verb,), daemon=True).start()
        return
    _processes.clear()
    handle, name = tempfile.mkstemp(prefix="vlad-")
    os.close(handle)
    os.environ[_FILE] = name
    forward_to(lambda: [one.pid for one in _processes if one.poll() is None])

    def observe(processes: Sequence[subprocess.Popen[bytes]]) -> None:
        _processes.extend(processes)
        threading.Thread(target=_watch, args=(verb,), daemon=True).start()

    # Lightning's own looks every 5 s and ends without a word.
    subprocess_script._launch_process_observer = observe  # type: ignore[assignment]


def _watch(verb: str) -> None:
    """Ends the first process soon after another has failed, wherever it waits for that one."""
    while all(one.poll() in {None, 0} for one in _processes):
        if not _processes or all(one.poll() == 0 for one in _processes):
            return
        time.sleep(0.2)
    time.sleep(_GRACE + 1)  # in which the first process usually fails by itself, in order
    if not _processes or pending():
        return
    cause = _cause_elsewhere()
    _end_others()
    print(f"vlad {verb}: {cause}", file=sys.stderr, flush=True)
    os._exit(1)


def _watch_first(verb: str) -> None:
    """Ends a process whose first one is gone, wherever it waits for that one."""
    while os.getppid() == _parent:
        time.sleep(0.5)
    print(f"vlad {verb}: {_GONE}", file=sys.stderr, flush=True)
    os._exit(1)


@contextmanager
def failing_together(verb: str) -> Iterator[None]:
    """Ends all processes where one has failed or was stopped; the first one tells the cause.

    Args:
        verb: What the command is, for the line.
    """
    try:
        yield
    except Exception as error:
        if not _processes and _first():
            raise
        _fail(verb, error)
    except BaseException:
        _end_others()
        raise


def _fail(verb: str, error: Exception) -> NoReturn:
    """Tells why one of several processes has failed, and ends it at once: others may never answer it."""
    told = _cause_elsewhere() if isinstance(error, RuntimeError) and _OTHERS.search(str(error)) else ""
    cause = told or (one_line(error) if isinstance(error, VladError) else f"{type(error).__name__}: {one_line(error)}")
    if not told and (not isinstance(error, VladError) or os.environ.get("VLAD_DEBUG")):
        traceback.print_exc()
    if _first():
        _end_others()
    if not _report_to_first(cause):
        print(f"vlad {verb}: {cause}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(2 if isinstance(error, OptionError) else 1)


def _report_to_first(cause: str) -> bool:
    """Leaves a cause for the first process to tell; returns whether there is one that will."""
    name = os.environ.get(_FILE)
    if _first() or not name or os.getppid() != _parent:
        return False
    with suppress(OSError):
        if not Path(name).stat().st_size:
            Path(name).write_text(f"{cause} (process {os.environ['LOCAL_RANK']})", encoding="utf-8")
        return True
    return False


def _cause_elsewhere() -> str:
    """Returns why another process has failed; "" where none has.

    A process beside the first does not return where the first one will tell.
    """
    if not _first():
        time.sleep(1)  # in which the first one, if it has failed, is gone, or ends this one
        if os.getppid() == _parent:
            os._exit(128 + pending() if pending() else 1)
        return _GONE
    end = time.monotonic() + _GRACE
    failed: dict[int, int] = {}
    while time.monotonic() < end:
        if told := _told():
            return told
        failed = {rank: status for rank, one in enumerate(_processes, start=1) if (status := one.poll())}
        for rank, status in failed.items():
            if status < 0:
                return f"process {rank} was ended by {signal.Signals(-status).name}"
        time.sleep(0.1)
    return next((f"process {rank} has ended with status {status}" for rank, status in failed.items()), "")


def _told() -> str:
    with suppress(OSError, KeyError):
        return Path(os.environ[_FILE]).read_text(encoding="utf-8")
    return ""


def _end_others() -> None:
    """Ends the processes that this one has started, and forgets them."""
    for one in _processes:
        if one.poll() is None:
            one.send_signal(signal.SIGSTOP)  # or it, or those that read its images, say that the others are gone
            for process in _below(one.pid):
                with suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            one.kill()
            one.wait()
    _processes.clear()
    with suppress(OSError, KeyError):
        Path(os.environ.pop(_FILE)).unlink()


def _below(process: int) -> list[int]:
    """Returns the processes that a process has started, such as those that read its images; on Linux alone."""
    found: list[int] = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if file.read_text(errors="replace").rpartition(")")[2].split()[1] == str(process):
                found.append(int(file.parent.name))
    return found


def leave_processes() -> None:
    """Ends the talk between processes before Python does; Lightning does so for NCCL alone.

    A thread of Gloo's may otherwise free a tensor while the interpreter shuts down, which aborts a process whose work
    is done (one run in thirty).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # a trainer's cycles hold the group
        torch.distributed.destroy_process_group()
    for one in _processes:
        with suppress(subprocess.TimeoutExpired):
            one.wait(_GRACE)
    _end_others()
