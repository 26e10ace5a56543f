"""Writes what an evaluation found, and prints it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer

from vlad.callbacks.decide import Decide
from vlad.callbacks.evaluator import Evaluator
from vlad.errors import VladError
from vlad.files import write_json, write_text
from vlad.metrics.results import EvaluationResult

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Results", "format_table"]

Kind = TypeVar("Kind", bound=Callback)

_HEADINGS = {
    "image_auroc": "I-AUROC",
    "image_ap": "I-AP",
    "image_f1_max": "I-F1max",
    "pixel_auroc": "P-AUROC",
    "pixel_ap": "P-AP",
    "pixel_f1_max": "P-F1max",
    "pixel_aupro": "P-PRO",
}
_IN_FILES_ONLY = {"pixel_iou_max", "pixel_aupimo"}
_TRANSDUCTIVE = {
    "scores": "transductive: the image scores of a category were combined over its whole test set",
    "features": "transductive: the images of a category were scored together with its whole test set",
}


def _heading(column: str) -> str:
    """Returns what stands over a column: short for ours, the column's name for a plug-in's."""
    limit = column.removeprefix("pixel_aupro_")
    return f"P-PRO@{limit}" if limit != column else _HEADINGS.get(column, column)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def format_table(result: EvaluationResult) -> str:
    """Returns the metrics as a plain-text table in per cent: a line per category, then their mean."""
    metrics = [column for column in result.mean if column not in _IN_FILES_ONLY]
    lines = [["category", "normal", "anomalous", *map(_heading, metrics)]]
    rows: list[dict[str, Any]] = result.categories.to_dict("records")
    several = len({row["dataset"] for row in rows}) > 1
    for row in rows:
        name = (
            f"{row['dataset']}/{row['category']}" if several and row["dataset"] != row["category"] else row["category"]
        )
        lines.append([name, str(row["normal"]), str(row["anomalous"]), *(_percent(row[metric]) for metric in metrics)])
    lines.append(["mean", "", "", *(_percent(result.mean[metric]) for metric in metrics)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = "-" * len(text[0])
    notes = [f"- {note['category']}: no {note['metric']} metrics: {note['reason']}" for note in result.undefined]
    notes += [f"- {_TRANSDUCTIVE[result.transductive]}"] if result.transductive else []
    return "\n".join([text[0], rule, *text[1:-1], rule, text[-1], *notes])


def _plain(result: EvaluationResult) -> dict[str, Any]:
    """Returns the result as JSON values, NaN as null."""
    categories = json.loads(result.categories.to_json(orient="records", double_precision=15))
    mean, pooled = (
        {name: value if math.isfinite(value) else None for name, value in values.items()}
        for values in (result.mean, result.pooled)
    )
    plain = {"mean": mean, "pooled": pooled, "categories": categories, "undefined": result.undefined}
    plain["transductive"] = result.transductive
    stages = {name: _plain(found) for name, found in result.stages.items()}
    return {**plain, "stages": stages} if stages else plain


class Results(Callback):
    """Leaves metrics as CSV and JSON and every image's score as CSV in the run folder, and prints the table.

    What it writes is the result of the :class:`vlad.callbacks.Evaluator` among the trainer's callbacks. Files:
    ``test_metrics.csv``, ``test_metrics.json``, ``test_scores.csv`` (``val_…`` while validating); of earlier stages of
    a method that refines its maps also ``test_initial_metrics.csv`` and ``test_initial_scores.csv``.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a test without an Evaluator, which would leave nothing to write.

        Raises:
            VladError: There is no Evaluator.
        """
        if stage in {"test", "validate"} and _found(trainer, Evaluator) is None:
            raise VladError("Results writes what an Evaluator found: add vlad.callbacks.Evaluator() to the callbacks")

    def _write(self, trainer: Trainer, stage: str, *, show: bool) -> None:
        folder = trainer.log_dir  # a collective call: on every rank
        evaluator = _found(trainer, Evaluator)
        result = evaluator.result if evaluator else None
        if result is None or folder is None or not trainer.is_global_zero:
            return
        target, decide = Path(folder), _found(trainer, Decide)
        parts = {f"{name}_": found for name, found in result.stages.items()} | {"": result}
        for part, found in parts.items() if show else ():  # shown first: the disk may be full
            if len(parts) > 1:
                print(f"\n{part.removesuffix('_') or 'final'}")
            print(f"\n{format_table(found)}", flush=True)
        for part, found in parts.items():
            categories: pd.DataFrame = found.categories
            write_text(target / f"{stage}_{part}metrics.csv", categories.to_csv(index=False))
            images: pd.DataFrame = found.images if part or decide is None else decide.decision_columns(found.images)
            write_text(target / f"{stage}_{part}scores.csv", images.to_csv(index=False))
        write_json(target / f"{stage}_metrics.json", _plain(result))
        if show:
            print(f"\nrun folder: {target}", flush=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes and prints the test table."""
        self._write(trainer, "test", show=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the validation table; prints it unless it is one of many while fitting."""
        if not trainer.sanity_checking:
            self._write(trainer, "val", show=trainer.state.fn == "validate")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says where the checkpoint is."""
        checkpoint = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if checkpoint and trainer.is_global_zero:
            print(f"\ncheckpoint: {checkpoint}", flush=True)


def _found(trainer: Trainer, kind: type[Kind]) -> Kind | None:
    """Returns the trainer's callback of a kind."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)
