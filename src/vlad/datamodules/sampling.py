"""From a dataset to batches; of one size each, where images keep their aspect ratio."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler, SequentialSampler

from vlad.datamodules.dataset import AnomalyDataset, collate
from vlad.datamodules.order import TrainingBatches, of_one_size, place_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["PredictionBatches", "SizeBatches", "build_loader", "build_prediction_loader", "build_training_loader"]


def build_loader(dataset: AnomalyDataset, *, batch_size: int, num_workers: int) -> DataLoader:
    """Returns a loader of a dataset's batches, in order.

    Args:
        dataset: The dataset.
        batch_size: Images of a batch, at most.
        num_workers: Processes that read images, at most: no more than there are batches.
    """
    batch_size = _at_once(dataset, batch_size)
    batches: dict[str, Any] = {"batch_size": batch_size}
    if dataset.preprocess.aspect == "keep":
        batches = {"batch_sampler": SizeBatches(SequentialSampler(dataset), batch_size, sizes=dataset.sizes())}
    return _loader(dataset, min(num_workers, max(1, len(dataset) // batch_size)), **batches)


def build_training_loader(
    dataset: AnomalyDataset, *, batch_size: int, shuffle: bool, num_workers: int, seed: int, trainer: Trainer | None
) -> DataLoader:
    """Returns a loader of training batches, whose order is a function of the seed and the epoch.

    Args:
        dataset: The dataset.
        batch_size: Images of a batch and process, at most.
        shuffle: Whether images come in another order every epoch.
        num_workers: Processes that read images, at most: no more than there are batches.
        seed: Seed of the order.
        trainer: Who trains, and tells where it is: the epoch, and how many of its batches are done where it goes on
            within one. Without a trainer every iteration is the next epoch, of all images.
    """
    place, rank, world_size = None, 0, 1
    if trainer is not None:
        place = partial(place_of, trainer)
        shuffle = shuffle and not getattr(trainer, "overfit_batches", 0)
        if trainer._accelerator_connector.use_distributed_sampler:
            rank, world_size = trainer.global_rank, trainer.world_size
    batches = TrainingBatches(
        len(dataset),
        batch_size,
        seed=seed,
        shuffle=shuffle,
        sizes=dataset.sizes() if dataset.preprocess.aspect == "keep" else None,
        place=place,
        rank=rank,
        world_size=world_size,
    )
    workers = min(num_workers, len(batches))
    loader = _loader(dataset, workers, _LateLoader, batch_sampler=batches, persistent_workers=workers > 0)
    if world_size > 1:
        object.__setattr__(loader, "sampler", _Own(dataset))
    return loader


def _loader(dataset: AnomalyDataset, workers: int, cls: type[DataLoader] = DataLoader, **options: Any) -> DataLoader:
    options |= {"collate_fn": collate, "pin_memory": torch.cuda.is_available(), "worker_init_fn": _prepare_worker}
    return cls(dataset, num_workers=workers, **options)


def _prepare_worker(number: int) -> None:
    """Lets a process that reads images end quietly where the command has ended: nobody takes its batches any more."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            before(kind, error, trace)

    sys.excepthook = hook


class _LateLoader(DataLoader):
    """Begins to draw with the first batch that is asked for.

    Lightning makes its iterator ahead, where a method asks for ``estimated_stepping_batches`` even before it has
    restored the place in the training; workers would then fetch the images of the first epoch.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


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
        num_workers: Processes that read images, at most; none for a single batch, which nothing could go on beside.
        leave_out: Rows that are scored already.
        rank: Number of the process.
        world_size: Number of processes; they share the batches.
    """
    own = _Own(dataset)
    batch_size = _at_once(dataset, batch_size)
    sizes = dataset.sizes() if dataset.preprocess.aspect == "keep" else None
    batches = PredictionBatches(
        own, batch_size, total=len(dataset), leave_out=leave_out, rank=rank, world_size=world_size, sizes=sizes
    )
    workers = min(num_workers, len(batches)) if len(batches) > 1 else 0
    loader = _loader(dataset, workers, batch_sampler=batches)
    # Lightning takes a loader with a distributed sampler as shared already. Its own pads, or fails where there are
    # fewer images than processes.
    object.__setattr__(loader, "sampler", own)
    return loader


def _at_once(dataset: AnomalyDataset, batch_size: int) -> int:
    """Returns the images of a batch: one, where images come whole and their tiles make the batches."""
    return 1 if dataset.preprocess.aspect == "whole" else batch_size


class _Own(DistributedSampler):
    """Marks a loader as shared among processes; its batch sampler does the sharing."""

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
        yield from of_one_size(range(self.total), self.sizes, self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for number, block in enumerate(self._blocks()):
            if number % self.world_size == self.rank:
                rows = [row for row in block if row not in self.leave_out]
                if rows:
                    yield rows

    def __len__(self) -> int:
        return sum(1 for _ in self)


class SizeBatches(BatchSampler):
    """Batches of consecutive images of one size.

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
    ) -> None:
        """Keeps what is drawn from.

        Args:
            sampler: Which images, by number; all of them, or the part of a process.
            batch_size: Images of a batch, at most.
            drop_last: Has no effect: every image is in a batch.
            sizes: Height and width of every image.
        """
        super().__init__(sampler, batch_size, drop_last)
        self.sizes = list(sizes)

    def __iter__(self) -> Iterator[list[int]]:
        yield from of_one_size(self.sampler, self.sizes, self.batch_size)

    def __len__(self) -> int:
        return len(of_one_size(self.sampler, self.sizes, self.batch_size))
