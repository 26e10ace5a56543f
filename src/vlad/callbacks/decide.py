"""Classifies each image as normal or anomalous, by a decision file or a number."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vlad.callbacks.references import References
from vlad.decision import COLUMNS, Decision, Verdict, find_decision
from vlad.decision.records import check_decision, refuse_calibration_images, refuse_transductive
from vlad.decision.report import format_report, report
from vlad.metrics.distributed import gather_objects, own_samples
from vlad.metrics.evaluation import finite_rows
from vlad.table import write_frame
from vlad.types import Batch, Prediction

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Decide"]


class Decide(Callback):
    """Classifies predicted and tested images.

    Predictions get a decision per row. A test writes ``test_decisions.csv``: false alarms and misses per category. The
    decision is the one given, otherwise ``decision.json`` of the checkpoint's run, otherwise none. A decision that was
    made with other scores raises an error, and so does a test on images that it was made with.
    """

    def __init__(self, decision: str | float | None = None) -> None:
        """Reads the decision.

        Args:
            decision: A decision file (``vlad calibrate``), a number that scores are anomalous from, or ``none`` for
                none even where the checkpoint's run has one.

        Raises:
            DecisionError: Neither a number nor a decision file.
        """
        self.given = decision
        self._decision = Decision.read(decision)
        self._trainer: Trainer | None = None
        self._checked = False
        self._last: tuple[Batch, list[Verdict]] | None = None
        self._tested: dict[tuple[str, str, str], tuple[int, Verdict]] = {}

    @property
    def decision(self) -> Decision | None:
        """The decision in force; that of a checkpoint once the trainer has restored it."""
        if self._decision is None and self.given is None and self._trainer is not None:
            found = find_decision(self._trainer.ckpt_path)
            self._decision = None if found is None else Decision.load(found)
        return self._decision

    @property
    def digest(self) -> str:
        """What tells the decision in force from others; "" for none."""
        decision = self.decision
        return "" if decision is None else hashlib.sha256(repr(decision).encode()).hexdigest()[:16]

    def verdicts(self, batch: Batch, prediction: Prediction) -> list[Verdict]:
        """Returns the verdict on each image of a batch; cached.

        Args:
            batch: The batch, with ``category`` and ``class_name``; ``seen_size`` and ``original_size``, or the map's
                own pixels count.
            prediction: The method's prediction for the batch.
        """
        if self._last is not None and self._last[0] is batch:
            return self._last[1]
        decision = self.decision
        if decision is None:
            return [Verdict()] * len(prediction.image_score)
        maps = prediction.anomaly_map.detach().float().cpu().numpy()
        sizes = [list(maps.shape[1:])] * len(maps)
        seen = batch["seen_size"].tolist() if "seen_size" in batch else sizes
        original = batch["original_size"].tolist() if "original_size" in batch else seen
        found = [
            decision.verdict(category, score, maps[i], seen[i], original[i], class_name=class_name)
            for i, (category, class_name, score) in enumerate(
                zip(batch["category"], batch["class_name"], prediction.image_score.tolist(), strict=True)
            )
        ]
        self._last = (batch, found)
        return found

    def decision_columns(self, images: pd.DataFrame) -> pd.DataFrame:
        """Returns a table of tested images with the verdict on each; as it is where there is no decision.

        Args:
            images: Table with ``dataset``, ``category`` and ``image_id``.
        """
        if self.decision is None or not self._tested:
            return images
        names = zip(images["dataset"], images["category"], images["image_id"], strict=True)
        cells = [self._tested.get(name, (-1, Verdict()))[1].columns() for name in names]
        return images.assign(**{column: [one[column] for one in cells] for column in COLUMNS})

    # -- does the decision belong to this run? -----------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks as much as possible before scoring."""
        self._checked, self._last, self._tested = False, None, {}
        if self.given is None:  # another run, another checkpoint
            self._decision = None
        if stage in {"test", "predict"}:
            self._trainer = trainer
            if self._decision is not None:
                refuse_transductive(pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a decision that does not belong to what is scored; once, when the references are fitted."""
        decision = self.decision
        if self._checked or decision is None:
            return
        self._checked = True
        data: Any = getattr(trainer, "datamodule", None)
        frames: dict[str, pd.DataFrame] = getattr(data, "frames", {})
        part = "test" if trainer.state.fn == "test" else "predict"
        check_decision(
            decision,
            pl_module,  # type: ignore[arg-type]
            precision=str(trainer.precision),
            data=getattr(data, "scoring_options", {}),
            scored=frames.get(part),
            references=frames.get("references"),
            run=trainer.ckpt_path,
        )
        if part not in frames:
            return
        if part == "test":
            refuse_calibration_images(decision, frames[part])
        names = frames[part][["category", "class_name"]].drop_duplicates().itertuples(index=False, name=None)
        unknown = [category for category, class_name in names if decision.rule_of(category, class_name) is None]
        if unknown and trainer.is_global_zero:
            more = ", …" if len(unknown) > 5 else ""
            print(
                f"no decision on images of {', '.join(unknown[:5])}{more}: {decision.source} knows "
                f"{', '.join(list(decision.rules)[:5])} (--class-name of vlad calibrate, --data.class_name here)",
                flush=True,
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the decision, unless references are still to be fitted."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(one, References) for one in callbacks[callbacks.index(self) :]):
            self._check(trainer, pl_module)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Checks the decision, if not done yet."""
        self._check(trainer, pl_module)

    on_predict_start = on_test_start
    on_predict_batch_start = on_test_batch_start

    # -- what a test found -------------------------------------------------------------------------------------

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Decides on a batch."""
        if self.decision is None or not isinstance(outputs, Prediction):
            return
        verdicts, finite = self.verdicts(batch, outputs), finite_rows(outputs).tolist()
        for i in own_samples(batch, trainer.global_rank, trainer.world_size):
            if not finite[i]:
                continue  # the evaluation tells it
            name = (batch["dataset"][i], batch["category"][i], batch["image_id"][i])
            self._tested[name] = (int(batch["label"][i]), verdicts[i])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the verdicts of all processes."""
        self._last = None
        if self.decision is not None:
            self._tested = {name: one for part in gather_objects(self._tested) for name, one in part.items()}

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints and writes false alarms and misses by category."""
        folder = trainer.log_dir  # a collective call: on every rank
        if self.decision is None or not self._tested or not trainer.is_global_zero:
            return
        rows = report(self._tested)
        print(f"\n{format_report(rows, self.decision)}", flush=True)
        if folder is not None:
            import pandas as pd

            write_frame(Path(folder) / "test_decisions.csv", pd.DataFrame(rows))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Releases the last batch and the trainer."""
        self._last = None
        if self._trainer is not None:
            decision = self.decision  # stays known after the run
            self._decision, self._trainer = decision, None
