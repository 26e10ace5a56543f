"""Batches of one size each, for images that keep their aspect ratio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

__all__ = ["SizeBatches"]


class SizeBatches(Sampler[list[int]]):
    """Batches of images of one size: consecutive ones in order, or drawn among all of a size.

    Examples:
        >>> list(SizeBatches([(2, 3), (2, 3), (3, 2), (2, 3)], 2))
        [[0, 1], [2], [3]]
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], batch_size: int, *, shuffle: bool = False) -> None:
        """Takes each image's size and how many images a batch has at most."""
        self.sizes, self.batch_size, self.shuffle = list(sizes), batch_size, shuffle
        self._batches = self._in_order(range(len(self.sizes)))

    def _in_order(self, order: Sequence[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        for number in order:
            last = batches[-1] if batches else None
            if last and len(last) < self.batch_size and self.sizes[last[0]] == self.sizes[number]:
                last.append(number)
            else:
                batches.append([number])
        return batches

    def _shuffled(self) -> list[list[int]]:
        by_size: dict[tuple[int, int], list[int]] = {}
        for number in torch.randperm(len(self.sizes)).tolist():
            by_size.setdefault(self.sizes[number], []).append(number)
        batches = [batch for numbers in by_size.values() for batch in self._in_order(numbers)]
        return [batches[number] for number in torch.randperm(len(batches)).tolist()]

    def __iter__(self) -> Iterator[list[int]]:
        yield from self._shuffled() if self.shuffle else self._batches

    def __len__(self) -> int:
        return len(self._shuffled()) if self.shuffle else len(self._batches)
