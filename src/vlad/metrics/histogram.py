"""A histogram over the bits of float scores: bounded, exact under merging, as fine as the scores need.

Equal-width bins fail on softmax scores, which crowd at 0 and 1. Here the line of floats is cut into cells of
1/64 octave, so that a bin is a *relative* step; between 0.5 and 1 the cells are those of 1 − x, so that the
same holds near 1. Only cells that hold a score take up room, and share the fixed number of bins: a narrow
range of scores gets fine bins, a wide one coarse bins.

How fine they are depends on the set of occupied cells alone, not on the order of the data or on who saw it,
bins are only ever folded in pairs, and counts are integers. So merging is exact, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["BINS", "ROWS", "SIZE", "Histogram", "merge", "score_of"]

BINS = 1 << 19
ROWS = 5  # what is counted in each is the caller's affair
_CELL_BITS = 17  # low bits of a float32 that lie within a cell
_CELLS = 1 << 15  # sign, exponent and the first six bits of the fraction
SIZE = _CELLS + ROWS * BINS  # of a state
_SIGN = 1 << 14
_FOLDED = 2.0**-102  # 1 − x of scores in (0.5, 1] is kept as the tiny negative number −(1 − x) · 2^-102
_FOLDED_END = (127 - 102) << 6  # cell of that magnitude: negative scores are kept at or above it
_HALF_BITS, _ONE_BITS = 0x3F000000, 0x3F800000
_HALF = _HALF_BITS >> _CELL_BITS  # cell of 0.5
_CHUNK = 1 << 16  # scores worked on at a time on the CPU, so that the steps meet in its cache

Array = np.ndarray


def _bits(scores: Tensor) -> Tensor:
    """Returns the int32 bits by which finite float32 scores (n,) are counted.

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
    if high <= 0.5:
        return bits
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


def _distinct(cells: Tensor) -> Tensor:
    """Returns the different ones among cells (n,), in order, int64."""
    return torch.nonzero(torch.bincount(cells)).flatten()


