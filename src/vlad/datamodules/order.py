"""The batches of training: a function of the seed and the epoch, so that a continued training keeps to their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch.utils.data import BatchSampler

from vlad.seeds import mix, steps_done

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["Drawn", "Place", "TrainingBatches", "of_one_size", "place_of"]

Size = tuple[int, int]
Item = TypeVar("Item")


class Drawn(NamedTuple):
    """A training image, by its number, and the epoch that it is drawn in."""

    number: int
    epoch: int


class Place(NamedTuple):
    """A place in the training: the epoch, and how many of its batches are done."""

    epoch: int
    batches: int = 0


def place_of(trainer: Trainer, length: int) -> Place:
    """Returns the place that a trainer is at, by the batches that it, or the training that it continues, has done.

    Args:
        trainer: The trainer. Its own count of epochs is off by one where a training of ``max_steps`` is continued.
        length: Batches of an epoch, ahead of ``limit_train_batches``.
    """
    limit = trainer.limit_train_batches
    batches = min(length, limit) if isinstance(limit, int) else int(length * limit)
    return Place(*divmod(steps_done(trainer), max(1, batches)))


def of_one_size(numbers: Iterable[int], sizes: Sequence[Size], batch_size: int) -> list[list[int]]:
    """Returns batches of consecutive images of one size.

    Examples:
        >>> of_one_size(range(4), [(2, 3), (2, 3), (3, 2), (2, 3)], 2)
        [[0, 1], [2], [3]]
    """
    batches: list[list[int]] = []
    for number in numbers:
        last = batches[-1] if batches else None
        if last and len(last) < batch_size and sizes[last[0]] == sizes[number]:
            last.append(number)
        else:
            batches.append([number])
    return batches


def _share(items: list[Item], rank: int, world_size: int) -> list[Item]:
    """Returns a process's part: as many for each, so that some come twice where the number does not divide."""
    count = len(items) + -len(items) % world_size
    return [items[number % len(items)] for number in range(rank, count, world_size)]


class TrainingBatches(BatchSampler):
    """Batches of a training set, epoch by epoch in another order.

    Every image is in a batch. Where images differ in size, a batch holds images of one size. Several processes share
    the images (or, of several sizes, the batches); each has as many batches as the others.

    Examples:
        >>> batches = TrainingBatches(5, 2, seed=0)
        >>> [[one.number for one in batch] for batch in batches], len(batches)
        ([[1, 3], [0, 4], [2]], 3)
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        sizes: Sequence[Size] | None = None,
        place: Callable[[int], Place] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Says what is drawn from.

        Args:
            count: Number of images.
            batch_size: Images of a batch, at most.
            seed: Seed of the order.
            shuffle: Whether the order differs from that of the index.
            sizes: Height and width of every image where they differ.
            place: Tells of the number of batches the place in the training where an iteration begins; by default
                each is the next epoch.
            rank: Number of the process.
            world_size: Number of processes.
        """
        super().__init__(range(count), batch_size, drop_last=False)
        self.count, self.seed, self.shuffle, self.sizes = count, seed, shuffle, sizes
        self.rank, self.world_size = rank, world_size
        self._place = place
        self._iterations = 0

    def batches_of(self, epoch: int) -> list[list[int]]:
        """Returns the batches of an epoch that are this process's."""
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        numbers = torch.randperm(self.count, generator=generator).tolist() if self.shuffle else list(range(self.count))
        if self.sizes is None:
            own = _share(numbers, self.rank, self.world_size)
            return [own[start : start + self.batch_size] for start in range(0, len(own), self.batch_size)]
        if self.shuffle:
            numbers.sort(key=lambda number: self.sizes[number])  # type: ignore[index]  # stable: shuffled within a size
        batches = of_one_size(numbers, self.sizes, self.batch_size)
        if self.shuffle:
            batches = [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]
        return _share(batches, self.rank, self.world_size)

    def __iter__(self) -> Iterator[list[Drawn]]:  # type: ignore[override]
        epoch, done = self._place(len(self)) if self._place is not None else Place(self._iterations)
        self._iterations += 1
        for batch in self.batches_of(epoch)[done:]:
            yield [Drawn(number, epoch) for number in batch]

    def __len__(self) -> int:
        if self.sizes is None:
            return -(-self.count // (self.world_size * self.batch_size))
        if self.shuffle:
            total = sum(-(-alike // self.batch_size) for alike in Counter(self.sizes).values())
        else:
            total = len(of_one_size(range(self.count), self.sizes, self.batch_size))
        return -(-total // self.world_size)
