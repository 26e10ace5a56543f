"""What a kind of file is: how a good one is made, how it is read, and when the result is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faults.judge import WrongError

__all__ = ["Kind", "Read", "pixels", "require"]

Read = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        make: Writes a good file, and what it needs, into a folder; returns it.
        read: Reads it; raises WrongError where the result is wrong.
        digest: Whether the file carries a digest, so that all damage is noticed.
        quick: Whether a case takes a few ms; of others a quarter as many are tried.
    """

    make: Callable[[Path], Path]
    read: Read
    digest: bool = False
    quick: bool = True


def require(holds: object, what: str) -> None:
    if not holds:
        raise WrongError(what)


def pixels(size: tuple[int, int] = (40, 36)) -> np.ndarray:
    rows, columns = np.mgrid[: size[1], : size[0]]
    noise = np.random.default_rng(5).integers(0, 40, (size[1], size[0], 3))
    return (np.stack([rows * 4, columns * 4, rows + columns], 2) + noise).clip(0, 255).astype(np.uint8)
