"""Text of classes, encoded once and kept outside the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vlad.types import map_tensors

__all__ = ["TextCache", "stack_texts"]


def stack_texts(texts: Sequence[Any]) -> Any:
    """Stacks the texts of single images, trees of tensors of one shape, to a batch."""
    return map_tensors(lambda *parts: torch.stack(parts), *texts)


class TextCache:
    """What a method makes of class names, remembered: a tree of tensors per class, without gradients."""

    def __init__(self, encode: Callable[[str], Any], stack: Callable[[Sequence[Any]], Any] = stack_texts) -> None:
        """Takes the functions that encode one class and that join the classes of a batch."""
        self._encode, self._stack = encode, stack
        self._known: dict[str, Any] = {}

    def __call__(self, class_names: Sequence[str], device: torch.device) -> Any:
        """Returns the texts of images (B, …), each class encoded once, in float32 whatever the autocast."""
        for name in dict.fromkeys(class_names):
            if name not in self._known:
                # Outside inference mode, since what is remembered must serve training too.
                with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
                    self._known[name] = self._encode(name)
        return self._stack([map_tensors(lambda t: t.to(device), self._known[name]) for name in class_names])

    def clear(self) -> None:
        """Forgets everything, for when what it was made with has changed."""
        self._known.clear()
