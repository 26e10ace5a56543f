"""Time and the kernel's peak of memory, for the scripts beside this one."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch


def status(key: str) -> float:
    """Returns a line of the kernel's account of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def forget_peak() -> float:
    """Gives freed memory back, forgets the peak so far, and returns what is in use in MB (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


class Cost(NamedTuple):
    """Median wall and CPU seconds of a call, and its peak of memory in MB over what was held before."""

    wall: float
    cpu: float
    memory: float


def cost(run: Callable[[], object], repeats: int, device: str = "cpu") -> Cost:
    """Measures a call after one that does not count."""
    run()
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        before = forget_peak()
    walls, cpus, memory = [], [], 0.0
    for number in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        if cuda:
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        if number == 0:
            memory = (torch.cuda.max_memory_allocated() / 2**20 if cuda else status("VmHWM")) - before
    return Cost(statistics.median(walls), statistics.median(cpus), memory)


def matmul_rate(device: str = "cpu", dtype: torch.dtype = torch.float32, size: int = 4096) -> float:
    """Returns the GFLOP/s of a large matrix product, the best of many: what the machine can do."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(cost(lambda: a @ a, 1, device).wall for _ in range(15)) / 1e9
