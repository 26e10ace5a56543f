"""Checkpoints that are whole or refused: written in one piece, with a checksum of what they hold."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from vlad.errors import WeightsError
from vlad.files import write_atomic

__all__ = ["SealedCheckpointIO", "TwoCheckpoints", "check_seal", "checksum", "seal"]

_COVERED = ("state_dict", "hyper_parameters", "optimizer_states", "lr_schedulers", "loops")


def checksum(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what a checkpoint restores: record, parameters, options and the state of the training.

    Args:
        content: The checkpoint. Tensors count with name, type, shape and bytes, numbers and texts with their value.
    """
    digest = hashlib.sha256()
    _update(digest.update, "vlad", {key: value for key, value in content["vlad"].items() if key != "checksum"})
    for key in _COVERED:
        if key in content:
            _update(digest.update, key, content[key])
    return digest.hexdigest()


def _update(update: Callable[[Any], Any], name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        update(plain.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        for key, one in sorted(value.items(), key=lambda item: str(item[0])):  # safetensors has an order of its own
            _update(update, f"{name}.{key}", one)
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            _update(update, f"{name}.{number}", one)
    else:
        known = isinstance(value, str | int | float | bool | None)
        update(f"{name} {value!r}\n".encode(errors="surrogatepass") if known else f"{name}\n".encode())


def seal(checkpoint: dict[str, Any]) -> None:
    """Writes the checksum into a checkpoint's record, as the last thing before it is written."""
    checkpoint["vlad"] = {**checkpoint["vlad"], "checksum": checksum(checkpoint)}


def check_seal(content: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns a checkpoint without its checksum, which was found to be right; one without a checksum as it is.

    Args:
        content: The checkpoint.
        where: What it is called in the error.

    Raises:
        WeightsError: It holds something else than was written.
    """
    record = content.get("vlad")
    if not isinstance(record, Mapping) or "checksum" not in record:
        return content
    if record["checksum"] != checksum(content):
        raise WeightsError(f"{where} is damaged: its checksum is wrong; give another checkpoint")
    return {**content, "vlad": {key: value for key, value in record.items() if key != "checksum"}}


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
        if "checksum" in checkpoint.get("vlad", {}):
            seal(checkpoint)  # once more: a method or callback may have added to it since
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
        from vlad.checkpoint import read_file  # which imports this module

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
