"""Writes one panel per tested or predicted image, all in the colours of one scale."""

from __future__ import annotations

import math
import os
import tempfile
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from vlad.callbacks.panel import Panel, draw_contact_sheet, draw_panel
from vlad.files import write_atomic, write_json
from vlad.metrics.distributed import gather_objects, own_samples
from vlad.types import Batch, Prediction

__all__ = ["HeatMaps", "choose_for_contact_sheet"]


def choose_for_contact_sheet(drawn: Sequence[tuple[tuple[str, str], str, int, float]], limit: int = 24) -> list[str]:
    """Chooses what stands for a run, without picking cherries.

    Args:
        drawn: Category, name, label (-1 where not known) and image score of every panel.
        limit: At most this many.

    Returns:
        Of each category the anomalous and the normal image of middle score; where nothing is known, the
        images of highest score.
    """
    chosen = []
    for category in dict.fromkeys(row[0] for row in drawn):
        for label in (1, 0):
            ranked = sorted((score, name) for c, name, known, score in drawn if c == category and known == label)
            chosen += [ranked[len(ranked) // 2][1]] if ranked else []
    if not chosen:
        chosen = [name for _, name, _, _ in sorted(drawn, key=lambda row: -row[3])]
    return chosen[:limit]


class HeatMaps(Callback):
    """Heat maps of a test or prediction run, under ``heatmaps/`` in the run folder, and a contact sheet of some.

    The colours mean the same score in every image of the run, so they can only be chosen at its end: until then maps
    and previews wait, small, in a temporary file, and memory does not grow with the data set. Images are drawn from
    the previews that the data module makes where they are decoded; no file is opened again.
    """

    def __init__(self, enabled: bool = True, limit: int | None = None, height: int = 256) -> None:
        """Chooses what is drawn.

        Args:
            enabled: Whether heat maps are written at all.
            limit: At most this many images per category; all by default.
            height: Height of a tile in pixels.
        """
        self.enabled = enabled
        self.limit = limit
        self.height = height
        self._reset()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Asks the data module for previews."""
        data: Any = getattr(trainer, "datamodule", None)
        if self.enabled and stage in {"test", "predict"} and hasattr(data, "preview_height"):
            data.preview_height, data.preview_limit = self.height, self.limit

    def _reset(self) -> None:
        self._file: IO[bytes] | None = None
        self._rows: list[dict[str, Any]] = []
        self._samples: list[np.ndarray] = []
        self._counts: dict[tuple[str, str], int] = {}
        self._told = False

    def _start(self) -> None:
        self._reset()
        if self.enabled:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives until the end of the run

    def _store(self, array: np.ndarray) -> tuple[int, tuple[int, ...], str]:
        """Writes an array to the temporary file; returns where, its shape and type."""
        assert self._file is not None
        place = self._file.tell()
        self._file.write(np.ascontiguousarray(array).tobytes())
        return place, array.shape, str(array.dtype)

    def _add(self, trainer: Trainer, batch: Batch, prediction: Prediction) -> None:
        if self._file is None:
            return
        if "preview" not in batch:
            if trainer.is_global_zero and not self._told:
                print("no heat maps: the batches hold no previews; give the trainer vlad's data module", flush=True)
            self._told = True
            return
        stages = {**(prediction.stages or {}), "": prediction}
        maps = torch.stack([stage.anomaly_map.float() for stage in stages.values()], dim=1)  # (B, stages, H, W)
        shrink = min(1.0, self.height / min(maps.shape[-2:]))
        height, width = (max(1, round(side * shrink)) for side in maps.shape[-2:])
        small = F.adaptive_avg_pool2d(maps, (height, width)).cpu().numpy()
        for i in own_samples(batch, trainer.global_rank, trainer.world_size):
            category = (batch["dataset"][i], batch["category"][i])
            self._counts[category] = self._counts.get(category, 0) + 1
            self._samples.append(small[i].ravel()[:: max(1, small[i].size // 1024)].copy())
            if (self.limit is not None and self._counts[category] > self.limit) or not batch["preview"][i].numel():
                continue
            row: dict[str, Any] = {"category": category, "score": float(prediction.image_score[i])}
            row["name"] = "/".join(dict.fromkeys((*category, batch["image_id"][i])))
            row |= {"stages": list(stages), "maps": self._store(small[i].astype(np.float32))}
            row["preview"] = self._store(batch["preview"][i].cpu().numpy())
            row["mask"] = self._store(batch["mask_preview"][i].cpu().numpy())
            if "label" in batch:
                row["label"] = int(batch["label"][i])
            self._rows.append(row)

    def _finish(self, trainer: Trainer) -> None:
        folder = trainer.log_dir  # a collective call: on every rank
        everyone = [samples for part in gather_objects(self._samples) for samples in part]
        if self._file is None or not everyone or folder is None:
            return
        low, high = (float(q) for q in np.quantile(np.concatenate(everyone), [0.01, 0.999]))
        target = Path(folder) / "heatmaps"
        file, lock = self._file, Lock()

        def read(stored: tuple[int, tuple[int, ...], str]) -> np.ndarray:
            place, shape, kind = stored
            with lock:
                file.seek(place)
                content = file.read(math.prod(shape) * np.dtype(kind).itemsize)
            return np.frombuffer(content, kind).reshape(shape)

        def draw(row: dict[str, Any]) -> None:
            maps, mask = read(row["maps"]), read(row["mask"])
            caption = f"image score {row['score']:.4g}, map max {maps[-1].max():.4g}"
            if "label" in row:
                caption += f", label {['normal', 'anomalous', 'unknown'][row['label']]}"
            earlier = dict(zip(row["stages"][:-1], maps[:-1], strict=True))
            image = Image.fromarray(read(row["preview"]))
            panel = Panel(row["name"], caption, image, maps[-1], mask if mask.size else None, earlier)
            drawn = draw_panel(panel, low, high, height=self.height)
            path = target / f"{row['name']}.png"
            write_atomic(path, lambda partial: drawn.save(partial, format="PNG", compress_level=1))

        if trainer.is_global_zero:
            print(f"drawing {len(self._rows)} heat maps in {target}", flush=True)
        file.flush()
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # resizing and PNG leave Python's lock
            deque(pool.map(draw, self._rows), maxlen=0)
        file.close()
        drawn = [(row["category"], row["name"], row.get("label", -1), row["score"]) for row in self._rows]
        drawn = [row for part in gather_objects(drawn) for row in part]  # by now every rank has drawn
        if trainer.is_global_zero:
            panels = [Image.open(target / f"{name}.png") for name in choose_for_contact_sheet(drawn)]
            if panels:
                sheet = draw_contact_sheet(panels)
                write_atomic(target / "contact_sheet.png", lambda partial: sheet.save(partial, format="PNG"))
            write_json(target / "scale.json", {"low": low, "high": high})
        self._reset()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a fresh run."""
        self._start()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a batch's maps; those of a set that is scored together come by :meth:`on_set_scored`."""
        if isinstance(outputs, Prediction):
            self._add(trainer, batch, outputs)

    def on_set_scored(self, trainer: Trainer, pl_module: LightningModule, batch: Any, prediction: Prediction) -> None:
        """Keeps the maps of images that a transductive method has scored together."""
        self._add(trainer, batch, prediction)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the panels."""
        self._finish(trainer)

    on_predict_epoch_start = on_test_epoch_start
    on_predict_batch_end = on_test_batch_end
    on_predict_end = on_test_end
