"""Few-shot references, the same way for every method: a patch memory in addition to the zero-shot map."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vlad.errors import MethodError
from vlad.memory import PatchMemory
from vlad.types import Batch

__all__ = ["ReferenceMemory"]


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
        """Whether patches are compared with references; for methods that encode less in zero-shot mode."""
        return self.fitting or any(name.startswith("bank_") for name in self._buffers)  # no tensor is read: it exports

    def fit_batches(self, batches: Iterable[Batch], levels_of: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        """Stores the patch tokens of reference images by category; replaces earlier ones.

        Args:
            batches: Batches of normal images with ``image``, ``dataset`` and ``category``.
            levels_of: Returns the patch tokens (B, h, w, D) of images per level.

        Raises:
            MethodError: There is no image.
        """
        self.clear()
        found: dict[str, list[tuple[Tensor, ...]]] = {}
        self.fitting = True
        try:
            for batch in batches:
                levels = levels_of(batch["image"])
                for row, (dataset, category) in enumerate(zip(batch["dataset"], batch["category"], strict=True)):
                    rows = tuple(level[row].flatten(0, 1) for level in levels)
                    found.setdefault(f"{dataset}/{category}", []).append(rows)
        finally:
            self.fitting = False
        if not found:
            raise MethodError("there are no reference images")
        for category, images in found.items():
            self.add(category, tuple(torch.cat(level) for level in zip(*images, strict=True)))
