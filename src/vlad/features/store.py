"""Files of tensors, one row per image: written whole, mapped into memory, checked when first read.

A file (a *shard*) is written once, under a temporary name, and never changed. So several processes write side by side
without a lock, and one that is killed loses no more than what it had not yet written.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import secrets
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vlad.files import write_atomic

__all__ = ["FeatureStore", "Row"]

_FORMAT = "1"
_SUFFIX = ".safetensors"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_IN_USE = 3600.0  # seconds in which a shard that was opened is not removed for others


class Row(NamedTuple):
    """Which tensor of which image.

    Attributes:
        tensor: What the tensor is, as a digest; see :class:`vlad.features.FeatureCache`.
        image: Digest of the image.
    """

    tensor: str
    image: str


class _Place(NamedTuple):
    shard: Path
    name: str
    number: int
    check: str


class FeatureStore:
    """The shards of one folder.

    Attributes:
        folder: Where they are.
        shard_size: Bytes that are collected before one is written.
        unwritten: Bytes that are collected so far.

    Examples:
        >>> import tempfile
        >>> store = FeatureStore(Path(tempfile.mkdtemp()))
        >>> store.add({Row("a", "x"): torch.ones(2)})
        >>> store.flush()
        >>> other = FeatureStore(store.folder)
        >>> other.refresh()
        True
        >>> other.get(Row("a", "x"))
        tensor([1., 1.])
    """

    def __init__(self, folder: Path, shard_size: int = 1 << 28) -> None:
        """Reads nothing yet.

        Args:
            folder: Where the shards are; made when the first is written.
            shard_size: Bytes that are collected before a shard is written.
        """
        self.folder, self.shard_size = folder, shard_size
        self._places: dict[Row, _Place] = {}
        self._known: set[Path] = set()
        self._files: dict[Path, dict[str, Tensor]] = {}
        self._checked: set[Row] = set()
        self._pending: dict[Row, Tensor] = {}  # all of one image's tensors have the sizes of the last one's
        self._sizes: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self.unwritten = 0
        self._listed = -1

    # -- reading -------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Takes in the shards that other processes have written since; returns whether there are any."""
        try:
            changed = self.folder.stat().st_mtime_ns
        except OSError:
            return False
        if changed == self._listed:
            return False
        self._listed = changed
        new = sorted(set(self.folder.glob(f"*{_SUFFIX}")) - self._known)
        for shard in new:
            self._index(shard)
        self._known.update(new)
        return bool(new)

    def _index(self, shard: Path) -> None:
        try:
            with safe_open(shard, framework="pt") as file:  # which checks the places of the tensors
                facts = file.metadata() or {}
            if facts.get("format") != _FORMAT:
                return
            rows = json.loads(facts["rows"])
            images = rows["images"]
            for number, (tensor, checks) in enumerate(zip(rows["tensors"], rows["checks"], strict=True)):
                for place, (image, check) in enumerate(zip(images, checks, strict=True)):
                    self._places.setdefault(Row(tensor, image), _Place(shard, str(number), place, check))
        except FileNotFoundError:  # removed to make room, by another process
            return
        except (SafetensorError, ValueError, KeyError, TypeError, OSError):
            self._drop(shard)

    def _drop(self, shard: Path) -> None:
        """Forgets and removes a damaged shard."""
        warnings.warn(f"cached features {shard} are damaged and are computed again", stacklevel=2)
        self._places = {row: place for row, place in self._places.items() if place.shard != shard}
        self._files.pop(shard, None)
        with suppress(OSError):
            shard.unlink(missing_ok=True)

    def get(self, row: Row) -> Tensor | None:
        """Returns a tensor on the CPU, or None where it is not there."""
        if row in self._pending:
            return self._pending[row]
        place = self._places.get(row)
        if place is None:
            return None
        try:
            if place.shard not in self._files:
                self._files[place.shard] = _mapped(place.shard)
                os.utime(place.shard)  # when it was last used
            found = self._files[place.shard][place.name][place.number]
        except FileNotFoundError:
            self._places.pop(row)
            return None
        except (ValueError, KeyError, OSError, IndexError):
            self._drop(place.shard)
            return None
        if row not in self._checked:
            if _check(row, found) != place.check:
                self._drop(place.shard)
                return None
            self._checked.add(row)
        return found

    # -- writing -------------------------------------------------------------------------------------------

    def add(self, rows: Mapping[Row, Tensor]) -> None:
        """Keeps tensors of one image; writes a shard when enough have come."""
        sizes = {row.tensor: (value.shape, value.dtype) for row, value in rows.items()}
        if sizes != self._sizes:
            self.flush()
        self._sizes = sizes
        self._pending.update(rows)
        self.unwritten += sum(value.nbytes for value in rows.values())
        if self.unwritten >= self.shard_size:
            self.flush()

    def flush(self) -> None:
        """Writes what is not yet written.

        Raises:
            OutputError: The disk is full, the folder read-only, and the like.
        """
        pending, self._pending, self.unwritten = self._pending, {}, 0
        if not pending:
            return
        tensors = list(dict.fromkeys(row.tensor for row in pending))
        images = list(dict.fromkeys(row.image for row in pending))
        columns = [[pending[Row(tensor, image)] for image in images] for tensor in tensors]
        checks = [
            [_check(Row(tensor, image), value) for image, value in zip(images, column, strict=True)]
            for tensor, column in zip(tensors, columns, strict=True)
        ]
        rows = {"tensors": tensors, "images": images, "checks": checks}
        content = save(
            {str(number): torch.stack(column) for number, column in enumerate(columns)},
            {"format": _FORMAT, "rows": json.dumps(rows, separators=(",", ":"))},
        )
        shard = self.folder / f"{secrets.token_hex(8)}{_SUFFIX}"

        def write(partial: Path) -> None:
            partial.write_bytes(content)

        write_atomic(shard, write)
        self._known.add(shard)
        for number, (tensor, column) in enumerate(zip(tensors, checks, strict=True)):
            for place, (image, check) in enumerate(zip(images, column, strict=True)):
                self._places[Row(tensor, image)] = _Place(shard, str(number), place, check)

    def close(self) -> None:
        """Writes what is not yet written and lets go of the files."""
        self.flush()
        self._files.clear()


