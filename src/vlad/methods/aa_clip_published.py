"""The files of AA-CLIP's published code: one of the text side, and one of the image side for each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vlad.checkpoint import hyperparameters, read_file
from vlad.errors import WeightsError
from vlad.published import locate

__all__ = ["published_state", "read_published", "read_settings"]

_TEXT, _IMAGE = "text_adapter", "image_adapter"


def read_published(path: str | Path) -> Mapping[str, Any]:
    """Reads the authors' two files as one mapping, or any other weights as they are.

    Args:
        path: Folder with ``text_adapter.pth`` and one ``image_adapter_*.pth``; or either file, with the other beside
            it; or what :func:`vlad.checkpoint.read_file` reads, such as one file with both.

    Returns:
        ``text_adapter`` and ``image_adapter``, named tensors each; or the content of another file.

    Raises:
        WeightsError: A file is missing or damaged, or there are several image sides.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    text, images = folder / f"{_TEXT}.pth", sorted(folder.glob(f"{_IMAGE}*.pth"))
    if Path(path).name.startswith(_IMAGE) and Path(path) in images:
        images = [Path(path)]
    elif Path(path) not in {folder, text} or not text.is_file():
        return read_file(locate(path, {}))
    if len(images) != 1:
        found = ", ".join(one.name for one in images) or "none"
        raise WeightsError(f"beside {text} must be one {_IMAGE}_*.pth, and there is {found}; give the file itself")
    parts = {**read_file(text), **read_file(images[0])}
    return {key: parts[key] for key in (_TEXT, _IMAGE) if key in parts}


def read_settings(file: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the numbers of adapters, and whether projections have an activation, off a published file or our own."""
    if "vlad" in file:
        saved = hyperparameters(file)
        return {key: saved[key] for key in ("text_adapters", "image_adapters", "relu") if saved.get(key) is not None}
    text, image = file.get(_TEXT), file.get(_IMAGE)
    if not isinstance(text, Mapping) or not isinstance(image, Mapping):
        return {}  # loading tells what is wrong with it
    return {
        "text_adapters": len(text) - 1,  # the last one is the projection
        "image_adapters": sum(key.startswith("layer_adapters.") for key in image),
        "relu": "det_proj.fc.0.weight" in image,
    }


def published_state(file: Mapping[str, Any]) -> dict[str, Tensor]:
    """Maps the published names to ours.

    Raises:
        KeyError: It is no file of AA-CLIP's.
    """
    text, image = file[_TEXT], file[_IMAGE]
    count = len(text) - 1
    state = {f"text_adapters.{n}.weight": text[f"{n}.fc.0.weight"] for n in range(count)}
    state["text_head.weight"] = text[f"{count}.fc.0.weight"]
    for key, value in image.items():
        part, _, rest = key.partition(".")
        number = rest.partition(".")[0]
        ours = {"layer_adapters": f"image_adapters.{number}", "seg_proj": f"heads.{number}", "det_proj": "image_head"}
        state[f"{ours[part]}.weight"] = value
    return {name: value.float() for name, value in state.items()}
