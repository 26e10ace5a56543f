"""Little data sets of noise, written by the tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_picture(path: Path, size: tuple[int, int] = (40, 36), *, seed: int = 0, mode: str = "RGB") -> None:
    """Writes a picture of seeded noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def write_mask(path: Path, size: tuple[int, int] = (40, 36), value: int = 255) -> None:
    """Writes a mask with a rectangle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    mask[8:20, 10:26] = value
    Image.fromarray(mask).save(path)


def write_mvtec(root: Path, categories: tuple[str, ...] = ("bottle", "metal_nut"), *, count: int = 3) -> Path:
    """Writes a small tree in MVTec AD's layout; returns its root."""
    for number, category in enumerate(categories):
        for i in range(count):
            write_picture(root / category / "train" / "good" / f"{i:03}.png", seed=100 * number + i)
            write_picture(root / category / "test" / "good" / f"{i:03}.png", seed=100 * number + 10 + i)
            write_picture(root / category / "test" / "broken" / f"{i:03}.png", seed=100 * number + 20 + i)
            write_mask(root / category / "ground_truth" / "broken" / f"{i:03}_mask.png")
    return root
