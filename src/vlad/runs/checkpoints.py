"""How a run writes and reads its checkpoints: in one piece, with a checksum, the newest two kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vlad.checkpoint import read_file
from vlad.files import write_atomic
from vlad.sealed import seal

__all__ = ["SealedCheckpointIO", "TwoCheckpoints"]


class SealedCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints under a temporary name, and reads none that is damaged or could run code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint; one on a remote file system as Lightning does.

        Raises:
            OutputError: The disk is full, the folder read-only, and the like.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        if "vlad" in checkpoint:
            seal(checkpoint)  # here, when methods and callbacks have added what they want to
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomic(Path(path), lambda partial: _write(partial, content))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint.

        Raises:
            WeightsError: It is damaged, or holds objects besides tensors and plain values.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return dict(read_file(path))


def _write(file: Path, content: io.BytesIO) -> None:
    file.write_bytes(content.getbuffer())


class TwoCheckpoints(ModelCheckpoint):
    """Keeps the newest checkpoint and the one before it, to go on from should the newest be damaged."""

    _previous = ""

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Removes the checkpoint that Lightning has dropped the time before."""
        dropped, self._previous = self._previous, filepath
        if dropped:
            super()._remove_checkpoint(trainer, dropped)
