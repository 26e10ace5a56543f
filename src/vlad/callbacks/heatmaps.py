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
from vlad.datamodules.decode import RowCrop, load_image, load_mask
from vlad.files import write_atomic, write_json
from vlad.metrics.evaluation import gather_objects, own_samples
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
    """Heat maps of a test or prediction run, under ``heatmaps/`` in the run folder, and a sheet of some of them.

    The colours mean the same score in every image of the run, so they can only be chosen at its end: until
    then the maps wait, small, in a temporary file, and memory does not grow with the data set.
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

    def _reset(self) -> None:
        self._file: IO[bytes] | None = None
        self._rows: list[dict[str, Any]] = []
        self._samples: list[np.ndarray] = []
        self._counts: dict[tuple[str, str], int] = {}

    def _start(self) -> None:
        self._reset()
        if self.enabled:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives until the end of the run

    def _add(self, trainer: Trainer, batch: Batch, prediction: Prediction) -> None:
        if self._file is None:
            return
        side = min(self.height, prediction.anomaly_map.shape[-1])
        stages = [said.anomaly_map for said in (prediction.unrefined, prediction) if said is not None]
        maps = F.adaptive_avg_pool2d(torch.stack(stages, dim=1).float(), side).cpu().numpy()  # (B, 1 or 2, side, side)
        for i in own_samples(batch, trainer.global_rank, trainer.world_size):
            path = batch["path"][i]
            category = (batch["dataset"][i], batch["category"][i])
            self._counts[category] = self._counts.get(category, 0) + 1
            self._samples.append(maps[i].ravel()[:: max(1, maps[i].size // 1024)])
            if self.limit is not None and self._counts[category] > self.limit:
                continue
            row: dict[str, Any] = {"path": path, "shape": maps[i].shape, "score": float(prediction.image_score[i])}
            row["category"] = category
            row["name"] = "/".join(dict.fromkeys((*category, batch["image_id"][i])))
            row["offset"] = self._file.tell()
            row |= {"row_crop": batch["row_crop"][i], "frame": int(batch["frame"][i]), "reader": batch["reader"][i]}
            if "label" in batch:
                row |= {"label": int(batch["label"][i]), "mask_path": batch["mask_path"][i]}
                row["mask_threshold"] = int(batch["mask_threshold"][i])
                row["has_mask"] = bool(batch["has_mask"][i])
            self._rows.append(row)
            self._file.write(maps[i].astype(np.float32).tobytes())

    def _finish(self, trainer: Trainer) -> None:
        folder = trainer.log_dir  # a collective call: on every rank
        everyone = [samples for part in gather_objects(self._samples) for samples in part]
        if self._file is None or not everyone or folder is None:
            return
        low, high = (float(q) for q in np.quantile(np.concatenate(everyone), [0.01, 0.999]))
        target = Path(folder) / "heatmaps"
        file, lock = self._file, Lock()

        def draw(row: dict[str, Any]) -> None:
            with lock:
                file.seek(row["offset"])
                stored = file.read(4 * math.prod(row["shape"]))
            values = np.frombuffer(stored, np.float32).reshape(row["shape"])
            self._draw(row, values, low, high, target / f"{row['name']}.png")

        if trainer.is_global_zero:
            print(f"drawing {len(self._rows)} heat maps in {target}", flush=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding, resizing and PNG leave Python's lock
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

    def _draw(self, row: dict[str, Any], values: np.ndarray, low: float, high: float, path: Path) -> None:
        crop = RowCrop.parse(row["row_crop"])
        image = load_image(row["path"], crop=crop, frame=row["frame"], reader=row["reader"])
        caption, mask = f"image score {row['score']:.4g}, map max {values[-1].max():.4g}", None
        if "label" in row:
            caption += f", label {['normal', 'anomalous', 'unknown'][row['label']]}"
            if row["mask_path"]:
                mask = load_mask(row["mask_path"], image.size, threshold=row["mask_threshold"], crop=crop)
            elif row["has_mask"]:
                mask = np.zeros((image.height, image.width), dtype=bool)
        panel = Panel(row["name"], caption, image, values[-1], mask, values[0] if len(values) > 1 else None)
        picture = draw_panel(panel, low, high, height=self.height)
        write_atomic(path, lambda partial: picture.save(partial, format="PNG", compress_level=1))

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
        """Keeps a batch's maps."""
        self._add(trainer, batch, outputs)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the panels."""
        self._finish(trainer)

    on_predict_epoch_start = on_test_epoch_start
    on_predict_batch_end = on_test_batch_end
    on_predict_end = on_test_end
