"""Few-shot references, the same way for every method: a patch memory beside the zero-shot map."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlad.errors import MethodError
from vlad.memory import PatchMemory
from vlad.types import Batch

if TYPE_CHECKING:
    from vlad.methods.base import Method

__all__ = ["ReferenceMemory", "fit_references"]


class ReferenceMemory(PatchMemory):
    """A method's patch memory.

    Attributes:
        fitting: Whether references are being fitted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fitting = False

    @property
    def in_use(self) -> bool:
        """Whether patches are compared with references; a method that encodes less for zero-shot asks this."""
        return self.fitting or any(name.startswith("bank_") for name in self._buffers)  # no tensor is read: it exports


def fit_references(method: Method, batches: Iterable[Batch]) -> None:
    """Fills a method's memory from reference images; what was remembered before is forgotten.

    Args:
        method: The method.
        batches: Batches of normal images with ``image``, ``dataset`` and ``category``.

    Raises:
        MethodError: The method takes no references, or there is no image.
    """
    if not method.tags.takes_references:
        raise MethodError(f"{type(method).__name__} takes no reference images; leave out shots and references")
    memory = method.memory
    memory.clear()
    memory.fitting = True
    found: dict[str, list[tuple[Tensor, ...]]] = {}
    for batch in batches:
        levels = method.memory_levels(method.encode(batch["image"].to(method.device)))
        for row, (dataset, category) in enumerate(zip(batch["dataset"], batch["category"], strict=True)):
            found.setdefault(f"{dataset}/{category}", []).append(tuple(level[row].flatten(0, 1) for level in levels))
    memory.fitting = False
    if not found:
        raise MethodError("there are no reference images")
    for category, images in found.items():
        memory.add(category, tuple(torch.cat(level) for level in zip(*images, strict=True)))
