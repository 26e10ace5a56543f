"""The checksum of a checkpoint: of the record, parameters, options and state of the training that it restores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vlad.errors import WeightsError

__all__ = ["check_seal", "checksum", "seal"]

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
