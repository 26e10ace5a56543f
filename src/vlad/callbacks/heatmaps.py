"""Draws one panel per tested or predicted image, all in the colours of one scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from vlad.callbacks.per_image import PerImage, inspected
from vlad.callbacks.progress import Meter
from vlad.drawing.album import Album
from vlad.drawing.panel import Box
from vlad.drawing.previews import Preview
from vlad.drawing.scale import Scale
from vlad.errors import OptionError, OutputError
from vlad.types import Batch, Prediction

__all__ = ["HeatMaps"]

_LABELS = {0: "normal", 1: "anomalous"}


class HeatMaps(PerImage):
    """Heat maps of a test or prediction run, under ``heatmaps/`` in the run folder, and a contact sheet of some.

    The colours mean the same score in every image of the run. With a decision that knows a scale, panels are drawn
    while the method scores; else previews wait in ``parts/previews/`` and the scale is chosen at the end, from all of
    them. Either way memory does not grow with the data set, and what a killed run has not drawn is drawn when it is
    continued. Images are drawn from the previews that the data module makes where they are decoded; no file is opened
    again. See docs/heatmaps.md for what the colours mean.
    """

    def __init__(self, enabled: bool = True, limit: int | None = None, height: int = 256) -> None:
        """Chooses what is drawn.

        Args:
            enabled: Whether heat maps are written at all.
            limit: At most this many images per category, spread evenly over it; all by default.
            height: Shorter side of a tile in pixels; less where the longer one would be more than 1024.

        Raises:
            OptionError: A number is out of its range.
        """
        if not 16 <= height <= 1024:
            raise OptionError(f"heatmaps.height is {height}: give 16 to 1024 pixels")
        if limit is not None and limit < 1:
            raise OptionError(f"heatmaps.limit is {limit}: give 1 or more, or --heatmaps.enabled false for none")
        self.enabled, self.limit, self.height = enabled, limit, height
        super().__init__()
        self._album: Album | None = None
        self._told = False
        self._problem: OutputError | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Asks the data module for previews."""
        super().setup(trainer, pl_module, stage)
        self._album, self._told, self._problem = None, False, None
        data: Any = getattr(trainer, "datamodule", None)
        if self._log_dir is not None and hasattr(data, "preview_height"):
            data.preview_height, data.preview_limit = self.height, self.limit

    def begin(self, trainer: Trainer, folder: Path) -> None:
        """Opens the folder; a test starts afresh, a prediction goes on with what was left there."""
        self._album = Album(folder, rank=trainer.global_rank, world=trainer.world_size)
        if trainer.state.fn == "test":
            if trainer.is_global_zero:
                self._album.clear()
            trainer.strategy.barrier("vlad: heat maps")

    # -- one batch ---------------------------------------------------------------------------------------------

    def add(self, trainer: Trainer, batch: Batch, prediction: Prediction, rows: list[int]) -> None:
        """Keeps a batch's maps and previews; draws what has a scale."""
        assert self._album is not None
        if "preview" not in batch:
            if not self._told:
                rank_zero_warn("no heat maps: the batches hold no previews; give the trainer vlad's data module")
            self._told = True
            return
        decide = _decide(trainer)
        verdicts = decide.verdicts(batch, prediction) if decide is not None else None
        scores = prediction.image_score.detach().float().cpu().tolist()
        stages = {**(prediction.stages or {}), "": prediction}
        maps = {name: inspected(batch, stage.anomaly_map) for name, stage in stages.items()}
        facts: list[dict[str, Any]] = []
        previews = []
        for i in rows:
            scale = _scale(decide, batch, i) if decide is not None else None
            fact = _facts(batch, maps[""][i], scores[i], i)
            facts.append({**fact, "scale": scale.to_dict() if scale else None})
            if fact["max"] is None or not batch["preview"][i].numel():
                continue
            verdict = verdicts[i] if verdicts is not None else None
            image = batch["preview"][i].cpu().numpy()
            size = (image.shape[0], image.shape[1])
            mask = batch["mask_preview"][i].cpu().numpy() if "mask_preview" in batch else np.zeros((0, 0), bool)
            previews.append(
                Preview(
                    fact["name"],
                    "/".join((*dict.fromkeys(fact["set"]), batch["image_id"][i])),
                    _caption(fact, verdict, scale),
                    image,
                    {name: _shrink(values[i], size) for name, values in maps.items()},
                    mask if mask.size else None,
                    _boxes(verdict, batch, i, size) if verdict is not None else None,
                    scale,
                )
            )
        try:
            self._album.add(facts, previews)
        except OutputError as error:
            if trainer.state.fn != "test" or trainer.world_size > 1:  # a prediction is continued later
                raise
            rank_zero_warn("no further heat maps; the test continues for its metrics")
            self._album.abandon()
            self._begun, self._problem = False, error

    # -- the end -----------------------------------------------------------------------------------------------

    def finish(self, trainer: Trainer, folder: Path, *, progress: bool) -> None:
        """Draws what waits, also what an earlier run into the folder has left; a collective call, on every rank."""
        album = self._album or Album(folder, rank=trainer.global_rank, world=trainer.world_size)
        first, self._album = trainer.is_global_zero, None

        def draw() -> None:
            waiting = album.waiting()
            if waiting and first:
                share = " of this process's" if trainer.world_size > 1 else ""
                print(f"drawing {len(waiting)}{share} heat maps in {album.heatmaps}", flush=True)
            meter = Meter(len(waiting), "drawing", enabled=progress and first)
            album.draw(waiting, meter.advance)
            meter.finish()

        steps: list[Callable[[], Any]] = [
            album.settle,
            album.choose if first else lambda: None,
            draw,
            partial(self._conclude, album) if first else lambda: None,
        ]
        problem: BaseException | None = None
        for step in steps:  # a process that fails must not leave the others waiting for it
            try:
                if problem is None:
                    step()
            except Exception as error:
                problem = error
            trainer.strategy.barrier("vlad: heat maps")
        if problem is not None:
            raise problem

    @staticmethod
    def _conclude(album: Album) -> None:
        missing = album.finish()
        if missing:
            rank_zero_warn(missing)
        if album.unknown:
            letters = " ".join(sorted(letter for letter in album.unknown if letter.isprintable())[:10])
            rank_zero_warn(
                f"captions of heat maps: no font of this machine has {letters or 'some letters'}; their code points "
                "stand in their places (install a font such as Noto Sans)"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends a run; tells at last that heat maps are missing, the metrics being written.

        Raises:
            OutputError: They could not be written.
        """
        super().teardown(trainer, pl_module, stage)
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves what is not drawn to the continuation of the run."""
        if self._album is not None:
            self._album.abandon()


def _decide(trainer: Trainer) -> Any:
    """Returns the trainer's Decide where it has a decision, else None."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    found: Any = next((one for one in callbacks if type(one).__name__ == "Decide"), None)
    return found if found is not None and found.decision is not None else None


def _scale(decide: Any, batch: Batch, i: int) -> Scale | None:
    """Returns the scale that a decision has for an image."""
    class_name = batch["class_name"][i] if "class_name" in batch else None
    found = decide.decision.scale(batch["category"][i], class_name)
    return None if found is None else Scale.of_decision(*found)


def _facts(batch: Batch, values: Tensor, score: float, i: int) -> dict[str, Any]:
    """Returns an image's line of the journal; without numbers where its score or its map (H, W) is not finite.

    Minus infinity in a map says that nothing was inspected there.
    """
    belongs = (batch["dataset"][i], batch["category"][i])
    label = int(batch["label"][i]) if "label" in batch else -1
    about = {"path": batch["path"][i], "image_id": batch["image_id"][i]}
    fact: dict[str, Any] = {"name": batch["output"][i], **about, "set": belongs, "label": label}
    seen = values[values != -torch.inf]
    if not len(seen) or not math.isfinite(score) or not bool(torch.isfinite(seen).all()):
        return {**fact, "score": None, "max": None, "level": None}
    level = float(seen[:: max(1, len(seen) // 4096)].median())
    return {**fact, "score": score, "max": float(seen.max()), "level": level}


def _shrink(values: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Returns a map no larger than a tile; its maximum stays, so that no region gets lost."""
    smaller = [min(side, most) for side, most in zip(values.shape, size, strict=True)]
    return F.adaptive_max_pool2d(values[None], smaller)[0].cpu().numpy()


def _boxes(verdict: Any, batch: Batch, i: int, size: tuple[int, int]) -> list[Box] | None:
    """Returns the boxes of a verdict's regions in pixels of a tile (height, width)."""
    if "seen_size" not in batch:
        return None
    down, across = (side / int(seen) for side, seen in zip(size, batch["seen_size"][i], strict=True))
    return [(box.x * across, box.y * down, box.w * across, box.h * down) for box in verdict.regions]


def _caption(fact: dict[str, Any], verdict: Any, scale: Scale | None) -> str:
    """Returns the second line of a panel."""
    parts = [f"score {fact['score']:.4g}"]
    if verdict is not None and verdict.decision:
        sign = "<" if verdict.decision == "normal" else "≥"
        parts[0] += f" {sign} {verdict.threshold:.4g}: {verdict.decision}"
        parts += [f"p {verdict.p_value:.2g}"] if verdict.p_value is not None else []
        regions = len(verdict.regions)
        parts += [f"{regions} region{'s'[: regions != 1]}"] if verdict.anomalous_area is not None else []
    parts += [f"label {_LABELS[fact['label']]}"] if fact["label"] in _LABELS else []
    parts.append(f"map max {fact['max']:.4g}")
    return ", ".join([*parts, "colours not calibrated"] if scale is None else parts)
