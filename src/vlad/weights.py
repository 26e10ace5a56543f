"""Trained weights: published checkpoints in, ours in and out. Nothing is ever unpickled with code in it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlad.errors import WeightsError, nearest
from vlad.files import write_atomic

if TYPE_CHECKING:
    from vlad.methods.base import Method

__all__ = [
    "Published",
    "class_path_of",
    "describe",
    "export_weights",
    "find_checkpoint",
    "hyperparameters",
    "locate",
    "not_published",
    "read_file",
    "read_weights",
]


def class_path_of(cls: type) -> str:
    """Returns a class's import path."""
    return f"{cls.__module__}.{cls.__qualname__}"


def describe(method: Method) -> dict[str, str | int | None]:
    """Returns what a checkpoint says of itself: method, interface, and which frozen CLIP it belongs to."""
    from vlad import __version__

    return {
        "version": __version__,
        "api": method.api,
        "class_path": class_path_of(type(method)),
        "backbone": method.backbone.name,
        "pretrained": method.backbone.pretrained,
        "fingerprint": method.backbone.fingerprint(),
    }


@dataclass(frozen=True)
class Published:
    """A weights file that a method's authors have put on the Hugging Face hub.

    Attributes:
        repo: Owner and name.
        file: Path in it.
        sha256: The file's checksum.
        kind: What the repository is: ``model``, ``space`` or ``dataset``.
    """

    repo: str
    file: str
    sha256: str
    kind: str = "model"

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        folder = "" if self.kind == "model" else f"{self.kind}s/"
        return f"https://huggingface.co/{folder}{self.repo}/resolve/main/{self.file}"

    def fetch(self) -> Path:
        """Returns the file, from the hub's own cache where it is, else downloaded; its checksum is right.

        Raises:
            WeightsError: It cannot be had, or is another file than published.
        """
        from huggingface_hub import hf_hub_download

        try:
            found = hf_hub_download(
                self.repo, self.file, repo_type=self.kind, endpoint=os.environ.get("HF_ENDPOINT") or None
            )
        except Exception as error:  # the hub's client raises dozens of kinds, and its network library more
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(
                f"cannot download {self.url}: {cause}. Download it by hand and give the file: weights: "
                f"{Path(self.file).name}"
            ) from error
        digest = hashlib.sha256(Path(found).read_bytes()).hexdigest()
        if digest != self.sha256:
            raise WeightsError(
                f"{found} (from {self.url}) has the checksum {digest}, not the published {self.sha256}: it was damaged "
                "on the way or has been replaced; remove it and try again"
            )
        return Path(found)


def locate(name: str | Path, published: Mapping[str, Published]) -> Path:
    """Returns the file of some weights: a path, or the name of published ones, which are then fetched.

    Args:
        name: File, run folder, or name.
        published: A method's published weights by name.

    Raises:
        WeightsError: Neither a file nor a known name; or it cannot be fetched.
    """
    if not Path(name).exists():
        if str(name) in published:
            return published[str(name)].fetch()
        if published and Path(name).name == str(name) and not Path(name).suffix:
            raise WeightsError(f"weights '{name}' are neither a file nor published; {nearest(str(name), published)}")
    return find_checkpoint(name)


def find_checkpoint(path: str | Path) -> Path:
    """Returns the checkpoint file that a path names: itself, or the newest one in a run folder.

    Raises:
        WeightsError: Nothing is there, or the folder holds no checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("checkpoints/*.ckpt"), key=lambda file: file.stat().st_mtime)
        if not found:
            raise WeightsError(f"run folder {path} holds no checkpoints/*.ckpt; run vlad fit first")
        return found[-1]
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    return path


def read_file(path: str | Path) -> Mapping[str, Any]:
    """Reads a ``.safetensors`` file or a torch file, the latter with ``weights_only=True``.

    Raises:
        WeightsError: Missing, damaged, or a pickle that holds more than tensors and plain values.
    """
    path = find_checkpoint(path)
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it holds Python objects besides tensors, which could run code when loaded; "
            "ask its author for a plain state dict or safetensors"
        ) from error
    except Exception as error:  # zip, safetensors and torch each raise their own kinds on damaged files
        raise WeightsError(f"{path} cannot be read as weights ({type(error).__name__}); is it complete?") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not named tensors")
    return content


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    """Reads named tensors, or what :func:`export_weights` wrote as the checkpoint it was."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        about = (file.metadata() or {}).get("vlad")
    if about is None:
        return tensors
    record = json.loads(about)
    return {"vlad": record["vlad"], "hyper_parameters": record["hyper_parameters"], "state_dict": tensors}


def export_weights(source: str | Path, target: str | Path) -> Path:
    """Writes what a run has trained as safetensors, with its method, hyper-parameters and CLIP inside.

    Args:
        source: A run folder or one of vlad's checkpoints.
        target: File ending in ``.safetensors``.

    Returns:
        The file, which ``weights:`` and :func:`vlad.load` take.

    Raises:
        WeightsError: No checkpoint of vlad's, or another ending.
    """
    from safetensors.torch import save_file

    target = Path(target)
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target}: give a file ending in .safetensors")
    checkpoint = read_file(source)
    if "vlad" not in checkpoint:
        raise WeightsError(f"{source} is no vlad checkpoint")
    tensors = {
        key: value.contiguous() for key, value in checkpoint["state_dict"].items() if not key.startswith("backbone.")
    }
    about = {"vlad": dict(checkpoint["vlad"]), "hyper_parameters": hyperparameters(checkpoint)}
    return write_atomic(target, lambda partial: save_file(tensors, partial, {"vlad": json.dumps(about)}))


def hyperparameters(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the constructor arguments that a checkpoint saved, without Lightning's own entries."""
    return {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if not key.startswith("_")}


def not_published(path: str | Path, content: Mapping[str, Any], method: str) -> WeightsError:
    """Returns the error of a file that is in no format of a method."""
    keys = ", ".join(map(str, list(content)[:6]))
    return WeightsError(
        f"{path} is neither a vlad checkpoint nor in the published format of {method} (its top-level keys: {keys})"
    )


def read_weights(path: str | Path, method: Method) -> dict[str, Tensor]:
    """Reads a method's trained parameters from its authors' file or from one of vlad's checkpoints.

    Args:
        path: A file, or a run folder.
        method: The method that will take them; it knows its authors' names.

    Returns:
        Tensors by the names of the method's own parameters.

    Raises:
        WeightsError: Unreadable, or in neither format.
    """
    content = read_file(path)
    if "vlad" in content:
        return {key: value for key, value in content["state_dict"].items() if not key.startswith("backbone.")}
    try:
        return method.published_state(content)
    except (KeyError, AttributeError, TypeError) as error:
        raise not_published(path, content, type(method).__name__) from error
