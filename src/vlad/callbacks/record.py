"""What a run was: the command, the method, its frozen encoder and the versions, beside its results."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vlad.checkpoint import describe
from vlad.files import write_json

__all__ = ["RunRecord"]

_PACKAGES = ("torch", "lightning", "open_clip_torch", "timm", "torchmetrics", "numpy", "pillow")


def _text(path: Path | None) -> str:
    return "" if path is None else str(path)


class RunRecord(Callback):
    """Leaves ``run.json`` in the run folder.

    It holds the command, the method with the origin of what it learned, the encoder's tag or file and the fingerprint
    of its weights, and the versions of the packages that numbers depend on.
    """

    def __init__(self, command: Sequence[str] = ()) -> None:
        """Keeps the command line that the run was started with."""
        self.command = list(command)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tells in one line where random weights are used."""
        encoder = getattr(pl_module, "backbone", None)
        if trainer.is_global_zero and getattr(encoder, "pretrained", None) == "random":
            print(f"{encoder.name} has random weights: scores mean nothing", flush=True)  # type: ignore[union-attr]

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # a collective call: on every rank
        if folder is None or not trainer.is_global_zero or not hasattr(pl_module, "api"):
            return
        method: Any = pl_module
        source = getattr(method.backbone, "source", None)
        record = {
            "command": self.command,
            "verb": str(trainer.state.fn.value if trainer.state.fn else ""),
            "method": describe(method),
            "weights": None
            if source is None
            else {"from": source.label, "file": _text(source.file), "sha256": source.sha256},
            "untrained": bool(method.trains and not method.origin),
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in _PACKAGES},
        }
        write_json(Path(folder) / "run.json", record)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the record."""
        self._write(trainer, pl_module)

    on_test_end = on_predict_end = on_fit_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the record of ``vlad validate``; while fitting the end of the fit does."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module)
