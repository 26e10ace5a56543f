"""Damage to bytes, the same for one seed: what disks, networks, editors and attackers do to a file."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

__all__ = ["MUTATIONS", "mutated"]

_HEADERS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0\0\x10JFIF",
    b"II*\0\x08\0\0\0",
    b"MM\0*",
    b"BM",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"GIF89a",
    b"PK\x03\x04",
    b"\x1f\x8b\x08",
    b"PAR1",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"{",
    b"[",
    b"\0" * 8,
    b"\x80\x02",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
)
_NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"999999999999999999999", b"1000000", b"0x10", b"true", b'"7"', b"", b"[]")


def _flip(data: bytearray, draw: np.random.Generator) -> bytes:
    for place in draw.integers(0, len(data), int(draw.integers(1, 5))):
        data[place] ^= 1 << int(draw.integers(0, 8))
    return bytes(data)


def _flip_early(data: bytearray, draw: np.random.Generator) -> bytes:
    """Flips bits where most formats keep sizes and offsets."""
    for place in draw.integers(0, min(len(data), 96), 2):
        data[place] ^= 1 << int(draw.integers(0, 8))
    return bytes(data)


def _truncate(data: bytearray, draw: np.random.Generator) -> bytes:
    return bytes(data[: int(draw.integers(0, len(data)))])


def _insert(data: bytearray, draw: np.random.Generator) -> bytes:
    place = int(draw.integers(0, len(data)))
    return bytes(data[:place]) + draw.bytes(int(draw.integers(1, 40))) + bytes(data[place:])


def _zero(data: bytearray, draw: np.random.Generator) -> bytes:
    place = int(draw.integers(0, len(data)))
    length = int(draw.integers(1, 1 + max(16, len(data) // 4)))
    part = data[place : place + length]
    data[place : place + length] = bytes(len(part))
    return bytes(data)


def _swap_header(data: bytearray, draw: np.random.Generator) -> bytes:
    header = _HEADERS[int(draw.integers(len(_HEADERS)))]
    return header + bytes(data[len(header) :])


def _repeat(data: bytearray, draw: np.random.Generator) -> bytes:
    first, last = sorted(int(place) for place in draw.integers(0, len(data), 2))
    return bytes(data[:last]) + bytes(data[first:last]) + bytes(data[last:])


def _number(data: bytearray, draw: np.random.Generator) -> bytes:
    """Writes another number over one that stands there as text; of a file without such, some bytes."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", bytes(data[:200_000])))
    if not found:
        return _flip(data, draw)
    match = found[int(draw.integers(len(found)))]
    return bytes(data[: match.start()]) + _NUMBERS[int(draw.integers(len(_NUMBERS)))] + bytes(data[match.end() :])


MUTATIONS: tuple[Callable[[bytearray, np.random.Generator], bytes], ...] = (
    *(_flip, _flip_early, _truncate, _insert, _zero, _swap_header, _repeat, _number),
)


def mutated(data: bytes, seed: int) -> bytes:
    """Returns damaged bytes that differ from the given ones; the kind of damage follows the seed."""
    draw = np.random.default_rng(seed)
    change = MUTATIONS[seed % len(MUTATIONS)]
    for _ in range(20):
        result = change(bytearray(data), draw)
        if result != data:
            return result
    return data[:-1]
