"""What is known of an encoder by its name alone, before any of its weights are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vlad.encoders.protocol import patch_grid
from vlad.methods.arguments import init_parameters

__all__ = ["EncoderSizes", "default_image_size", "known_sizes", "refuse_image_size", "with_image_size"]

_TINY = Path(__file__).parents[1] / "clip" / "vlad_tiny" / "open_clip_config.json"


class EncoderSizes(NamedTuple):
    """Sizes of an encoder's images.

    Attributes:
        patch: Side of a patch in pixels.
        native: Image side the weights were made for.
    """

    patch: int
    native: int


def known_sizes(backbone: Any) -> EncoderSizes | None:
    """Returns an encoder's sizes as its name or folder tells them.

    Args:
        backbone: As for :func:`vlad.encoders.load_encoder`.

    Returns:
        The sizes; None where only loading it would tell.
    """
    if not isinstance(backbone, str):
        patch, native = (getattr(backbone, name, None) for name in ("patch_size", "native_size"))
        return EncoderSizes(patch, native) if isinstance(patch, int) and isinstance(native, int) else None
    if backbone == "vlad-tiny":
        return _of_config(_TINY)
    if backbone.startswith("local-dir:"):
        return _of_config(Path(backbone.removeprefix("local-dir:")) / "open_clip_config.json")
    if ":" in backbone:
        return None
    import open_clip

    return _of_tower((open_clip.get_model_config(backbone) or {}).get("vision_cfg"))


def _of_config(file: Path) -> EncoderSizes | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _of_tower(content.get("model_cfg", content).get("vision_cfg")) if isinstance(content, dict) else None


def _of_tower(tower: Any) -> EncoderSizes | None:
    patch, native = (tower.get(key) if isinstance(tower, dict) else None for key in ("patch_size", "image_size"))
    return EncoderSizes(patch, native) if isinstance(patch, int) and isinstance(native, int) else None


def default_image_size(cls: type, arguments: Mapping[str, Any]) -> int | None:
    """Returns the image size to build a method with where none was given, if it is not the method's own.

    A published default is of the published encoder: with ``vlad-tiny``, or an encoder whose patches do not fit it, the
    encoder's own size takes its place.

    Args:
        cls: A method.
        arguments: The arguments that were given for it, without ``image_size``.
    """
    parameters = init_parameters(cls)
    if "image_size" not in parameters or "backbone" not in parameters:
        return None
    published = parameters["image_size"].default
    backbone = arguments.get("backbone", parameters["backbone"].default)
    if backbone == parameters["backbone"].default or not isinstance(published, int):
        return None
    sizes = known_sizes(backbone)
    if sizes is None or (backbone != "vlad-tiny" and published % sizes.patch == 0):
        return None
    return None if sizes.native == published else sizes.native


def with_image_size(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a method's arguments with the image size of :func:`default_image_size`, where none was given."""
    size = None if "image_size" in arguments else default_image_size(cls, arguments)
    return {**arguments, **({} if size is None else {"image_size": size})}


def refuse_image_size(backbone: Any, image_size: int) -> None:
    """Refuses an image size that the encoder's patches do not divide, without loading the encoder.

    Raises:
        BackboneError: It does not fit; the message names sizes that do.
    """
    sizes = known_sizes(backbone) if re.fullmatch(r"[\w./:+-]+", str(backbone)) else None
    if sizes is not None:
        patch_grid(image_size, image_size, sizes.patch)
