"""Archives of ``torch.export``: opened where nothing in them can run code, which torch itself does not see to."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import torch

from vlad.errors import WeightsError

__all__ = ["load_program"]

_PLAIN = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/[^/]+\.json|"
    r"data/(weights/(weight_\d+|[^/]+\.json)|constants/(tensor_\d+|[^/]+\.json)|sample_inputs/[^/]+\.pt))"
)


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Loads an archive that holds a graph, tensors as bytes, and no pickle that could run code.

    Raises:
        WeightsError: Something else is in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            strange = next((name for name in archive.namelist() if not _is_plain(archive, name)), None)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path} cannot be read as an archive of torch.export: {error}") from error
    if strange is not None:
        raise WeightsError(f"{path} is refused: {strange} in it could run code when loaded; export again")
    return torch.export.load(path)


def _is_plain(archive: zipfile.ZipFile, name: str) -> bool:
    if not _PLAIN.fullmatch(name):
        return False
    if name.endswith(".pt"):  # example inputs, which torch would unpickle with code and all
        try:
            torch.load(io.BytesIO(archive.read(name)), weights_only=True)
        except Exception:  # pickle, zip and torch each raise their own kinds
            return False
    if name.endswith(".json") and "/data/" in name:
        tensors = json.loads(archive.read(name))["config"].values()
        return all(
            not tensor["use_pickle"] and re.match(r"(weight|tensor)_", tensor["path_name"]) for tensor in tensors
        )
    return True
