"""Tiles: an image at its own resolution, scored window by window, and its maps blended into one.

The data module is told to leave images as they are (``Preprocess.aspect == "whole"``); the method's step cuts windows
out of them, each of which is resized and normalised as a whole image would be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlad.clip.similarity import restrict
from vlad.datamodules.fitting import normalised, seen_part
from vlad.errors import MethodError, OptionError
from vlad.types import Batch, Prediction, Preprocess, Requirements, Tags

__all__ = ["FitsReferences", "Tiling", "fit_references", "requirements_of", "window_starts", "window_weights"]

_LEAST, _MOST = 16, 0.9


def window_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Returns where windows along one side begin: evenly spread, the first at 0, the last ending with the image.

    Args:
        length: Pixels of the side.
        tile: Pixels of a window.
        overlap: Share of a window that its neighbour covers too, at least.

    Examples:
        >>> window_starts(1000, 400, 0.25)
        [0, 300, 600]
        >>> window_starts(300, 400, 0.25)
        [0]
    """
    rest = length - tile
    if rest <= 0:
        return [0]
    gaps = math.ceil(rest / (tile * (1 - overlap)) - 1e-9)
    return [round(number * rest / gaps) for number in range(gaps + 1)]


def window_weights(starts: list[int], tile: int, length: int) -> Tensor:
    """Returns the weights of windows along one side (n, tile), float32: smooth, and 1 in sum at every pixel.

    Each falls from its middle to its ends as the square of a sine.
    """
    bump = torch.sin(math.pi * (torch.arange(tile, dtype=torch.float64) + 0.5) / tile) ** 2
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + tile] += bump
    return torch.stack([bump / total[start : start + tile] for start in starts]).float()


class _Window(NamedTuple):
    top: int
    left: int
    row: int
    column: int


class Tiled(Protocol):
    """What can be scored by tiles; every :class:`vlad.Method` is one."""

    tiling: Tiling | None

    @property
    def tags(self) -> Tags:
        """See :class:`vlad.Method`."""
        ...

    @property
    def requirements(self) -> Requirements:
        """See :class:`vlad.Method`."""
        ...


