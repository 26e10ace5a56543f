"""How many threads the metrics work with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Lets PyTorch work with one intra-op thread meanwhile, where the work is on the CPU.

    The steps of a metric are short and bound by memory: a second thread gains little and, waiting between two steps,
    spins (measured in ``benchmarks/metrics.md``). Results are the same: what is added across threads are integers.

    Args:
        device: Where the scores are; other devices than the CPU are left alone.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
