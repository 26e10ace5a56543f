"""Weights files of frozen encoders: read without running code, and loaded whole or not at all."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vlad.errors import BackboneError
from vlad.torch_files import TorchFileError, load_torch

__all__ = ["RANDOM", "Source", "find_in_folder", "fingerprint", "load_all", "read_tensors"]

RANDOM = "random"
"""The value of ``pretrained`` that asks for random weights."""

_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_NAMED = 4  # tensors named in an error
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Source:
    """Where an encoder's weights come from.

    Attributes:
        label: Tag, hub id, file name, or ``random``.
        file: The file that was read, if one was.
    """

    label: str
    file: Path | None = None

    @cached_property
    def sha256(self) -> str:
        """Checksum of the file, computed when first asked for; "" without a file."""
        if self.file is None:
            return ""
        with self.file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def __str__(self) -> str:
        return self.label


def find_in_folder(folder: Path, preferred: tuple[str, ...]) -> Path:
    """Returns the weights file of a folder: the first of the preferred names, else the only one there is.

    Raises:
        BackboneError: None is there, or it is unclear which.
    """
    for name in preferred:
        if (folder / name).is_file():
            return folder / name
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and not file.name.startswith("."))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:4])
        raise BackboneError(f"{folder} holds several weights files ({names}); keep one, or call it {preferred[0]}")
    raise BackboneError(
        f"{folder} holds no weights file ({preferred[0]}); put it there, or give pretrained: {RANDOM} for random "
        "weights in experiments"
    )


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads the named tensors of a weights file on the CPU; pickled code is refused.

    A state dict inside ``state_dict`` or ``model``, and names that all begin with ``module.``, are unwrapped.

    Args:
        path: A ``.safetensors`` file or one that ``torch.save`` wrote.

    Raises:
        BackboneError: Missing, damaged, a pickle with code in it, a TorchScript archive, or no named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise BackboneError(f"weights file {path} does not exist")
    content = _read(path)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise BackboneError(f"{path} holds a {type(content).__name__}, not named tensors; give a state dict")
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange or not content:
        what = f"also holds what is no tensor ({_some(strange)})" if strange else "holds no tensors"
        raise BackboneError(f"{path} {what}; give a plain state dict or safetensors")
    prefix = "module." if all(str(key).startswith("module.") for key in content) else ""
    return {str(key).removeprefix(prefix): value for key, value in content.items()}


def _read(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return load_torch(path)
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{path} is refused: it holds Python objects besides tensors, which could run code when loaded; "
            "give a plain state dict or safetensors"
        ) from error
    except TorchFileError as error:
        raise BackboneError(f"{path} is refused: {error}") from error
    except Exception as error:  # zip, safetensors and torch each raise their own kinds on damaged files
        raise BackboneError(f"{path} cannot be read as weights ({type(error).__name__}); is it complete?") from error


def load_all(module: nn.Module, tensors: Mapping[str, Tensor], where: str | Path, what: str) -> None:
    """Loads named tensors into a module: each of its weights is there, fits, and is finite; nothing is left over.

    Half-precision files are cast to the module's dtype, which is exact; integers are refused for real weights.

    Args:
        module: Takes the tensors.
        tensors: By the module's own names.
        where: The file, for errors.
        what: The encoder's name, for errors.

    Raises:
        BackboneError: Names the tensors that are missing, unknown, of another shape or kind, or not finite.
    """
    own = module.state_dict()
    both = [key for key in own if key in tensors]
    faults = [
        ("lacks", [key for key in own if key not in tensors]),
        ("has unknown", [key for key in tensors if key not in own]),
        (
            "has other shapes of",
            [_shapes(key, tensors[key], own[key]) for key in both if tensors[key].shape != own[key].shape],
        ),
        (
            "has no real numbers in",
            [f"{key} ({tensors[key].dtype})" for key in both if _is_real(own[key]) and not _is_real(tensors[key])],
        ),
    ]
    found = [f"it {verb} {_some(names)}" for verb, names in faults if names]
    if found:
        raise BackboneError(f"{where} does not fit '{what}': {'; '.join(found)}; give the weights of this very model")
    module.load_state_dict(tensors, strict=True)
    broken = [key for key, value in module.state_dict().items() if not _is_finite(value)]
    if broken:
        raise BackboneError(f"{where} is damaged: NaN or infinite values in {_some(broken)}; fetch the file again")


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; the sum settles it mostly, without a second tensor of that size."""
    return not _is_real(tensor) or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _shapes(key: str, theirs: Tensor, ours: Tensor) -> str:
    return f"{key} {tuple(theirs.shape)} instead of {tuple(ours.shape)}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def fingerprint(module: nn.Module, whole: Iterable[Tensor]) -> str:
    """Returns a short hash of a module's weights; the same on any device and in any number of threads.

    Every weight goes in with its name, shape and the sum of its bit patterns, which is exact; a few go in whole. Asked
    for again it costs nothing, unless a weight was moved or written since (torch does not count what is written through
    ``Tensor.data``).

    Args:
        module: Its parameters and saved buffers are hashed.
        whole: Tensors of which every value and its place counts.

    Returns:
        16 hexadecimal digits.
    """
    state = module.state_dict()
    now = tuple((value.data_ptr(), value._version) for value in state.values() if not value.is_inference())
    if module in _FINGERPRINTS and len(now) == len(state) and _FINGERPRINTS[module][0] == now:
        return _FINGERPRINTS[module][1]
    digest = hashlib.sha256()
    for key, value in state.items():
        digest.update(f"{key}{tuple(value.shape)}{_bit_sum(value)}".encode())
    for value in whole:
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    _FINGERPRINTS[module] = (now, digest.hexdigest()[:16])
    return _FINGERPRINTS[module][1]


# module -> where its weights lie and how often they were written, and what they came to
_FINGERPRINTS: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()


def _bit_sum(tensor: Tensor) -> int:
    """Sums float32 bit patterns as integers: unlike a sum of floats, the same in any order."""
    flat = tensor.detach().flatten()
    return sum(int(part.float().view(torch.int32).sum(dtype=torch.int64)) for part in flat.split(_CHUNK))
