"""Checkpoints: read safely, describe, restore, export. Nothing is ever unpickled with code in it."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from vlad.errors import WeightsError
from vlad.files import write_atomic
from vlad.migrate import migrate_checkpoint
from vlad.published import Published, find_checkpoint, locate
from vlad.sealed import check_seal, checksum
from vlad.torch_files import TorchFileError, load_torch

__all__ = [
    "check_loaded",
    "class_path_of",
    "describe",
    "export_weights",
    "hyperparameters",
    "load_weights",
    "not_published",
    "read_checkpoint",
    "read_file",
    "slim",
]

FROZEN = "backbone."
"""Prefix of the frozen encoder, which no checkpoint holds."""


MEMORY = "memory."
"""Prefix of the few-shot memory, which a checkpoint holds only where it is filled."""


class Restorable(Protocol):
    """What of a method is saved and restored; every :class:`vlad.Method` is one."""

    api: ClassVar[int]
    published_weights: ClassVar[Mapping[str, Published]]
    backbone: Any
    memory: Any
    origin: str
    weight_files: Mapping[str, str]

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps a checkpoint in the authors' format to the names of the method's parameters."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Of ``torch.nn.Module``."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Of ``torch.nn.Module``."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Of ``torch.nn.Module``."""
        ...

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Of ``torch.nn.Module``."""
        ...

    def get_submodule(self, target: str) -> nn.Module:
        """Of ``torch.nn.Module``."""
        ...


def class_path_of(cls: type) -> str:
    """Returns a class's import path."""
    return f"{cls.__module__}.{cls.__qualname__}"


def describe(method: Restorable) -> dict[str, Any]:
    """Returns what a checkpoint says of itself: method, interface, origin, and which frozen encoder it belongs to."""
    from vlad import __version__

    encoder = method.backbone
    return {
        "version": __version__,
        "api": method.api,
        "class_path": class_path_of(type(method)),
        "origin": method.origin,
        "backbone": encoder and encoder.name,
        "pretrained": encoder and encoder.pretrained,
        "fingerprint": encoder and encoder.fingerprint(),
    }


# -- files ---------------------------------------------------------------------------------------------------


def read_file(path: str | Path) -> Mapping[str, Any]:
    """Reads a ``.safetensors`` file or a torch file, the latter with ``weights_only=True``.

    Raises:
        WeightsError: Missing, damaged, or a pickle that holds more than tensors and plain values.
    """
    path = find_checkpoint(path)
    try:
        safe = path.suffix == ".safetensors"
        content = _read_safetensors(path) if safe else load_torch(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it holds Python objects besides tensors, which could run code when loaded; "
            "ask its author for a plain state dict or safetensors"
        ) from error
    except TorchFileError as error:
        raise WeightsError(f"{path} is refused: {error}") from error
    except Exception as error:  # zip, safetensors and torch each raise their own kinds on damaged files
        raise WeightsError(f"{path} cannot be read as weights ({type(error).__name__}); is it complete?") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not named tensors")
    return check_seal(dict(content), str(path))


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Reads named tensors, or what :func:`export_weights` wrote as the checkpoint it was."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        about = (file.metadata() or {}).get("vlad")
    if about is None:
        return tensors
    record = json.loads(about)
    return {"vlad": record["vlad"], "hyper_parameters": record["hyper_parameters"], "state_dict": tensors}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads one of vlad's checkpoints, brought to the present interface.

    Raises:
        WeightsError: Unreadable, another kind of file, or a checkpoint that cannot be brought up.
    """
    file = find_checkpoint(path)
    content = dict(read_file(file))
    if "vlad" not in content:
        raise WeightsError(
            f"{file} is no vlad checkpoint; weights in a method's published format go to model.weights "
            f"(vlad.load(METHOD, weights='{file}'))"
        )
    return migrate_checkpoint(content)


def export_weights(source: str | Path, target: str | Path, decision: str = "") -> Path:
    """Writes what a run has trained and fitted as safetensors, with its method, hyper-parameters and encoder inside.

    Args:
        source: A run folder or one of vlad's checkpoints.
        target: File ending in ``.safetensors``.
        decision: Content of a decision file to keep beside the weights; "" for none.

    Returns:
        The file, which ``weights:`` and :func:`vlad.load` take.

    Raises:
        WeightsError: No checkpoint of vlad's, or another ending.
    """
    from safetensors.torch import save_file

    target = Path(target)
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target}: give a file ending in .safetensors")
    checkpoint = read_checkpoint(source)
    tensors = {key: value.contiguous() for key, value in _fitted(checkpoint["state_dict"]).items()}
    about = {"vlad": dict(checkpoint["vlad"]), "hyper_parameters": hyperparameters(checkpoint)}
    about["vlad"]["checksum"] = checksum({**about, "state_dict": tensors})
    metadata = {"vlad": json.dumps(about), **({"decision": decision} if decision else {})}
    return write_atomic(target, lambda partial: save_file(tensors, partial, metadata))


def hyperparameters(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the constructor arguments that a checkpoint saved, without Lightning's own entries."""
    return {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if not key.startswith("_")}


