"""What two parts of a run have in common: the same image by content, or images of related data sets."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlad.datamodules.catalog import get_record, list_datasets
from vlad.datamodules.image_files import printable
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

__all__ = ["file_digest", "find_overlap", "image_digest", "known_overlaps", "refuse_overlap", "shared_rows"]


def file_digest(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would be waited for
            raise DataError(f"cannot read image {printable(str(path))} (not a regular file); replace it or remove it")
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        cause = error.strerror or error
        raise DataError(f"cannot read image {printable(str(path))} ({cause}); replace it or remove it") from error


def image_digest(image: Tensor) -> bytes:
    """Returns what tells a normalised image (3, H, W) from others, whatever file it came from."""
    import torch

    content = image.detach().cpu().contiguous().flatten().view(torch.uint8)  # numpy knows no bfloat16
    return hashlib.blake2b(content.numpy().data, digest_size=16).digest()


def _middle(path: str, length: int = 4096) -> bytes:
    """Returns some bytes from the middle of a file; none where it cannot be read, which is told where it is hashed."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - length) // 2)
            return file.read(length)
    except OSError:
        return b""


def shared_rows(first: pd.DataFrame, second: pd.DataFrame) -> list[tuple[int, int]]:
    """Returns which rows of two indices are the same image by content, as pairs of positions.

    Only files whose size occurs in both are opened, and of those only the ones with a like middle are read whole: files
    without compression are all of one size. Images of one file are told apart by their row crop and frame.
    """
    if first.empty or second.empty:
        return []
    by_size: list[dict[int, list[int]]] = []
    for frame in (first, second):
        sizes: dict[int, list[int]] = defaultdict(list)
        for position, path in enumerate(frame["image_path"]):
            try:
                status = os.stat(path)
            except OSError:
                continue  # told where it is decoded
            if stat.S_ISREG(status.st_mode):
                sizes[status.st_size].append(position)
        by_size.append(sizes)
    digests: dict[str, str] = {}
    middles: dict[str, bytes] = {}

    def by_middle(frame: pd.DataFrame, positions: list[int]) -> dict[bytes, list[int]]:
        found: dict[bytes, list[int]] = defaultdict(list)
        for position in positions:
            path = str(frame["image_path"].iloc[position])
            if path not in middles:
                middles[path] = _middle(path)
            found[middles[path]].append(position)
        return found

    def identity(frame: pd.DataFrame, position: int) -> tuple[str, str, int]:
        row = frame.iloc[position]
        path = str(row["image_path"])
        if path not in digests:
            digests[path] = file_digest(path)
        return digests[path], str(row["row_crop"]), int(row["frame"])

    pairs = []
    for size in by_size[0].keys() & by_size[1].keys():
        one, other = by_middle(first, by_size[0][size]), by_middle(second, by_size[1][size])
        for middle in one.keys() & other.keys():
            known = {identity(first, position): position for position in one[middle]}
            for position in other[middle]:
                found = known.get(identity(second, position))
                if found is not None:
                    pairs.append((found, position))
    return sorted(pairs)


def find_overlap(first: pd.DataFrame, second: pd.DataFrame) -> list[tuple[str, str]]:
    """Returns the images that two indices have in common by content, as pairs of paths."""
    paths = [frame["image_path"].tolist() for frame in (first, second)]
    return sorted((paths[0][one], paths[1][other]) for one, other in shared_rows(first, second))


def refuse_overlap(parts: Mapping[str, pd.DataFrame], pairs: Sequence[tuple[str, str]], *, allow: bool) -> list[str]:
    """Refuses images that are in two parts, or tells of them where that is allowed.

    Args:
        parts: Index by part: ``train``, ``val``, ``references``, ``test``, ``predict``.
        pairs: Which parts are compared.
        allow: Whether an overlap is told instead of refused.

    Returns:
        A line for each overlap that is allowed.

    Raises:
        DataError: Two parts share images.
    """
    told = []
    for one, other in pairs:
        if one not in parts or other not in parts:
            continue
        found = find_overlap(parts[one], parts[other])
        if not found:
            continue
        text = f"{len(found)} images are in data.{one} and in data.{other} (first: {found[0][0]} and {found[0][1]})"
        if not allow:
            raise DataError(f"{text}: results would mean nothing; take them out, or give --allow-overlap")
        told.append(text)
    return told


def known_overlaps(part: str, tested: Sequence[str], trained: Sequence[str]) -> list[str]:
    """Returns a line for each tested data set that is known to share images or objects with one trained on.

    Args:
        part: What is scored: ``test`` or ``val``.
        tested: Names of its data sets; other names have no effect.
        trained: Likewise.
    """
    known = set(list_datasets())
    overlaps = {name: get_record(name).overlaps for name in tested if name in known}
    return [
        f"{part} on {name}, train on {other}: {found[other]}"
        for name, found in overlaps.items()
        for other in trained
        if other in found
    ]