def _fineness(cells: int) -> int:
    """Returns the bits that tell bins of one cell apart when so many cells share the bins."""
    return min(_CELL_BITS, (BINS // max(cells, 1)).bit_length() - 1)


def _rank(cells: Tensor) -> Tensor:
    """Returns where cells come in the order of scores: negative, up to 0.5, up to 1, above."""
    magnitude, negative = cells & (_SIGN - 1), cells >= _SIGN
    folded = negative & (magnitude < _FOLDED_END)
    part = torch.where(negative, torch.where(folded, 2, 0), torch.where(magnitude <= _HALF, 1, 3))
    return part * _SIGN + torch.where(negative, _SIGN - 1 - magnitude, magnitude)


def score_of(cell: int, place: int, fineness: int) -> float:
    """Returns the lowest score of a bin: a place within a cell, of so many bits."""
    spare = _CELL_BITS - fineness
    low_bits = (1 << spare) - 1 if cell >= _SIGN else 0  # of negative numbers the largest magnitude is lowest
    bits = ((cell & (_SIGN - 1)) << _CELL_BITS) | (place << spare) | low_bits
    magnitude = float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
    if cell < _SIGN:
        return magnitude
    return 1 - magnitude / _FOLDED if (cell & (_SIGN - 1)) < _FOLDED_END else -magnitude


class Histogram:
    """A view of a flat int64 state, which it edits in place: the slot of every cell, then the counts.

    Attributes:
        slots: For each cell its slot plus one, or 0 if it holds no score (32768,).
        rows: Counts (5, BINS); a slot's bins lie together.
    """

    def __init__(self, state: Tensor) -> None:
        self.slots = state[:_CELLS]
        self.rows = state[_CELLS:].view(ROWS, BINS)

    @property
    def used(self) -> bool:
        """Whether anything was counted."""
        return bool(self.slots.any())

    @staticmethod
    def empty() -> Tensor:
        """Returns the state of nothing."""
        return torch.zeros(SIZE, dtype=torch.int64)

    def occupy(self, cells: Tensor) -> None:
        """Gives new cells (distinct) a slot each; folds the bins in pairs as often as it takes."""
        before = int(self.slots.max())
        after = before + len(cells)
        old, new = _fineness(before), _fineness(after)
        if before and new < old:
            counts = self.rows[:, : before << old].view(ROWS, before << new, 1 << (old - new)).sum(-1)
            self.rows.zero_()
            self.rows[:, : before << new] = counts
        self.slots[cells] = torch.arange(before + 1, after + 1, device=self.slots.device)

    def bins(self, scores: Tensor) -> Tensor:
        """Returns the bin of every score (n,), int32, making room where there is none.

        Raises:
            ValueError: A score is NaN or infinite.
        """
        if not self.used and len(scores):  # all at once, or the bins would be folded time and again
            self.occupy(_distinct((_bits(scores) >> _CELL_BITS) & (_CELLS - 1)))
        if scores.device.type == "cpu":
            return self._bins_on_cpu(scores.contiguous())
        bits = _bits(scores)
        cells = (bits >> _CELL_BITS) & (_CELLS - 1)
        table, fineness = self._starts()
        start = table.index_select(0, cells)
        if bool((start < 0).any()):
            self.occupy(_distinct(cells[start < 0]))
            table, fineness = self._starts()
            start = table.index_select(0, cells)
        return start + ((bits >> (_CELL_BITS - fineness)) & ((1 << fineness) - 1))

    def _bins_on_cpu(self, scores: Tensor) -> Tensor:
        bins = torch.empty(scores.shape, dtype=torch.int32)
        found, values = bins.numpy(), scores.numpy()
        room = np.empty((2, _CHUNK), np.int32)
        table, fineness = self._starts()
        for begin in range(0, len(values), _CHUNK):
            chunk, target = values[begin : begin + _CHUNK], found[begin : begin + _CHUNK]
            cells, other = room[:, : len(chunk)]
            bits = _bits_on_cpu(chunk, cells, other)
            np.right_shift(bits, _CELL_BITS, out=cells)
            cells &= _CELLS - 1
            table.numpy().take(cells, out=target, mode="clip")
            if target.min() < 0:
                before = fineness
                self.occupy(_distinct(torch.from_numpy(cells[target < 0])))
                table, fineness = self._starts()
                table.numpy().take(cells, out=target, mode="clip")
                found[:begin] >>= before - fineness  # a bin is its slot, then its place: folding drops low bits
            np.right_shift(bits, _CELL_BITS - fineness, out=other)
            other &= (1 << fineness) - 1
            target += other
        return bins

    def _starts(self) -> tuple[Tensor, int]:
        """Returns the first bin of every cell, negative for cells without a slot, and the fineness."""
        fineness = _fineness(int(self.slots.max()))
        return (self.slots.to(torch.int32) - 1) * (1 << fineness), fineness

    def count(self, bins: Tensor, row: int) -> None:
        """Counts bins (n,) in a row."""
        counts = torch.bincount(bins)
        self.rows[row, : len(counts)] += counts

    def ordered(self) -> tuple[Tensor, Tensor, int]:
        """Returns the bins of occupied cells from the lowest score up.

        Returns:
            The bins (n,); the cells in the same order (n / 2^f,); the bits f of a place within a cell.
        """
        cells = torch.nonzero(self.slots).flatten()
        cells = cells[_rank(cells).argsort()]
        fineness = _fineness(len(cells))
        places = torch.arange(1 << fineness, device=cells.device).expand(len(cells), -1)
        places = torch.where((cells >= _SIGN)[:, None], places.flip(1), places)
        bins = places.add_(((self.slots[cells] - 1) << fineness)[:, None]).flatten()
        return bins, cells, fineness


def merge(states: Sequence[Tensor] | Tensor) -> Tensor:
    """Adds the states (n,) of several histograms to a new one; exact, in any order."""
    total = Histogram.empty().to(states[0].device)
    histogram, parts = Histogram(total), [Histogram(state) for state in states]
    occupied = torch.nonzero(torch.stack([part.slots for part in parts]).any(0)).flatten()
    histogram.occupy(occupied)
    fineness = _fineness(len(occupied))
    for part in parts:
        bins, cells, finer = part.ordered()
        places = (bins & ((1 << finer) - 1)) >> (finer - fineness)
        target = ((histogram.slots[cells] - 1) << fineness).repeat_interleave(1 << finer) + places
        for row in range(ROWS):
            histogram.rows[row].index_add_(0, target, part.rows[row, bins])
    return total
