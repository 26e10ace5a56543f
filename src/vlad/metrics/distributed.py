"""What an evaluation needs to know of several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from vlad.types import Batch

__all__ = ["fill_empty_states", "gather_objects", "initialized", "own_samples", "sync_device"]


def initialized() -> bool:
    """Returns whether there is a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather_objects(local: Any) -> list[Any]:
    """Returns the object of every rank, in rank order; a list of one where there is one process."""
    if not initialized():
        return [local]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, local)
    return everyone


def own_samples(batch: Batch, rank: int, world_size: int) -> list[int]:
    """Returns the positions in a batch that are not the padding of a distributed sampler.

    Lightning's sampler hands rank r the rows r, r + W, r + 2W, … and pads the last round by starting over at
    row 0; such a repetition never lands on the rank that owns the row.
    """
    if world_size == 1 or "index" not in batch:
        return list(range(len(batch["path"])))
    return [i for i, row in enumerate(batch["index"].tolist()) if row % world_size == rank]


def sync_device() -> torch.device:
    """Returns the device that the process group can gather from."""
    if initialized() and torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def fill_empty_states(metric: Metric) -> None:
    """Gives a metric's empty list states an empty tensor of the type that other ranks have; a collective call.

    torchmetrics lets a rank that saw nothing take part with empty float32, which cannot be gathered with others' int64.
    """
    if not initialized():
        return
    lists = {name: value for name, value in metric.metric_state.items() if isinstance(value, list)}
    local = {name: (value[0].dtype, tuple(value[0].shape[1:])) for name, value in lists.items() if value}
    known: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for one in gather_objects(local):
        known |= one
    for name, value in lists.items():
        if not value and name in known:
            dtype, rest = known[name]
            empty: Tensor = torch.empty((0, *rest), dtype=dtype, device=metric.device)
            value.append(empty)
