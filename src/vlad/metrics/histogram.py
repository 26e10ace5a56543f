"""A histogram over the bits of float scores: bounded, exact under merging, as fine as the scores need.

Equal-width bins fail on softmax scores, which crowd at 0 and 1. Here the line of floats is cut into cells of
1/64 octave, so that a bin is a *relative* step; between 0.5 and 1 the cells are those of 1 − x, so that the
same holds near 1. The fixed number of bins is shared evenly by the octaves that hold a score, and an octave's share
by its cells that do: few cells are a narrow range of scores, which gets fine bins, however wide the rest may be.

The bins lie in the order of scores. How fine they are depends on the set of occupied cells alone, not on the order of
the data or on who saw it; another occupied cell never makes a bin finer, so that bins are only ever folded in pairs,
and counts are integers. So merging is exact, in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["BINS", "ROWS", "SIZE", "Histogram", "Layout", "merge", "score_of"]

BINS = 1 << 17
ROWS = 5  # what is counted in each is the caller's affair
_CELL_BITS = 17  # low bits of a float32 that lie within a cell
_CELLS = 1 << 15  # sign, exponent and the first six bits of the fraction
SIZE = _CELLS + ROWS * BINS  # of a state
_SIGN = 1 << 14
_OCTAVE_BITS = 6  # of a cell that tell it from the others of its octave
_OCTAVES = _CELLS >> _OCTAVE_BITS
_PLACES = (1 << _CELL_BITS) - 1
_SHIFT_BITS, _SHIFTS = 5, 31
_FOLDED = 2.0**-102  # 1 − x of scores in (0.5, 1] is kept as the tiny negative number −(1 − x) · 2^-102
_FOLDED_END = (127 - 102) << 6  # cell of that magnitude: negative scores are kept at or above it
_HALF_BITS, _ONE_BITS = 0x3F000000, 0x3F800000
_HALF = _HALF_BITS >> _CELL_BITS  # cell of 0.5
_CHUNK = 1 << 15  # scores worked on at a time on the CPU, so that the steps meet in its cache

Array = np.ndarray


def _bits(scores: Tensor) -> Tensor:
    """Returns the int32 bits by which finite float32 scores (n,) are counted; in a cell they grow with the score.

    Raises:
        ValueError: A score is NaN or infinite.
    """
    low, high = (float(bound) for bound in scores.aminmax())
    if not -float("inf") < low <= high < float("inf"):
        raise ValueError("scores hold NaN or infinity")
    if low <= 0:
        scores = scores + 0.0  # -0.0 is 0.0
        if low < 0:
            scores = torch.where((scores < 0) & (scores > -_FOLDED), -_FOLDED, scores)
    bits = scores.view(torch.int32)
    if high > 0.5:
        # Masks of all ones or all zeros from integer signs: comparisons and where() are several times slower.
        chosen = (_HALF_BITS - bits).bitwise_right_shift_(31)
        if high > 1:
            chosen &= (_ONE_BITS - bits).bitwise_right_shift_(31).bitwise_not_()
        if low < 0:
            chosen &= (bits >> 31).bitwise_not_()
        folded = (1 - scores).mul_(-_FOLDED).view(torch.int32)
        bits = folded.bitwise_xor_(bits).bitwise_and_(chosen).bitwise_xor_(bits)
    if low < 0 or high > 0.5:  # of negative numbers the magnitude grows downwards
        bits = bits ^ ((bits >> 31) & _PLACES)
    return bits


def _bits_on_cpu(scores: Array, chosen: Array, folded: Array) -> Array:
    """Does what :func:`_bits` does, with numpy, which is twice as fast on one core as torch is on two.

    Args:
        scores: Scores (n,), float32.
        chosen: Room for n int32.
        folded: Room for n int32; the bits may be returned in it.
    """
    low, high = float(scores.min()), float(scores.max())
    if not -float("inf") < low <= high < float("inf"):
        raise ValueError("scores hold NaN or infinity")
    if low <= 0:
        scores = scores + np.float32(0)
        if low < 0:
            scores[(scores < 0) & (scores > -_FOLDED)] = -_FOLDED
    bits = scores.view(np.int32)
    if high > 0.5:
        bits = _folded_on_cpu(scores, bits, chosen, folded, low, high)
    if low < 0 or high > 0.5:
        np.right_shift(bits, 31, out=chosen)
        chosen &= _PLACES
        bits ^= chosen
    return bits


def _folded_on_cpu(scores: Array, bits: Array, chosen: Array, folded: Array, low: float, high: float) -> Array:
    """Returns ``folded`` with the bits, those of scores in (0.5, 1] folded."""
    np.subtract(_HALF_BITS, bits, out=chosen)
    chosen >>= 31
    if high > 1:
        chosen &= ~((_ONE_BITS - bits) >> 31)
    if low < 0:
        chosen &= ~(bits >> 31)
    tail = folded.view(np.float32)
    np.subtract(np.float32(1), scores, out=tail)
    tail *= np.float32(-_FOLDED)
    folded ^= bits
    folded &= chosen
    folded ^= bits
    return folded


@cache
def _ranks() -> Array:
    """Returns where each cell (32768,) comes in the order of scores: negative, up to 0.5, up to 1, above."""
    cells = np.arange(_CELLS)
    magnitude, negative = cells & (_SIGN - 1), cells >= _SIGN
    folded = negative & (magnitude < _FOLDED_END)
    part = np.where(negative, np.where(folded, 2, 0), np.where(magnitude <= _HALF, 1, 3))
    return np.argsort(np.argsort(part * _SIGN + np.where(negative, _SIGN - 1 - magnitude, magnitude)))


def score_of(cell: int, place: int, fineness: int) -> float:
    """Returns the lowest score of a bin: a place within a cell, of so many bits."""
    low_bits = place << (_CELL_BITS - fineness)
    if cell >= _SIGN:
        low_bits ^= _PLACES
    bits = ((cell & (_SIGN - 1)) << _CELL_BITS) | low_bits
    magnitude = float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
    if cell < _SIGN:
        return magnitude
    return 1 - magnitude / _FOLDED if (cell & (_SIGN - 1)) < _FOLDED_END else -magnitude


class Layout(NamedTuple):
    """Where the bins of occupied cells lie, by cells in the order of scores.

    Attributes:
        cells: The cells (n,).
        fineness: Bits that tell the bins of each apart (n,).
        starts: First bin of each (n,).
    """

    cells: Array
    fineness: Array
    starts: Array

    @classmethod
    def of(cls, occupied: Array) -> Layout:
        """Returns the layout for a set of cells (32768,), non-zero where occupied."""
        cells = np.flatnonzero(occupied)
        cells = cells[np.argsort(_ranks()[cells])]
        octaves = cells >> _OCTAVE_BITS
        beside = np.bincount(octaves, minlength=_OCTAVES)
        bins = BINS // (np.count_nonzero(beside) * beside[octaves])  # 1 or more: there are fewer cells than bins
        fineness = np.minimum(np.frexp(bins)[1] - 1, _CELL_BITS).astype(np.int64)  # the power of two below
        sizes = 1 << fineness
        return cls(cells, fineness, np.cumsum(sizes) - sizes)

    @property
    def bins(self) -> int:
        """How many bins it has."""
        return int(self.starts[-1] + (1 << self.fineness[-1])) if len(self.cells) else 0

    def table(self) -> Array:
        """Returns for every cell (32768,), int32, its first bin times 32 and how far bits are shifted; else -1."""
        table = np.full(_CELLS, -1, np.int32)
        table[self.cells] = self.starts << _SHIFT_BITS | (_CELL_BITS - self.fineness)
        return table

    def onto(self, other: Layout) -> Tensor:
        """Returns for each bin its bin in another layout (n,), int64, which has these cells and more."""
        found = np.searchsorted(_ranks()[other.cells], _ranks()[self.cells])
        sizes = 1 << self.fineness
        target = np.arange(self.bins, dtype=np.int32)
        target -= np.repeat(self.starts.astype(np.int32), sizes)
        target >>= np.repeat((self.fineness - other.fineness[found]).astype(np.int32), sizes)
        target += np.repeat(other.starts[found].astype(np.int32), sizes)
        return torch.from_numpy(target).long()  # index_add_ takes twice as long with int32

    def bin_score(self, number: int) -> float:
        """Returns the lowest score of a bin."""
        place = int(np.searchsorted(self.starts, number, side="right")) - 1
        return score_of(int(self.cells[place]), number - int(self.starts[place]), int(self.fineness[place]))


class Histogram:
    """A view of a flat int64 state, which it edits in place: which cells are occupied, then the counts.

    Attributes:
        occupied: For each cell whether it holds a score, 0 or 1 (32768,).
        rows: Counts (5, BINS), from the lowest score up.
        layout: Which bins those are.
    """

    def __init__(self, state: Tensor) -> None:
        self.occupied = state[:_CELLS]
        self.rows = state[_CELLS:].view(ROWS, BINS)
        self.layout = Layout.of(self.occupied.cpu().numpy())

    @staticmethod
    def empty() -> Tensor:
        """Returns the state of nothing."""
        return torch.zeros(SIZE, dtype=torch.int64)

    def occupy(self, cells: Tensor) -> None:
        """Makes room for cells (n,), of which some may be occupied; folds bins in pairs as often as it takes."""
        before, self.occupied[cells] = self.layout, 1
        self.layout = Layout.of(self.occupied.cpu().numpy())
        if before.bins:
            target = before.onto(self.layout).to(self.rows.device)
            for row in self.rows:  # one by one: all at once would take the memory of the whole once more
                row.copy_(torch.zeros_like(row).index_add_(0, target, row[: before.bins]))

    def add(self, scores: Tensor, worth: Mapping[int, Tensor | int]) -> None:
        """Counts scores (n,), float32, making room where there is none.

        Args:
            scores: The scores.
            worth: By row what each counts there: one number for all, or one for each (n,), int64.

        Raises:
            ValueError: A score is NaN or infinite.
        """
        if scores.device.type == "cpu":
            rows, begin = self.rows.numpy(), 0
            for bins in self._bins_on_cpu(scores.contiguous()):
                part = slice(begin, begin + len(bins))
                for row, value in worth.items():
                    np.add.at(rows[row], bins, value[part].numpy() if isinstance(value, Tensor) else value)
                begin = part.stop
        elif len(scores):
            found = self.bins(scores)
            for row, value in worth.items():
                each = value if isinstance(value, Tensor) else torch.full_like(found, value, dtype=torch.int64)
                self.rows[row].index_add_(0, found, each)

    def bins(self, scores: Tensor) -> Tensor:
        """Returns the bin of every score (n,), int32, making room where there is none; some at least.

        Raises:
            ValueError: A score is NaN or infinite.
        """
        bits = _bits(scores)
        cells = (bits >> _CELL_BITS) & (_CELLS - 1)
        self.occupy(torch.nonzero(torch.bincount(cells)).flatten())
        found = torch.from_numpy(self.layout.table()).to(scores.device).index_select(0, cells)
        return (found >> _SHIFT_BITS) + ((bits & _PLACES) >> (found & _SHIFTS))

    def _bins_on_cpu(self, scores: Tensor) -> Iterator[Array]:
        """Yields the bins of scores (n,) in turn, int32; each is to be used before the next one is asked for."""
        table = self.layout.table()
        begin = 0
        for bits, cells, found, places in _chunks(scores):
            table.take(cells, out=found, mode="clip")
            if found.min() < 0:  # room for all that follow at once: it takes longer than counting
                seen = np.zeros(_CELLS, bool)
                for _, later, _, _ in _chunks(scores[begin:]):
                    seen[later] = True
                self.occupy(torch.from_numpy(np.flatnonzero(seen)))
                table = self.layout.table()
                table.take(cells, out=found, mode="clip")
            np.bitwise_and(bits, _PLACES, out=places)
            places >>= np.bitwise_and(found, _SHIFTS, out=cells)
            found >>= _SHIFT_BITS
            found += places
            yield found
            begin += len(found)


def _chunks(scores: Tensor) -> Iterator[tuple[Array, Array, Array, Array]]:
    """Yields the bits of scores (n,) on the CPU in turn, not to be edited, their cells, and twice room for as many."""
    values = scores.numpy()
    room = np.empty((4, min(_CHUNK, len(values))), np.int32)
    for begin in range(0, len(values), _CHUNK):
        chunk = values[begin : begin + _CHUNK]
        first, second, cells, last = room[:, : len(chunk)]
        bits = _bits_on_cpu(chunk, first, second)
        np.right_shift(bits, _CELL_BITS, out=cells)
        cells &= _CELLS - 1
        yield bits, cells, first, last


def merge(states: Sequence[Tensor] | Tensor) -> Tensor:
    """Adds the states (n,) of several histograms to a new one; exact, in any order."""
    total = Histogram.empty().to(states[0].device)
    histogram, parts = Histogram(total), [Histogram(state) for state in states]
    for part in parts:
        histogram.occupy(torch.nonzero(part.occupied).flatten())
    for part in parts:
        target = part.layout.onto(histogram.layout).to(total.device)
        for row, counts in zip(histogram.rows, part.rows, strict=True):
            row.index_add_(0, target, counts[: part.layout.bins])
    return total
