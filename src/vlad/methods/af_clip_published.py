"""What AF-CLIP's authors publish: learned words, and an attention layer as a pickled module, read without its class."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlad.checkpoint import hyperparameters, read_file
from vlad.errors import WeightsError
from vlad.published import InRepository, Published, find_checkpoint, locate
from vlad.torch_files import TorchFileError, load_torch

__all__ = ["PUBLISHED", "published_state", "read_published", "read_settings"]

_PROMPT, _ADAPTOR = "_prompt.pt", "_adaptor.pt"


def _published(part: str, blobs: Mapping[str, str]) -> Mapping[str, Published]:
    return {
        name: InRepository(
            "Faustinaqq/AF-CLIP",
            f"weight/{name}{part}",
            sha256="",
            commit="bb7edec4128a76f29cb573cd3002538bf250b2fe",
            blob=blob,
        )
        for name, blob in blobs.items()
    }


PUBLISHED = _published(
    _PROMPT,
    {"mvtec": "9d52021f48946d3fe9e6b1780f120137adfb9b82", "visa": "e05bee61b1f26e085362298be63bc1c4cb01311b"},
)
"""The authors' learned words by the set that they were trained on; each has an attention layer beside it."""

_ADAPTORS = _published(
    _ADAPTOR,
    {"mvtec": "bfb640436055e9140b843520cc07dd354d599e0d", "visa": "17e206c114b9dc6f4c5aa1b5706ff54240c50ddd"},
)

_MODULES = (  # names in the pickle; none of these classes is looked up
    *(f"clip.adaptor.{name}" for name in ("Adaptor", "BasicTransformerBlock", "CrossAttention")),
    *(f"torch.nn.modules.{name}" for name in ("container.Sequential", "dropout.Dropout", "linear.Linear")),
    "torch.nn.modules.normalization.LayerNorm",
)
_NAMES = {  # theirs → ours
    "state_prompt_embedding": "words",
    **{f"adaptor.attention.norm.{leaf}": f"adaptor.norm.{leaf}" for leaf in ("weight", "bias")},
    **{f"adaptor.attention.attn.to_{part}.weight": f"adaptor.to_{part}.weight" for part in "qkv"},
    **{f"adaptor.attention.attn.to_out.0.{leaf}": f"adaptor.to_out.{leaf}" for leaf in ("weight", "bias")},
}


class _Part:
    """Stands for any module of the pickle: it takes the saved attributes, and nothing of a class is run."""


def read_published(path: str | Path) -> Mapping[str, Any]:
    """Reads the authors' weights as one mapping, or any other weights as they are.

    Args:
        path: Name of published weights; a folder with ``*_prompt.pt`` and ``*_adaptor.pt``, or either file, with the
            other beside it; or what :func:`vlad.checkpoint.read_file` reads.

    Returns:
        ``state_prompt_embedding`` and ``adaptor.*``, or the content of another file.

    Raises:
        WeightsError: A file is missing, damaged, or holds more than modules of tensors; or a folder holds several.
    """
    if not Path(path).exists() and str(path) in PUBLISHED:
        return _read_pair(PUBLISHED[str(path)].fetch(), _ADAPTORS[str(path)].fetch())
    found = sorted(Path(path).glob(f"*{_PROMPT}"))
    if len(found) > 1:
        raise WeightsError(f"{path} holds several weights: {', '.join(one.name for one in found)}; give one of them")
    file = found[0] if found else locate(path, PUBLISHED)
    for own, other in ((_PROMPT, _ADAPTOR), (_ADAPTOR, _PROMPT)):
        if file.name.endswith(own):
            twin = find_checkpoint(file.with_name(file.name.removesuffix(own) + other))
            return _read_pair(file, twin) if own == _PROMPT else _read_pair(twin, file)
    return read_file(file)


def _read_pair(prompt: Path, adaptor: Path) -> dict[str, Tensor]:
    words = _load(prompt)
    if not isinstance(words, Tensor):
        raise WeightsError(f"{prompt} holds a {type(words).__name__}, not the learned words of AF-CLIP")
    # torch's own restricted reader: besides tensors it makes objects of the one class given for these names.
    with torch.serialization.safe_globals([(_Part, name) for name in _MODULES]):
        module = _load(adaptor)
    state = _tensors(module) if isinstance(module, _Part) else {}
    return {"state_prompt_embedding": words.detach(), **{f"adaptor.{key}": value for key, value in state.items()}}


def _load(file: Path) -> Any:
    try:
        return load_torch(file)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file} is refused: it holds other Python objects than the modules of AF-CLIP, which could run code when "
            "loaded; save its tensors as safetensors, named state_prompt_embedding and adaptor.attention.*"
        ) from error
    except TorchFileError as error:
        raise WeightsError(f"{file} is refused: {error}") from error
    except Exception as error:  # zip and torch each raise their own kinds on damaged files
        raise WeightsError(f"{file} cannot be read as weights ({type(error).__name__}); is it complete?") from error


def _tensors(part: Any, prefix: str = "") -> dict[str, Tensor]:
    """Returns the parameters of a module that was read as attributes alone, by their dotted names."""
    attributes = vars(part)
    found = {
        prefix + name: value.detach() for name, value in attributes.get("_parameters", {}).items() if value is not None
    }
    for name, child in attributes.get("_modules", {}).items():
        found |= _tensors(child, f"{prefix}{name}.")
    return found


def read_settings(file: Mapping[str, Any], heads: int) -> dict[str, Any]:
    """Reads the number of words and the width of a head off the shapes of a released file, or off our own."""
    if "vlad" in file:
        saved = hyperparameters(file)
        return {key: saved[key] for key in ("length", "head_width") if saved.get(key) is not None}
    words, queries = file.get("state_prompt_embedding"), file.get("adaptor.attention.attn.to_q.weight")
    if not isinstance(words, Tensor) or not isinstance(queries, Tensor):
        return {}  # loading tells what is wrong with it
    return {"length": words.shape[-2], "head_width": len(queries) // heads}


def published_state(file: Mapping[str, Any]) -> dict[str, Tensor]:
    """Maps the released names to ours.

    Raises:
        KeyError: It is no file of AF-CLIP's.
    """
    state = {ours: file[theirs].float() for theirs, ours in _NAMES.items()}
    return {**state, "words": state["words"].flatten(0, -2)}
