"""Writes and prints the results of an evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer

from vlad.callbacks.decide import Decide
from vlad.callbacks.evaluator import Evaluator
from vlad.checkpoint import class_path_of
from vlad.datamodules.image_files import printable
from vlad.errors import VladError
from vlad.files import write_json, write_text
from vlad.metrics.results import EvaluationResult
from vlad.registry import discover
from vlad.results import Beside, RunFacts, beside, describe_beside, render
from vlad.results.metrics import metrics_table
from vlad.table import write_frame

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Results", "find_callback", "format_table", "published_beside"]

Kind = TypeVar("Kind", bound=Callback)

_ON_REQUEST = ("pixel_iou_max", "pixel_aupimo", "image_fpr_at_", "pixel_fpr_at_")


def format_table(result: EvaluationResult, columns: Sequence[str] | None = None) -> str:
    """Returns the metrics as a plain-text table in per cent: one line per category, then the mean.

    Args:
        result: Result of an evaluation.
        columns: Columns to show; by default all except those shown on request.
    """
    if columns is None:
        columns = [column for column in result.mean if not column.startswith(_ON_REQUEST)]
    table = metrics_table(result, [column for column in columns if column in result.mean])
    unknown = [column for column in columns if column not in result.mean]
    notes = [f"no column {', '.join(unknown)}: there are {', '.join(result.mean)}"] if unknown else []
    return render(replace(table, notes=[*table.notes, *notes]))


def published_beside(
    result: EvaluationResult, pl_module: LightningModule, datamodule: Any, evaluator: Evaluator
) -> list[Beside]:
    """Returns the published numbers of a tested method beside its own; none of a method that is not registered."""
    names = [name for name, plugin in discover().items() if plugin.class_path == class_path_of(type(pl_module))]
    encoder = getattr(pl_module, "backbone", None)
    if not names or encoder is None:
        return []
    facts = RunFacts(
        names[0],
        _shots(datamodule),
        encoder.name,
        pl_module.hparams.get("image_size"),
        evaluator.evaluation.protocol,
        encoder.pretrained or "",
        evaluator.resolution,
    )
    return beside(facts, result.categories.to_dict("records"))


def _shots(datamodule: Any) -> int:
    """Returns the number of references per category; 0 for none, -1 where categories differ."""
    frames: dict[str, pd.DataFrame] = getattr(datamodule, "frames", {})
    if "references" not in frames:
        return 0
    counts = frames["references"].groupby(["dataset", "category"]).size()
    return int(counts.iloc[0]) if counts.nunique() == 1 else -1


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


def _published_csv(found: Sequence[Beside]) -> str:
    """Returns published numbers beside ours as CSV: their columns, then ours, the difference, and what else differs."""
    import pandas as pd

    rows = [
        {**one.published._asdict(), "ours": one.ours, "difference": one.difference, "differs": one.differs}
        for one in found
    ]
    return pd.DataFrame(rows).astype({"shots": "Int64", "image_size": "Int64"}).to_csv(index=False)


class Results(Callback):
    """Writes metrics as CSV and JSON and image scores as CSV to the run folder, and prints the table.

    What it writes is the result of the :class:`vlad.callbacks.Evaluator` among the trainer's callbacks. Files:
    ``test_metrics.csv``, ``test_metrics.json``, ``test_scores.csv`` (``val_…`` while validating); of earlier stages of
    a method that refines its maps also ``test_initial_metrics.csv`` and ``test_initial_scores.csv``; where numbers are
    published of the method on a tested data set, ``test_published.csv`` has them beside ours.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises an error for a test without an Evaluator, which would have nothing to write.

        Raises:
            VladError: There is no Evaluator.
        """
        if stage in {"test", "validate"} and find_callback(trainer, Evaluator) is None:
            raise VladError("Results writes what an Evaluator found: add vlad.callbacks.Evaluator() to the callbacks")

    def _write(self, trainer: Trainer, stage: str, *, show: bool) -> None:
        folder = trainer.log_dir  # a collective call: on every rank
        evaluator = find_callback(trainer, Evaluator)
        result = evaluator.result if evaluator else None
        if result is None or folder is None or not trainer.is_global_zero:
            return
        target, decide = Path(folder), find_callback(trainer, Decide)
        parts = {f"{name}_": found for name, found in result.stages.items()} | {"": result}
        for part, found in parts.items() if show else ():  # shown first: the disk may be full
            if len(parts) > 1:
                print(f"\n{part.removesuffix('_') or 'final'}")
            print(f"\n{format_table(found, evaluator.columns if evaluator else None)}", flush=True)
            if evaluator and evaluator.resolution == "own" and not part:
                print("\npixel metrics at each image's own resolution; published ones are at the method's", flush=True)
            if len(found.failed):
                first = printable(found.failed["path"].iloc[0])
                print(
                    f"\n{len(found.failed)} of {len(found.images)} images have no finite score and count in no metric "
                    f"(first: {first}); their rows carry the error",
                    flush=True,
                )
        pairs = self._published(trainer, evaluator) if show and evaluator is not None else []
        for part, found in parts.items():
            categories: pd.DataFrame = found.categories
            write_frame(target / f"{stage}_{part}metrics.csv", categories)
            images: pd.DataFrame = found.images if part or decide is None else decide.decision_columns(found.images)
            write_frame(target / f"{stage}_{part}scores.csv", images)
        resolution = evaluator.resolution if evaluator else "method"
        write_json(target / f"{stage}_metrics.json", {"resolution": resolution, **_plain(result)})
        if pairs:
            write_text(target / f"{stage}_published.csv", _published_csv(pairs))
        if show:
            print(f"\nrun folder: {target}", flush=True)

    @staticmethod
    def _published(trainer: Trainer, evaluator: Evaluator) -> list[Beside]:
        """Prints published numbers of what was measured beside it, and returns them."""
        result = evaluator.result
        assert result is not None
        datamodule = getattr(trainer, "datamodule", None)
        found = published_beside(result, trainer.lightning_module, datamodule, evaluator)
        for table in describe_beside(found, list(result.mean)):
            print(f"\n{render(table)}", flush=True)
        return found

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes and prints the test table."""
        self._write(trainer, "test", show=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the validation table; prints it unless it is one of many while fitting."""
        if not trainer.sanity_checking:
            self._write(trainer, "val", show=trainer.state.fn == "validate")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the path of the checkpoint."""
        checkpoint = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if checkpoint and trainer.is_global_zero:
            print(f"\ncheckpoint: {checkpoint}", flush=True)


def find_callback(trainer: Trainer, kind: type[Kind]) -> Kind | None:
    """Returns the trainer's callback of a kind."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)
