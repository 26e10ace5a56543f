"""What scores depend on, as plain values: two runs whose identities agree score an image alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vlad.checkpoint import FROZEN, class_path_of

if TYPE_CHECKING:
    from vlad.methods.base import Method

__all__ = ["differences", "scoring_identity"]

# Told by fingerprint and digest, as a folder may have moved.
_TOLD = {"backbone", "pretrained", "dino", "dino_pretrained", "weights"}

_WORDS = {
    "method": "the method",
    "encoder": "the encoder's weights",
    "trained": "the trained parameters",
    "references": "the reference images",
    "precision": "the precision",
    "engine": "the engine",
    "tiling": "the tiling",
    "text": "the class names of the images",
}


def _state_digest(method: Method) -> tuple[str, str]:
    """Returns digests of what was trained and of the reference memory; "" where there is nothing."""
    trained, memory = hashlib.sha256(), hashlib.sha256()
    counts = {"trained": 0, "memory": 0}
    for name, value in sorted(method.state_dict().items()):
        if name.startswith(FROZEN) or not isinstance(value, torch.Tensor):
            continue
        kind, digest = ("memory", memory) if name.startswith("memory.") else ("trained", trained)
        if not value.numel():
            continue
        counts[kind] += 1
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return (
        trained.hexdigest()[:16] if counts["trained"] else "",
        memory.hexdigest()[:16] if counts["memory"] else "",
    )


def scoring_identity(
    method: Method, *, precision: str = "32-true", data: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns what the scores of a method depend on.

    Args:
        method: The method, trained and fitted on its references.
        precision: Lightning's name of the precision.
        data: Options of the data that change what a method sees, such as ``intensity_range`` and ``fast_jpeg``.

    Returns:
        Plain JSON values: method, its options, encoder fingerprint, digests of trained parameters and of references,
        precision, engine, tiling, and ``data``.
    """
    trained, memory = _state_digest(method)
    encoder = method.backbone
    return {
        "method": class_path_of(type(method)),
        "options": {name: value for name, value in sorted(dict(method.hparams).items()) if name not in _TOLD},
        "encoder": encoder.fingerprint() if encoder is not None else "",
        "trained": trained,
        "references": memory if method.memory.categories else "",
        "precision": str(precision),
        "engine": "torch" if method.engine is None else method.engine.label,
        "tiling": None if method.tiling is None else method.tiling.identity(),
        "data": dict(sorted((data or {}).items())),
    }


def differences(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Returns one phrase for each thing in which two identities differ.

    Examples:
        >>> differences({"engine": "a", "options": {"sigma": 4}}, {"engine": "b", "options": {"sigma": 8}})
        ['sigma (was 4, is 8)', 'the engine (was a, is b)']
    """
    found = []
    for part in sorted({*recorded, *current}, key=lambda name: (name not in {"options", "data"}, name)):
        before, now = recorded.get(part), current.get(part)
        if before == now:
            continue
        if isinstance(before, Mapping) or isinstance(now, Mapping):
            before, now = dict(before or {}), dict(now or {})
            names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
            found += [f"{name} (was {before.get(name)}, is {now.get(name)})" for name in names]
        elif part in {"encoder", "trained", "references"}:
            found.append(f"{_WORDS[part]} (was {before or 'none'}, is {now or 'none'})")
        else:
            found.append(f"{_WORDS.get(part, part)} (was {before}, is {now})")
    return found