def not_published(path: str | Path, content: Mapping[str, Any], method: str) -> WeightsError:
    """Returns the error of a file that is in no format of a method."""
    keys = ", ".join(map(str, list(content)[:6]))
    return WeightsError(
        f"{path} is neither a vlad checkpoint nor in the published format of {method} (its top-level keys: {keys})"
    )


# -- saving and loading ----------------------------------------------------------------------------------------


def _fitted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what was trained or fitted of a state dict: parameters and buffers alike, not the frozen encoder."""
    return {key: value for key, value in state.items() if not key.startswith(FROZEN)}


def slim(method: Restorable, checkpoint: dict[str, Any]) -> None:
    """Leaves the frozen encoder out of a checkpoint that Lightning is about to write, and describes it."""
    state = _fitted(checkpoint["state_dict"])
    empty = not method.memory.categories
    checkpoint["state_dict"] = {key: value for key, value in state.items() if not (empty and key.startswith(MEMORY))}
    checkpoint["vlad"] = describe(method)


def check_loaded(method: Restorable, checkpoint: dict[str, Any]) -> None:
    """Refuses another method's or another encoder's checkpoint; fills in what a strict load wants beside it.

    Raises:
        WeightsError: The checkpoint is of another method or encoder, or holds a value that is not finite.
    """
    checkpoint.update(migrate_checkpoint(check_seal(checkpoint, "the checkpoint")))
    record, own = checkpoint.get("vlad", {}), describe(method)
    if record.get("class_path", own["class_path"]) != own["class_path"]:
        raise WeightsError(f"the checkpoint is of {record['class_path']}, this method is {own['class_path']}")
    _refuse_other_encoder(method, record, "the checkpoint")
    state = dict(checkpoint["state_dict"])
    _refuse_not_finite(state, "the checkpoint")
    _refuse_misfits(method, state, "the checkpoint")
    _resize_buffers(method, state)
    present = method.state_dict()
    optional = {key: value for key, value in present.items() if key.startswith((FROZEN, MEMORY))}
    checkpoint["state_dict"] = {**optional, **state}
    method.origin = str(record.get("origin", "checkpoint"))


def _refuse_other_encoder(method: Restorable, record: Mapping[str, Any], where: str) -> None:
    own = describe(method)
    expected = own["fingerprint"]
    if record.get("fingerprint_version") == 1 and method.backbone is not None:
        expected = method.backbone.legacy_fingerprint()
    if record.get("fingerprint", expected) != expected:
        raise WeightsError(
            f"{where} was trained on encoder {record['backbone']} ({record['pretrained']}, weights "
            f"{record['fingerprint']}), this one is {own['backbone']} ({own['pretrained']}, weights {expected}): give "
            "the same backbone and pretrained"
        )


def _refuse_not_finite(state: Mapping[str, Any], where: str) -> None:
    for name, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            raise WeightsError(f"{where} holds NaN or infinity in {name}; it is damaged or its training diverged")


def _resize_buffers(method: Restorable, state: Mapping[str, Tensor]) -> None:
    """Gives buffers of unknown length, such as memory banks, the length that was saved."""
    for name, buffer in method.named_buffers():
        saved = state.get(name)
        if saved is None or saved.shape == buffer.shape:
            continue
        if buffer.numel() == 0 or (saved.ndim == buffer.ndim and saved.shape[1:] == buffer.shape[1:]):
            owner, _, leaf = name.rpartition(".")
            setattr(method.get_submodule(owner), leaf, saved.new_empty(saved.shape).to(buffer.device, buffer.dtype))


class _Reader(Mapping[str, Any]):
    """A file's content that knows which of its keys were read."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = self._content[key]
        self.read.add(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


def load_weights(method: Restorable, path: str | Path, content: Mapping[str, Any] | None = None) -> None:
    """Loads trained parameters and fitted buffers into a method.

    Args:
        method: The method; it knows its authors' names.
        path: The authors' file or its name, one of vlad's checkpoints, or a run folder.
        content: What is there, where the method has read it itself, as of weights in two files.

    Raises:
        WeightsError: Unreadable or unsafe file, or its tensors do not fit; the message lists them.
    """
    name = type(method).__name__
    trained = {key: p for key, p in method.named_parameters() if p.requires_grad}
    if not trained:
        raise WeightsError(f"{name} is training-free and has no weights to load; leave out weights: {path}")
    content = read_file(locate(path, method.published_weights)) if content is None else content
    if "vlad" in content:
        checkpoint = migrate_checkpoint(dict(content))
        _refuse_other_encoder(method, checkpoint["vlad"], str(path))
        if not checkpoint["vlad"].get("origin", "checkpoint"):
            raise WeightsError(f"{path} is of an untrained {name}: it holds nothing trained")
        state = _fitted(checkpoint["state_dict"])
    else:
        reader = _Reader(content)
        try:
            state = method.published_state(reader)
        except (KeyError, AttributeError, TypeError) as error:
            raise not_published(path, content, name) from error
        if unread := [str(key) for key in content if key not in reader.read]:
            rank_zero_warn(f"{path} holds more than {name} reads; passed over: {', '.join(unread[:8])}")
    _refuse_not_finite(state, str(path))
    _refuse_misfits(method, state, str(path))
    _resize_buffers(method, state)
    method.load_state_dict({**method.state_dict(), **state})
    method.origin = f"weights {path}"
    method.weight_files = _digests(path, method.published_weights)


def _refuse_misfits(method: Restorable, state: Mapping[str, Any], where: str) -> None:
    """Refuses what a method has no place for, what it misses, and values of another shape or kind."""
    trained = {key: p for key, p in method.named_parameters() if p.requires_grad}
    buffers = {key for key, _ in method.named_buffers() if not key.startswith(FROZEN)}
    known = {key for key in method.state_dict() if key in trained or key in buffers or key.startswith(MEMORY)}
    problems = [f"missing {key}" for key in trained if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in known and not key.startswith((MEMORY, FROZEN))]
    for key, value in state.items():
        expected = trained.get(key)
        if not isinstance(value, Tensor):
            problems.append(f"{key} is no tensor but a {type(value).__name__}")
        elif expected is not None and value.shape != expected.shape:
            problems.append(f"{key} has shape {tuple(value.shape)}, expected {tuple(expected.shape)}")
        elif expected is not None and not value.is_floating_point():
            problems.append(f"{key} holds {value.dtype}, expected floating-point numbers".replace("torch.", ""))
    if problems:
        raise WeightsError(f"{where} does not fit {type(method).__name__}: " + "; ".join(problems[:8]))


def _digests(path: str | Path, published: Mapping[str, Published]) -> dict[str, str]:
    """Returns the SHA-256 of the files that some weights are in."""
    try:
        files = [locate(path, published)]
    except WeightsError:  # a folder of several files
        files = sorted(file for file in Path(path).iterdir() if file.is_file())
    found = {}
    for file in files:
        with file.open("rb") as stream:
            found[str(file)] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
