"""How many threads the metrics work with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Lets PyTorch work with one intra-op thread meanwhile, where the work is on the CPU.

    The steps of a metric are short and bound by memory: a second thread gains little and costs time to start and to
    wait for. Results are the same. Threads of earlier work that spin while they have none are not stopped by this; the
    environment variable ``OMP_WAIT_POLICY=PASSIVE`` does that.

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
