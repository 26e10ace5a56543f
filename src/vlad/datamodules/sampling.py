"""From a dataset to batches; of one size each, where images keep their aspect ratio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler, SequentialSampler

from vlad.datamodules.dataset import AnomalyDataset, collate

__all__ = ["PredictionBatches", "SizeBatches", "build_loader", "build_prediction_loader"]


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


def build_prediction_loader(
    dataset: AnomalyDataset,
    *,
    batch_size: int,
    num_workers: int,
    leave_out: Collection[int] = (),
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Returns a loader of what one process scores of a dataset: every image once, and none for padding.

    Args:
        dataset: The dataset, whole.
        batch_size: Images of a batch, at most.
        num_workers: Processes that read images, at most.
        leave_out: Rows that are scored already.
        rank: Number of the process.
        world_size: Number of processes; they share the batches.
    """
    own = _Own(dataset)
    sizes = dataset.sizes() if dataset.preprocess.aspect == "keep" else None
    batches = PredictionBatches(
        own, batch_size, total=len(dataset), leave_out=leave_out, rank=rank, world_size=world_size, sizes=sizes
    )
    loader = DataLoader(
        dataset,
        num_workers=min(num_workers, len(batches)),
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        batch_sampler=batches,
    )
    # Lightning takes a loader with a distributed sampler as shared already. Its own pads, or fails where there are
    # fewer images than processes.
    object.__setattr__(loader, "sampler", own)
    return loader


class _Own(DistributedSampler):
    """Marks a loader as shared among processes; :class:`PredictionBatches` does the sharing."""

    def __init__(self, dataset: AnomalyDataset) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)


class PredictionBatches(BatchSampler):
    """Batches of consecutive rows, every one the same whatever was scored before and whatever the number of processes.

    Batch number k belongs to process k modulo their number. So a run that is continued, and one of several processes,
    computes to the last bit what one run of one process does.

    Examples:
        >>> batches = PredictionBatches(range(7), 2, total=7, leave_out={0, 1, 4}, world_size=1)
        >>> list(batches)
        [[2, 3], [5], [6]]
    """

    def __init__(
        self,
        sampler: Sampler[int] | Iterable[int],
        batch_size: int,
        drop_last: bool = False,
        *,
        total: int,
        leave_out: Collection[int] = (),
        rank: int = 0,
        world_size: int = 1,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Cuts rows into batches.

        Args:
            sampler: Has no effect; Lightning hands one in.
            batch_size: Rows of a batch, at most.
            drop_last: Has no effect: every row is in a batch.
            total: Number of rows.
            leave_out: Rows that are scored already.
            rank: Number of the process.
            world_size: Number of processes.
            sizes: Height and width of every image where they differ: a batch holds images of one size.
        """
        super().__init__(sampler, batch_size, drop_last)
        self.total, self.leave_out, self.rank, self.world_size = total, leave_out, rank, world_size
        self.sizes = sizes

    def _blocks(self) -> Iterator[list[int]]:
        """Yields the batches of all processes, with rows that are left out."""
        if self.sizes is None:
            for start in range(0, self.total, self.batch_size):
                yield list(range(start, min(start + self.batch_size, self.total)))
            return
        yield from _alike(range(self.total), self.sizes, self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for number, block in enumerate(self._blocks()):
            if number % self.world_size == self.rank:
                rows = [row for row in block if row not in self.leave_out]
                if rows:
                    yield rows

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _alike(numbers: Iterable[int], sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Returns batches of consecutive images of one size."""
    batches: list[list[int]] = []
    for number in numbers:
        last = batches[-1] if batches else None
        if last and len(last) < batch_size and sizes[last[0]] == sizes[number]:
            last.append(number)
        else:
            batches.append([number])
    return batches


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
        return _alike(numbers, self.sizes, self.batch_size)

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
