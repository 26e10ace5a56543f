"""Files that ``torch.save`` wrote, read without running code and without unfolding to more than they hold."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["TorchFileError", "load_torch"]

_SLACK = 1 << 20  # bytes of a zip archive's own tables, at most


class TorchFileError(ValueError):
    """A file that is refused for what it is, before torch reads it."""


def load_torch(path: str | Path) -> object:
    """Reads a file of ``torch.save`` on the CPU with ``weights_only=True``.

    Raises:
        TorchFileError: It is a TorchScript archive; or packed, so that a small file may stand for more than memory
            holds (``torch.save`` packs nothing); or a tensor repeats its few values.
        Exception: Whatever torch raises at a damaged file; ``pickle.UnpicklingError`` where it holds code.
    """
    _refuse_packed(Path(path))
    content = torch.load(path, map_location="cpu", weights_only=True)
    for tensor in _tensors(content, set()):
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise TorchFileError(f"a tensor of shape {tuple(tensor.shape)} has fewer values in the file")
    return content


def _refuse_packed(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any("/code/" in member.filename for member in members):
        raise TorchFileError("it is a TorchScript archive, which holds code; save its state dict as safetensors")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise TorchFileError("it is a packed archive, which torch.save does not write")
    if sum(member.file_size for member in members) > path.stat().st_size + _SLACK:
        raise TorchFileError("its parts are larger than the file")


def _tensors(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Yields the tensors of lists and mappings, each container once: they may contain themselves."""
    if isinstance(value, Tensor):
        if value.layout is torch.strided:
            yield value
    elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(one, seen)
