"""Frozen encoders of images, one interface for all: CLIP through open_clip, DINOv2 through timm, or your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from vlad.encoders.protocol import Encoder
from vlad.errors import BackboneError

if TYPE_CHECKING:
    from vlad.clip.numerics import Numerics

__all__ = ["Encoder", "load_encoder"]

_MEMBERS = (
    *("name", "pretrained", "mean", "std", "patch_size", "native_size", "depth", "width", "text"),
    *("grid", "encode", "fingerprint"),
)


def load_encoder(
    which: str | Encoder | None,
    pretrained: str | None = None,
    *,
    numerics: Numerics | None = None,
    text: bool = True,
) -> Encoder | None:
    """Loads a frozen encoder; all of its weights have been read from its file, or it is an error.

    Args:
        which: A CLIP as an open_clip name (``ViT-B-16-plus-240``), ``hf-hub:org/repo``, ``local-dir:folder`` or
            ``vlad-tiny``; a vision transformer of timm as ``timm:name`` (``timm:vit_small_patch14_dinov2.lvd142m``) or
            as ``local-dir:folder`` that holds timm's ``config.json``; a ready encoder, which is returned as it is;
            or None for a method without an encoder.
        pretrained: Tag of open_clip or weights file, for open_clip names; weights file or None for timm's own download,
            for timm names. ``random`` gives random weights under the current seed, whatever the name.
        numerics: How a CLIP is driven; see :class:`vlad.clip.Numerics`.
        text: Whether the text tower is needed: a CLIP keeps it, and an encoder without one is refused.

    Returns:
        The encoder, frozen and in evaluation mode; None for None.

    Raises:
        BackboneError: Unknown name or tag, failed download, missing, partial or unfit weights, an unsupported tower,
            or an object that is no encoder.
    """
    if which is None:
        return None
    if not isinstance(which, str):
        return _with_text(_ready(which), text)
    if which.startswith("timm:") or _is_timm_folder(which):
        from vlad.encoders.dino import VisionTower

        return _with_text(VisionTower.load(which, pretrained), text)
    from vlad.clip.backbone import Backbone

    return Backbone.load(which, pretrained, numerics=numerics, text=text)


def _is_timm_folder(name: str) -> bool:
    """Whether a ``local-dir:`` holds a tower of timm: its ``config.json`` and none of open_clip's."""
    folder = Path(name.removeprefix("local-dir:"))
    return (
        name.startswith("local-dir:")
        and (folder / "config.json").is_file()
        and not (folder / "open_clip_config.json").is_file()
    )


def _with_text(encoder: Encoder, text: bool) -> Encoder:
    """Returns an encoder; refuses one without a text tower where text is needed."""
    if text and encoder.text is None:
        raise BackboneError(
            f"encoder '{encoder.name}' has no text tower, and this method compares images with text; give a CLIP"
        )
    return encoder


def _ready(encoder: Encoder) -> Encoder:
    """Returns a ready encoder, or says what it lacks."""
    missing = [member for member in _MEMBERS if not hasattr(encoder, member)]
    if missing or not isinstance(encoder, nn.Module):
        lacks = f"lacks {', '.join(missing)}" if missing else "is no torch.nn.Module"
        raise BackboneError(f"{type(encoder).__name__} is no encoder: it {lacks}; see docs/encoders.md")
    if encoder.training or any(p.requires_grad for p in encoder.parameters()):
        raise BackboneError(
            f"{type(encoder).__name__} is not frozen: call encoder.requires_grad_(False).eval() before giving it"
        )
    return encoder