def _mapped(shard: Path) -> dict[str, Tensor]:
    """Maps a shard's tensors into memory, without copying them as the safetensors library does row by row."""
    with shard.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    return {
        name: torch.frombuffer(
            content,
            dtype=_DTYPES[facts["dtype"]],
            count=math.prod(facts["shape"]),
            offset=start + facts["data_offsets"][0],
        ).view(facts["shape"])
        for name, facts in header.items()
        if name != "__metadata__"
    }


def _check(row: Row, value: Tensor) -> str:
    """Returns a digest of a tensor, of what it is and of whose."""
    digest = hashlib.blake2b(f"{row.tensor} {row.image} {value.dtype} {tuple(value.shape)}".encode(), digest_size=8)
    digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def used_bytes(root: Path) -> int:
    """Returns how much all shards below a folder take."""
    total = 0
    for shard in root.glob(f"*/*{_SUFFIX}"):
        with suppress(OSError):
            total += shard.stat().st_size
    return total


def make_room(root: Path, wanted: int, keep: Sequence[Path] = ()) -> int:
    """Removes the shards below a folder that were not used for longest, and none of the last hour.

    Args:
        root: The folder.
        wanted: Bytes to be freed.
        keep: Folders whose shards stay.

    Returns:
        Bytes that were freed.
    """
    found = []
    for shard in root.glob(f"*/*{_SUFFIX}"):
        with suppress(OSError):
            status = shard.stat()
            found.append((status.st_mtime, status.st_size, shard))
    freed, now = 0, time.time()
    for used, size, shard in sorted(found):
        if freed >= wanted or now - used < _IN_USE:
            break
        if shard.parent not in keep:
            with suppress(OSError):
                shard.unlink()
                freed += size
    return freed
