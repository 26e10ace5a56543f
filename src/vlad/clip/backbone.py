"""Which CLIP: by open_clip name and tag, hub id or local folder; frozen, with switches for the numerics."""

from __future__ import annotations

import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlad.clip.image import ImageTower
from vlad.clip.numerics import Numerics
from vlad.clip.text import TextTower
from vlad.errors import BackboneError, nearest

__all__ = ["Backbone"]


class Backbone(nn.Module):
    """A frozen CLIP: an image tower and, where asked for, a text tower.

    Attributes:
        image: The image tower.
        text: The text tower, or None.
        name: The name it was asked for by.
        pretrained: The weights' tag, or None.
        mean: Normalisation mean of the images, 3 values for RGB in [0, 1].
        std: Normalisation standard deviation.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        numerics: Numerics | None = None,
        name: str = "",
        pretrained: str | None = None,
        text: bool = True,
    ) -> None:
        """Takes an open_clip model built with a custom text tower; see :meth:`load` for the usual way.

        Raises:
            BackboneError: The towers are not plain open_clip vision/text transformers.
        """
        super().__init__()
        _check_towers(model, name)
        self.name, self.pretrained = name, pretrained
        preprocess = getattr(model.visual, "preprocess_cfg", {})
        self.mean = tuple(preprocess.get("mean", _OPENAI_MEAN))
        self.std = tuple(preprocess.get("std", _OPENAI_STD))
        self.image = ImageTower(model.visual, numerics or Numerics())
        self.text = TextTower(model.text, tokenizer) if text else None
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stays in evaluation mode: a frozen tower has no training mode."""
        return super().train(False)

    def fingerprint(self) -> str:
        """Returns a short hash of the weights, so that a checkpoint can tell which CLIP it was trained on."""
        visual = self.image.visual
        digest = hashlib.sha256()
        for weight in (visual.conv1.weight, visual.proj, visual.transformer.resblocks[0].ln_1.weight):
            digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def load(
        cls,
        name: str,
        pretrained: str | None = None,
        *,
        numerics: Numerics | None = None,
        text: bool = True,
    ) -> Backbone:
        """Loads a CLIP through open_clip.

        Args:
            name: An open_clip model name (``ViT-B-16-plus-240``), ``hf-hub:org/repo``,
                ``local-dir:folder`` with ``open_clip_config.json`` and the weights beside it, or ``vlad-tiny``,
                the small CLIP that comes with vlad (96 px; for trials and tests, not for real images).
            pretrained: open_clip weights tag (``laion400m_e31``) or file, for plain names; None gives random
                weights.
            numerics: How the model is driven; defaults to open_clip's own way.
            text: Whether the text tower is kept.

        Raises:
            BackboneError: Unknown name or tag, failed download, missing folder, or an unsupported tower.
        """
        numerics = numerics or Numerics()
        import open_clip

        asked_for = name
        if name == "vlad-tiny":
            name = f"local-dir:{_TINY}"
        schema = name.startswith(("hf-hub:", "local-dir:"))
        if not schema and name not in open_clip.list_models():
            raise BackboneError(
                f"no CLIP is named '{name}'; {nearest(name, ['vlad-tiny', *open_clip.list_models()])} "
                "(also hf-hub:org/repo or local-dir:folder)"
            )
        if not schema and pretrained and not Path(pretrained).is_file():
            tags = open_clip.list_pretrained_tags_by_model(name)
            if pretrained not in tags:
                raise BackboneError(f"'{name}' has no weights '{pretrained}'; {nearest(pretrained, tags)}")
        overrides: dict[str, Any] = {}
        if numerics.activation != "pretrained":
            overrides["quick_gelu"] = numerics.activation == "quick_gelu"
        elif not schema and pretrained:
            tag = open_clip.get_pretrained_cfg(name, pretrained) or {}
            if tag.get("quick_gelu", False):
                overrides["quick_gelu"] = True
        loggers = [logging.getLogger(), logging.getLogger("huggingface_hub")]
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:  # open_clip narrates every step, the hub every retry; the error below says it once
                logger.setLevel(logging.CRITICAL)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # chosen above, knowingly
                model = open_clip.create_model(
                    name, pretrained=pretrained if not schema else None, force_custom_text=True, **overrides
                )
            tokenizer = open_clip.get_tokenizer(name) if text else None
        except (OSError, RuntimeError, ValueError) as error:
            cause = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
            what = f"CLIP '{name}'" + (f" with weights '{pretrained}'" if pretrained and not schema else "")
            raise BackboneError(
                f"cannot load {what}: {cause}. Without a network, put open_clip_config.json and the weights in a "
                "folder and use backbone: local-dir:folder"
            ) from error
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
        kept = None if schema else pretrained
        return cls(model, tokenizer, numerics=numerics, name=asked_for, pretrained=kept, text=text)


_TINY = Path(__file__).parent / "vlad_tiny"
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def _check_towers(model: Any, name: str) -> None:
    """Refuses towers whose arithmetic the block loop does not restate."""
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer

    def refuse(what: str) -> None:
        raise BackboneError(
            f"CLIP '{name}' has {what}; vlad drives plain open_clip vision transformers with a class token and "
            "causal text transformers (all OpenAI and LAION ViT models)"
        )

    visual: Any = model.visual
    text: Any = getattr(model, "text", None)
    if not isinstance(visual, VisionTransformer):
        refuse(f"an image tower of type {type(visual).__name__}")
    if not isinstance(text, TextTransformer):
        refuse(f"a text tower of type {type(text).__name__}")
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.proj is None:
        refuse("an image tower that does not read the class token")
    if text.attn_mask is None or text.cls_emb is not None or text.pool_type != "argmax":
        refuse("a text tower that is not causal or is not read at the end-of-text token")
    for block in (*visual.transformer.resblocks, *text.transformer.resblocks):
        if type(block) is not ResidualAttentionBlock or not isinstance(block.attn, nn.MultiheadAttention):
            refuse(f"blocks of type {type(block).__name__}")


def save_local(model: Any, config: dict[str, Any], folder: str | Path) -> str:
    """Writes an open_clip model as a folder that ``backbone: local-dir:folder`` opens.

    Args:
        model: An open_clip model.
        config: Its ``embed_dim``, ``vision_cfg`` and ``text_cfg``.
        folder: Made if missing.

    Returns:
        The backbone name, ``local-dir:folder``.
    """
    import json

    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().contiguous().clone() for key, value in model.state_dict().items()}
    partial = folder / "open_clip_model.safetensors.part"
    save_file(weights, partial)
    partial.rename(folder / "open_clip_model.safetensors")
    preprocess = {"mean": list(_OPENAI_MEAN), "std": list(_OPENAI_STD)}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=1)
    (folder / "open_clip_config.json").write_text(text)
    return f"local-dir:{folder}"


def random_clip(config: dict[str, Any], seed: int = 0) -> Any:
    """Builds an open_clip model with random weights, the same on every machine for one seed."""
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CustomTextCLIP(**config)
