"""Random numbers that are the same on every device: drawn on the CPU, then moved."""

from __future__ import annotations

import torch
from torch import Tensor

from vlad.seeds import mix

__all__ = ["Random"]


class Random:
    """A seeded source of random tensors.

    Examples:
        >>> a, b = Random(0, 7), Random(0, 7)
        >>> torch.equal(a.uniform(-1, 1, 3), b.uniform(-1, 1, 3))
        True
    """

    def __init__(self, *seed: int, device: torch.device | str = "cpu") -> None:
        """Seeds the source.

        Args:
            *seed: Whole numbers of at least 0, such as a run's seed, the process's rank and the step.
            device: Where the tensors go.
        """
        self.device = torch.device(device)
        self._generator = torch.Generator().manual_seed(mix(*seed))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draws float32 numbers in [low, high)."""
        return (low + (high - low) * torch.rand(shape, generator=self._generator)).to(self.device)

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        """Draws int64 numbers from low to high, both included."""
        return torch.randint(low, high + 1, shape, generator=self._generator).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Draws float32 numbers of mean 0 and deviation 1."""
        return torch.randn(shape, generator=self._generator).to(self.device)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """Draws truth values that are True with a probability."""
        return self.uniform(0, 1, *shape) < probability

    def subsets(self, count: int, of: int, chosen: int) -> Tensor:
        """Draws ``count`` subsets of ``chosen`` out of ``of`` things (count, of), bool."""
        order = torch.rand(count, of, generator=self._generator).argsort(1)
        return (order < chosen).to(self.device)
