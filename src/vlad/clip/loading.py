"""Loads a CLIP through open_clip: finds it by name, builds it, and loads all of its weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vlad.encoders.weights import RANDOM, Source, find_in_folder, load_all, read_tensors
from vlad.errors import BackboneError, nearest
from vlad.offline import fetched

if TYPE_CHECKING:
    from vlad.clip.numerics import Numerics

__all__ = ["check_towers", "load_clip"]

_TINY = Path(__file__).parent / "vlad_tiny"
_PREFERRED = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
_SIZES = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI's files keep among the weights


def load_clip(name: str, pretrained: str | None, numerics: Numerics, *, text: bool) -> tuple[Any, Any, Source]:
    """Builds an open_clip model with all of its weights, as :meth:`vlad.clip.Backbone.load` describes.

    Returns:
        The model, its tokenizer or None, and the origin of the weights.

    Raises:
        BackboneError: As for :meth:`vlad.clip.Backbone.load`.
    """
    import open_clip

    where = f"local-dir:{_TINY}" if name == "vlad-tiny" else name
    schema = where.startswith(("hf-hub:", "local-dir:"))
    tag = _check_names(name, pretrained, schema)
    overrides: dict[str, Any] = {}
    if numerics.activation != "pretrained":
        overrides["quick_gelu"] = numerics.activation == "quick_gelu"
    elif tag and (open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu", False):
        overrides["quick_gelu"] = True
    with _open_clip_errors(name, pretrained if not schema else None):
        options = {"load_weights": False, "pretrained_text": False, "force_custom_text": True}
        model: Any = open_clip.create_model(where, pretrained=tag, **options, **overrides)
        check_towers(model, name)
        tokenizer = open_clip.get_tokenizer(where) if text else None
        source = _find_weights(name, where, pretrained, tag)
    if source.file is not None:
        load_all(model, _own_names(model, read_tensors(source.file)), source.file, name)
    return model, tokenizer, source


def _check_names(name: str, pretrained: str | None, schema: bool) -> str | None:
    """Returns the weights' tag, if ``pretrained`` is one; refuses unknown names and tags."""
    import open_clip

    if schema:
        if pretrained and Path(pretrained).is_file():
            raise BackboneError(f"'{name}' brings its own weights: leave out pretrained: {pretrained}")
        return None
    if name not in open_clip.list_models():
        raise BackboneError(
            f"no CLIP is named '{name}'; {nearest(name, ['vlad-tiny', *open_clip.list_models()])} "
            "(also hf-hub:org/repo, local-dir:folder or timm:name)"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise BackboneError(
            f"'{name}' needs weights: give pretrained: {' | '.join(tags) or 'FILE'}, a file, or pretrained: {RANDOM} "
            "for random weights in experiments"
        )
    if pretrained == RANDOM or Path(pretrained).is_file():
        return None
    if pretrained not in tags:
        raise BackboneError(
            f"'{name}' has no weights '{pretrained}', and no file is there; {nearest(pretrained, [*tags, RANDOM])}"
        )
    return pretrained


@contextmanager
def _open_clip_errors(name: str, pretrained: str | None) -> Iterator[None]:
    """Turns errors of open_clip into ours, and silences it meanwhile: it narrates every step, the hub every retry."""
    loggers = [logging.getLogger(), logging.getLogger("huggingface_hub")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # chosen by the tag, knowingly
            yield
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        what = f"CLIP '{name}'" + (f" with weights '{pretrained}'" if pretrained else "")
        raise BackboneError(
            f"cannot load {what}: {cause}. Without a network, put open_clip_config.json and the weights in a "
            "folder and use backbone: local-dir:folder"
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _find_weights(name: str, where: str, pretrained: str | None, tag: str | None) -> Source:
    """Returns the weights file of a name, downloaded if need be."""
    if pretrained == RANDOM:
        return Source(RANDOM)
    if where.startswith("local-dir:"):
        file = find_in_folder(Path(where.removeprefix("local-dir:")), _PREFERRED)
        return Source(name if name == "vlad-tiny" else file.name, file)
    if where.startswith("hf-hub:"):
        from open_clip.pretrained import download_pretrained_from_hf

        return Source(name, fetched(name, lambda: Path(download_pretrained_from_hf(where.removeprefix("hf-hub:")))))
    if tag is None:
        assert pretrained is not None  # _check_names refuses it
        return Source(Path(pretrained).name, Path(pretrained))
    import open_clip

    config = open_clip.get_pretrained_cfg(name, tag)
    return Source(tag, fetched(f"open_clip:{name}:{tag}", lambda: Path(open_clip.download_pretrained(config))))


def _own_names(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames tensors of a CLIP file to those of a model whose text tower is a module of its own."""
    from open_clip.model import convert_to_custom_text_state_dict

    tensors = convert_to_custom_text_state_dict(tensors)
    own = model.state_dict()
    for key in ("logit_scale", "logit_bias"):  # written as () or (1,) by different versions of open_clip
        if key in tensors and key in own and tensors[key].numel() == 1 == own[key].numel():
            tensors[key] = tensors[key].reshape(own[key].shape)
    return {key: value for key, value in tensors.items() if key not in _SIZES}


def check_towers(model: Any, name: str) -> None:
    """Rejects towers that the block loop does not implement.

    Raises:
        BackboneError: The towers are not plain open_clip vision/text transformers.
    """
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
