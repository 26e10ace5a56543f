"""What a panel is drawn from, in one small file per image: it waits there until the run's scale is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vlad.drawing.panel import Box, Panel
from vlad.drawing.scale import Scale
from vlad.files import write_atomic

__all__ = ["Preview", "load_preview", "preview_file", "save_preview"]

_CODES = 65535


def preview_file(folder: Path, name: str) -> Path:
    """Returns the file of the preview of an image, in one flat folder."""
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"


@dataclass(frozen=True)
class Preview:
    """What the panel of an image is drawn from.

    Attributes:
        name: Where the panel goes, below the folder of heat maps, without suffix.
        title: Which image it is.
        caption: Score, label, decision.
        image: The image (h, w, 3), uint8.
        maps: Its maps (H, W) by name, at most as large as the image here; the last, named "", is the final one.
        mask: Ground truth (h, w), bool, or None.
        regions: Boxes of a decision's regions, or None.
        scale: The scale of the decision, or None for the run's own.
    """

    name: str
    title: str
    caption: str
    image: np.ndarray
    maps: dict[str, np.ndarray]
    mask: np.ndarray | None = None
    regions: list[Box] | None = None
    scale: Scale | None = field(default=None)

    def panel(self) -> Panel:
        """Returns what to draw."""
        earlier = {name: values for name, values in self.maps.items() if name}
        image = Image.fromarray(self.image)
        return Panel(self.title, self.caption, image, self.maps[""], self.mask, earlier, self.regions)


def save_preview(path: Path, preview: Preview) -> None:
    """Writes a preview; the file is whole or not there.

    Maps take two bytes a pixel; values move by at most 1/131,068 of their map's range.
    """
    facts: dict[str, Any] = {"name": preview.name, "title": preview.title, "caption": preview.caption}
    facts |= {"regions": preview.regions, "scale": preview.scale.to_dict() if preview.scale else None}
    arrays, ranges = {"image": preview.image}, {}
    if preview.mask is not None:
        arrays["mask"] = preview.mask
    for number, (name, values) in enumerate(preview.maps.items()):
        seen = np.isfinite(values)
        low, high = (float(values[seen].min()), float(values[seen].max())) if seen.any() else (0.0, 0.0)
        step = (high - low) / (_CODES - 1) or 1.0
        arrays[f"map{number}"] = np.where(seen, 1 + np.rint((np.where(seen, values, low) - low) / step), 0).astype(
            np.uint16
        )
        ranges[name] = (low, step)
    facts["maps"] = ranges
    # No npz: numpy parses its headers as Python, which now and then fails in several threads at once (CPython 3.11)
    arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    text = json.dumps(facts)
    content = save(arrays, {"facts": text, "digest": _digest(text, arrays)})

    def write(partial: Path) -> None:
        partial.write_bytes(content)

    write_atomic(path, write)


def _digest(facts: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, values in sorted(arrays.items()):
        digest.update(f"{name}{values.dtype}{values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def load_preview(path: Path) -> Preview:
    """Reads a preview.

    Raises:
        ValueError: It is damaged.
        OSError: It cannot be read.
    """
    if not path.is_file():
        raise OSError("it is no regular file")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if _digest(metadata["facts"], arrays) != metadata["digest"]:
            raise ValueError("the digest does not fit")
        facts = json.loads(metadata["facts"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
    maps = {}
    for number, (name, (low, step)) in enumerate(facts["maps"].items()):
        codes = arrays[f"map{number}"]
        maps[name] = np.where(codes, low + (codes.astype(np.float64) - 1) * step, -np.inf).astype(np.float32)
    scale = Scale.of_dict(facts["scale"]) if facts["scale"] else None
    regions = facts["regions"] and [tuple(box) for box in facts["regions"]]
    image, mask = arrays["image"], arrays.get("mask")
    return Preview(facts["name"], facts["title"], facts["caption"], image, maps, mask, regions, scale)
