"""Random numbers that are a function of the run's seed and of a place in the training, and of nothing else.

A training that is continued then goes on as if it had not been interrupted, whatever was drawn meanwhile.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["mix", "run_seed", "seed_step", "steps_done"]


def run_seed() -> int:
    """Returns the seed that ``seed_everything`` has set for the whole run, or 0 where it was not called."""
    try:
        return int(os.environ["PL_GLOBAL_SEED"])  # where Lightning keeps it, for all processes
    except (KeyError, ValueError):
        return 0


def mix(*numbers: int) -> int:
    """Returns a seed of 64 bits that depends on each of some whole numbers of at least 0 and on their order.

    Examples:
        >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def seed_step(*numbers: int) -> None:
    """Seeds PyTorch, NumPy and Python for one step of training.

    Args:
        *numbers: What the step is: the run's seed, the process, the number of the step.
    """
    seed = mix(*numbers)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what a method draws from is its own affair
    random.seed(seed)


def steps_done(trainer: Trainer) -> int:
    """Returns the number of training batches that are done, of all epochs."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
