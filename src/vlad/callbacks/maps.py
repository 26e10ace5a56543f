"""Writes the raw map of every tested or predicted image, at the image's original size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from vlad.callbacks.per_image import PerImage, inspected
from vlad.drawing.pool import usable_cpus
from vlad.drawing.raw import MapFormat, map_of_image, write_map
from vlad.errors import OptionError
from vlad.journal import Journal, join_journals
from vlad.types import Batch, Prediction

__all__ = ["RawMaps"]

_SUFFIXES = {"npy": ".npy", "png16": ".png"}


class RawMaps(PerImage):
    """Raw maps of a test or prediction run, under ``maps/`` in the run folder, and their list in ``maps/index.jsonl``.

    A map has the original size of its image: bilinear over the part that the method sees, with the last row and column
    repeated over the rest; minus infinity (code 0 in a PNG) outside a region of interest. A batch's maps are on disk
    before the next batch is scored. :func:`vlad.drawing.read_map` reads both formats.
    """

    def __init__(self, format: MapFormat | None = None) -> None:
        """Selects the format.

        Args:
            format: ``npy`` (float32) or ``png16`` (16-bit PNG, with the scale of its values as text in it); by default
                no maps are written.

        Raises:
            OptionError: The format is unknown.
        """
        if format not in {None, *_SUFFIXES}:
            raise OptionError(f"maps.format is {format!r}: give npy or png16")
        super().__init__()
        self.format, self.enabled = format, format is not None
        self._folder = Path()
        self._journal: Journal | None = None
        self._told = False

    def begin(self, trainer: Trainer, folder: Path) -> None:
        """Opens this process's part of the list."""
        self._folder, self._told = folder, False
        self._journal = Journal(folder / "parts" / f"maps-{trainer.global_rank}.jsonl")

    def add(self, trainer: Trainer, batch: Batch, prediction: Prediction, rows: list[int]) -> None:
        """Writes a batch's maps; they are on disk when this returns."""
        assert self._journal is not None
        assert self.format is not None
        maps = inspected(batch, prediction.anomaly_map).cpu().numpy()
        folder, kind = self._folder / "maps", self.format

        def write(i: int) -> dict[str, Any] | None:
            if not np.isfinite(maps[i][maps[i] != -np.inf]).all():
                return None
            sizes = [tuple(batch[key][i].tolist()) for key in ("seen_size", "original_size")]
            values = map_of_image(maps[i], *sizes)
            name = batch["output"][i] + _SUFFIXES[kind]
            scale = write_map(folder / name, values, kind)
            about = {"file": name, "path": batch["path"][i], "image_id": batch["image_id"][i]}
            return {**about, "height": values.shape[0], "width": values.shape[1], **scale}

        with ThreadPoolExecutor(min(len(rows), usable_cpus())) as pool:
            lines = list(pool.map(write, rows))
        self._journal.append(line for line in lines if line is not None)
        for i, line in zip(rows, lines, strict=True):
            if line is None and not self._told:
                self._told = True
                rank_zero_warn(f"no raw map of {batch['path'][i]}, nor of others like it: the map is not finite")

    def finish(self, trainer: Trainer, folder: Path, *, progress: bool) -> None:
        """Joins the lists of all processes; a collective call, on every rank."""
        if self._journal is not None:
            self._journal.close()
        trainer.strategy.barrier("vlad: raw maps")
        if trainer.is_global_zero:
            join_lists(folder)
        trainer.strategy.barrier("vlad: raw maps")


def join_lists(folder: Path) -> None:
    """Adds the lists of all processes to ``maps/index.jsonl`` of a run folder, where a map has one line."""
    parts, index = sorted((folder / "parts").glob("maps-*.jsonl")), folder / "maps" / "index.jsonl"
    if not parts:
        return

    join_journals([*parts, *([index] if index.is_file() else [])], index, "file")  # of two the new one counts
    for part in parts:
        part.unlink(missing_ok=True)
    with suppress(OSError):  # others' parts stay
        (folder / "parts").rmdir()