@dataclass(frozen=True)
class Tiling:
    """How images are tiled.

    Attributes:
        tile: Side of a tile in pixels of the image, at least 16. An image that is smaller is one tile.
        overlap: Share of a tile that its neighbours cover too, at least; 0 to 0.9.
        batch_size: Tiles that are scored together, where a batch does not say it.
    """

    tile: int
    overlap: float = 0.25
    batch_size: int = 8

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            OptionError: One is out of range.
        """
        if isinstance(self.tile, bool) or not isinstance(self.tile, int) or self.tile < _LEAST:
            raise OptionError(f"tile is the side of a tile in pixels, at least {_LEAST}, not {self.tile!r}")
        if (
            isinstance(self.overlap, bool)
            or not isinstance(self.overlap, int | float)
            or not 0 <= self.overlap <= _MOST
        ):
            raise OptionError(f"overlap is a share of the tile, from 0 to {_MOST}, not {self.overlap!r}")

    @classmethod
    def of(cls, tile: int | None, overlap: float | None, batch_size: int = 8) -> Tiling | None:
        """Returns what options ask for; None without a tile.

        Raises:
            OptionError: An overlap without a tile, or a value out of range.
        """
        if tile is None:
            if overlap is not None:
                raise OptionError(f"overlap {overlap:g} is that of tiles, and there are none: give tile, too (518)")
            return None
        return cls(tile, 0.25 if overlap is None else overlap, batch_size)

    def apply(self, method: Tiled) -> None:
        """Lets a method score by tiles.

        Raises:
            MethodError: It is transductive: what a tile scores would depend on other images.
        """
        if method.tags.transductive:
            raise MethodError(
                f"{type(method).__name__} as configured scores a whole test set at once (transductive) and is not "
                "tiled: choose a setting that is not transductive, or leave out tile"
            )
        method.tiling = self

    def identity(self) -> dict[str, Any]:
        """Returns what scores depend on, as plain JSON values."""
        return {"tile": self.tile, "overlap": float(self.overlap), "tiled_score": "max"}

    # -- scoring ---------------------------------------------------------------------------------------------------

    def score(self, batch: Batch, preprocess: Preprocess, score: Callable[[Batch], Any]) -> Prediction:
        """Scores a whole image: its map is the blend of its tiles' maps, its score the highest of its tiles' scores.

        Held at a time are the map and one batch of tiles. Tiles of which no pixel is inspected are left out. Earlier
        stages of a map, and the map ahead of its smoothing, are not kept.

        Args:
            batch: One image (1, 3, H, W), uint8.
            preprocess: What the method wants done to a tile.
            score: Scores a batch of tiles.

        Returns:
            The prediction, its map (1, H, W), float32.
        """
        (image,) = batch["image"]
        inside = batch["roi"][0] if "roi" in batch else None
        height, width = image.shape[-2:]
        blended = torch.zeros(height, width, device=image.device)
        size, rows, columns, windows = self._windows(height, width)
        row_weights, column_weights = rows.to(image.device), columns.to(image.device)
        if inside is not None:
            windows = [one for one in windows if _cut(inside, one, size).any()]
        scores: list[Tensor] = []
        for some, tiles in self._batches(image, windows, size, preprocess, batch):
            if inside is not None:
                shape = tiles["image"].shape[-2:]
                parts = torch.stack([_cut(inside, one, size) for one in some])[:, None].float()
                tiles["roi"] = F.adaptive_max_pool2d(parts, shape)[:, 0] > 0
            prediction = score(tiles)
            scores.append(prediction.image_score.float())
            for window, values in zip(some, _at_size(prediction.anomaly_map, size, preprocess), strict=True):
                weights = row_weights[window.row][:, None] * column_weights[window.column][None]
                _cut(blended, window, size).addcmul_(values, weights)
        whole = restrict(blended[None], None if inside is None else inside[None])
        return Prediction(whole, torch.cat(scores).amax()[None], whole)

    def batches(self, batches: Iterable[Batch], preprocess: Preprocess) -> Iterator[Batch]:
        """Yields the tiles of whole images, as images."""
        for batch in batches:
            for number, image in enumerate(batch["image"]):
                own: Any = {name: batch[name][number : number + 1] for name in _NAMES}  # type: ignore[literal-required]
                size, _, _, windows = self._windows(*image.shape[-2:])
                yield from (tiles for _, tiles in self._batches(image, windows, size, preprocess, {**batch, **own}))

    def _windows(self, height: int, width: int) -> tuple[tuple[int, int], Tensor, Tensor, list[_Window]]:
        """Returns the size of the windows of an image, the weights of rows and of columns, and the windows."""
        size = min(self.tile, height), min(self.tile, width)
        tops, lefts = (window_starts(side, self.tile, self.overlap) for side in (height, width))
        windows = [_Window(top, left, row, column) for row, top in enumerate(tops) for column, left in enumerate(lefts)]
        return size, window_weights(tops, size[0], height), window_weights(lefts, size[1], width), windows

    def _batches(
        self, image: Tensor, windows: list[_Window], size: tuple[int, int], preprocess: Preprocess, batch: Batch
    ) -> Iterator[tuple[list[_Window], Batch]]:
        count = batch.get("tiles", self.batch_size)
        for start in range(0, len(windows), count):
            some = windows[start : start + count]
            tiles = [_normalised(_cut(image, one, size), preprocess) for one in some]
            found: Any = {name: list(batch[name]) * len(some) for name in _NAMES}  # type: ignore[literal-required]
            yield some, {**found, "image": torch.stack(tiles).to(image.device)}


_NAMES = ("class_name", "dataset", "category")


def _cut(values: Tensor, window: _Window, size: tuple[int, int]) -> Tensor:
    return values[..., window.top : window.top + size[0], window.left : window.left + size[1]]


def _normalised(tile: Tensor, preprocess: Preprocess) -> Tensor:
    return normalised(Image.fromarray(tile.permute(1, 2, 0).cpu().contiguous().numpy()), preprocess)


def _at_size(maps: Tensor, size: tuple[int, int], preprocess: Preprocess) -> Tensor:
    """Returns the maps of tiles at the size of the tiles; over what is cut off, the last row and column go on."""
    height, width = (round(side) for side in seen_part(*size, preprocess))
    values = maps[:, None].float()
    if values.shape[-2:] != (height, width):
        values = F.interpolate(values, size=(height, width), mode="bilinear")
    rest = (0, size[1] - width, 0, size[0] - height)
    return F.pad(values, rest, mode="replicate")[:, 0] if any(rest) else values[:, 0]


def requirements_of(method: Tiled) -> Requirements:
    """Returns what the data module has to know of a method: whole images, where it scores by tiles."""
    wanted = method.requirements
    if method.tiling is None:
        return wanted
    return replace(wanted, preprocess=replace(wanted.preprocess, aspect="whole"))


class FitsReferences(Protocol):
    """What is fitted on references; every :class:`vlad.Method` is one."""

    def fit_references(self, batches: Iterable[Batch]) -> None:
        """Fits on batches of normal images."""
        ...


def fit_references(method: FitsReferences, batches: Iterable[Batch]) -> None:
    """Fits a method on references: on their tiles, where it scores by tiles.

    Raises:
        MethodError: The method takes no references, or there are none.
    """
    tiling: Tiling | None = getattr(method, "tiling", None)
    if tiling is not None:
        batches = tiling.batches(batches, cast("Tiled", method).requirements.preprocess)
    method.fit_references(batches)
