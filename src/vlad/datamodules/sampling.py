"""From a dataset to batches; of one size each, where images keep their aspect ratio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler, SequentialSampler

from vlad.datamodules.dataset import AnomalyDataset, collate

__all__ = ["SizeBatches", "build_loader"]


def build_loader(dataset: AnomalyDataset, *, batch_size: int, shuffle: bool, num_workers: int) -> DataLoader:
    """Returns a loader of a dataset's batches.

    Args:
        dataset: The dataset.
        batch_size: Images of a batch, at most.
        shuffle: Whether images come in any order.
        num_workers: Processes that read images, at most: no more than there are batches.
    """
    batches: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle}
    if dataset.preprocess.aspect == "keep":
        rows = SequentialSampler(dataset)
        batches = {"batch_sampler": SizeBatches(rows, batch_size, sizes=dataset.sizes(), shuffle=shuffle)}
    workers = min(num_workers, max(1, len(dataset) // batch_size)) if num_workers else 0
    return DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=shuffle and workers > 0,
        pin_memory=torch.cuda.is_available(),
        **batches,
    )


class SizeBatches(BatchSampler):
    """Batches of images of one size: consecutive ones in order, or drawn among all of a size.

    A batch sampler as PyTorch's, so that Lightning can share the images among processes and count them in prediction.

    Examples:
        >>> list(SizeBatches(range(4), 2, sizes=[(2, 3), (2, 3), (3, 2), (2, 3)]))
        [[0, 1], [2], [3]]
    """

    def __init__(
        self,
        sampler: Sampler[int] | Iterable[int],
        batch_size: int,
        drop_last: bool = False,
        *,
        sizes: Sequence[tuple[int, int]],
        shuffle: bool = False,
    ) -> None:
        """Keeps what is drawn from.

        Args:
            sampler: Which images, by number; all of them, or the part of a process.
            batch_size: Images of a batch, at most.
            drop_last: Has no effect: every image is in a batch.
            sizes: Height and width of every image.
            shuffle: Whether batches are drawn among all images of a size, and come in any order.
        """
        super().__init__(sampler, batch_size, drop_last)
        self.sizes, self.shuffle = list(sizes), shuffle

    def _in_order(self, numbers: Iterable[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        for number in numbers:
            last = batches[-1] if batches else None
            if last and len(last) < self.batch_size and self.sizes[last[0]] == self.sizes[number]:
                last.append(number)
            else:
                batches.append([number])
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        if not self.shuffle:
            yield from self._in_order(self.sampler)
            return
        numbers = list(self.sampler)
        by_size: dict[tuple[int, int], list[int]] = {}
        for place in torch.randperm(len(numbers)).tolist():
            by_size.setdefault(self.sizes[numbers[place]], []).append(numbers[place])
        batches = [batch for alike in by_size.values() for batch in self._in_order(alike)]
        yield from (batches[place] for place in torch.randperm(len(batches)).tolist())

    def __len__(self) -> int:
        if not self.shuffle:
            return len(self._in_order(self.sampler))
        counts = Counter(self.sizes[number] for number in self.sampler)
        return sum(-(-count // self.batch_size) for count in counts.values())
