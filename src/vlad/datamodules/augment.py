"""Training-time augmentation of image and mask together, through albumentations."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vlad.errors import DataError, nearest

__all__ = ["build_augment"]


def build_augment(
    steps: Sequence[Mapping[str, Any]],
) -> Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]:
    """Builds a chain of albumentations transforms.

    Args:
        steps: One mapping per transform: ``name`` is its class in albumentations, the rest its arguments, such
            as ``{"name": "HorizontalFlip", "p": 0.5}``.

    Returns:
        A function of image (H, W, 3) uint8, mask (H, W) bool and a source of random numbers that returns both,
        changed alike.

    Raises:
        DataError: Unknown transform or argument.

    Examples:
        >>> flip = build_augment([{"name": "HorizontalFlip", "p": 1.0}])
        >>> random = np.random.default_rng(0)
        >>> image, mask = flip(np.zeros((2, 2, 3), np.uint8), np.array([[True, False], [False, False]]), random)
        >>> mask.tolist()
        [[False, True], [False, False]]
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the package index
    import albumentations

    transforms = []
    for step in steps:
        arguments = dict(step)
        name = str(arguments.pop("name", ""))
        cls = getattr(albumentations, name, None)
        if not (isinstance(cls, type) and issubclass(cls, albumentations.BasicTransform)):
            known = [known for known in dir(albumentations) if known[:1].isupper()]
            raise DataError(f"data.augment: albumentations has no transform '{name}'; {nearest(name, known)}")
        try:
            transforms.append(cls(**arguments))
        except (TypeError, ValueError) as error:
            raise DataError(f"data.augment: {name}: {str(error).splitlines()[0]}") from error
    chain = albumentations.Compose(transforms)

    def augment(image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        chain.set_random_seed(int(random.integers(2**32)))
        changed = chain(image=image, mask=mask.astype(np.uint8))
        return changed["image"], changed["mask"] > 0

    return augment
