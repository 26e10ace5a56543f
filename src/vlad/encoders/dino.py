"""DINOv2 and other plain vision transformers of timm, without text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from vlad.encoders.positions import PositionCache, resize_positions
from vlad.encoders.protocol import patch_grid
from vlad.encoders.weights import RANDOM, Source, find_in_folder, fingerprint, load_all, read_tensors
from vlad.errors import BackboneError, WeightsError, nearest
from vlad.offline import fetched
from vlad.types import Features

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from vlad.clip.text import TextTower

__all__ = ["PositionResize", "VisionTower", "timm_names"]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FILES = ("model.safetensors", "pytorch_model.bin")


class PositionResize(NamedTuple):
    """How a tower's position embedding is resized to other grids, bicubic; the tokens depend on it by several percent.

    Attributes:
        antialias: Whether the kernel is antialiased; timm does so always.
        offset: Added to rows and columns for the scale. DINOv2 without registers: 0.1, without antialias.
    """

    antialias: bool = True
    offset: float = 0.0


class VisionTower(nn.Module):
    """A frozen vision transformer of timm; a :class:`vlad.encoders.Encoder` without text.

    Attributes:
        model: timm's module, which holds the weights.
        name: The name it was asked for by.
        pretrained: A weights file, ``random``, or None for timm's own download.
        source: Where the weights come from.
        mean: Normalisation mean of the images, 3 values for RGB in [0, 1].
        std: Normalisation standard deviation.
        patch_size: Side of a patch in pixels.
        native_size: Image side the weights were made for.
        depth: Number of blocks.
        width: Width W of the tokens.
        text: None.
    """

    def __init__(
        self,
        model: VisionTransformer,
        *,
        name: str = "",
        pretrained: str | None = None,
        source: Source | None = None,
        positions: PositionResize | None = None,
    ) -> None:
        """Takes a module of timm; see :meth:`load` for the usual way.

        Args:
            model: A plain vision transformer with a class token and learned positions.
            name: As :meth:`load`; where it contains ``dinov2``, positions are resized as DINOv2 does.
            pretrained: As :meth:`load`.
            source: Where the weights come from.
            positions: How positions are resized; None goes by the name and whether there are registers.

        Raises:
            BackboneError: The module is another kind of transformer.
        """
        super().__init__()
        _check_tower(model, name)
        self.model, self.name, self.pretrained = model, name, pretrained
        self.source = source or Source("model given as an object")
        config = getattr(model, "pretrained_cfg", None) or {}
        self.mean = tuple(float(value) for value in config.get("mean") or _IMAGENET_MEAN)
        self.std = tuple(float(value) for value in config.get("std") or _IMAGENET_STD)
        self.patch_size = int(model.patch_embed.patch_size[0])
        self.native_size = int(model.patch_embed.grid_size[0]) * self.patch_size
        self.depth, self.width = len(model.blocks), int(model.embed_dim)
        self.text: TextTower | None = None
        if positions is None:
            official = "dinov2" in name and not model.num_reg_tokens
            positions = PositionResize(antialias=False, offset=0.1) if official else PositionResize()
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        resize = partial(resize_positions, mode="bicubic", prefix=prefix, **positions._asdict())
        self._positions = PositionCache(resize)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(cls, name: str, pretrained: str | None = None) -> VisionTower:
        """Builds a tower of timm with all of its weights.

        Args:
            name: ``timm:`` and timm's name (``timm:vit_small_patch14_dinov2.lvd142m``), or ``local-dir:folder`` with
                timm's ``config.json`` and the weights beside it.
            pretrained: A weights file under timm's or DINOv2's own tensor names; None or ``default`` for timm's
                download, or the folder's file; ``random`` for random weights under the current seed.

        Raises:
            BackboneError: Unknown name, no weights, failed download, weights that are partial, of another model,
                damaged or pickled with code, or a tower of another kind.
        """
        folder = Path(name.removeprefix("local-dir:")) if name.startswith("local-dir:") else None
        model = _build(name if folder else name.removeprefix("timm:"))
        _check_tower(model, name)
        kept = None if pretrained == "default" else pretrained
        if kept == RANDOM:
            source = Source(RANDOM)
        elif kept is not None:
            if folder is not None:
                raise BackboneError(f"'{name}' brings its own weights: leave out pretrained: {kept}")
            if not Path(kept).is_file():
                raise BackboneError(
                    f"pretrained: {kept} is no file; for '{name}' give a weights file, null for timm's download, or "
                    f"{RANDOM} for random weights in experiments"
                )
            source = Source(Path(kept).name, Path(kept))
        elif folder is not None:
            file = find_in_folder(folder, _FILES)
            source = Source(file.name, file)
        else:
            source = _download(model, name)
        if source.file is not None:
            load_all(model, timm_names(read_tensors(source.file)), source.file, name)
        hint = name if folder is None else f"{name} {(model.pretrained_cfg or {}).get('architecture', '')}"
        tower = cls(model, name=hint, pretrained=kept, source=source)
        tower.name = name
        return tower

    def train(self, mode: bool = True) -> VisionTower:
        """Stays in evaluation mode: a frozen tower has no training mode."""
        return super().train(False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of patches of an image; see :func:`vlad.encoders.protocol.patch_grid`."""
        return patch_grid(height, width, self.patch_size)

    def embed(self, images: Tensor) -> Tensor:
        """Embeds images as tokens (B, 1 + registers + rows · columns, W): class token, registers, patches."""
        model: Any = self.model
        grid = self.grid(images.shape[-2], images.shape[-1])
        x = model.patch_embed.norm(model.patch_embed.proj(images).flatten(2).transpose(1, 2))
        positions = self._positions.of(model.pos_embed[0], grid).to(x.dtype)
        prefix: list[Any] = [model.cls_token, model.reg_token]
        prefix = [token.to(x.dtype).expand(len(x), -1, -1) for token in prefix if token is not None]
        if model.no_embed_class:
            return model.norm_pre(torch.cat([*prefix, x + positions], dim=1))
        return model.norm_pre(torch.cat([*prefix, x], dim=1) + positions)

    def encode(self, images: Tensor, layers: Sequence[int]) -> Features:
        """Encodes images in one pass.

        Args:
            images: Normalised images (B, 3, H, W), any size the patch divides.
            layers: Intermediate layers to read, from 1.

        Returns:
            Patch tokens (B, h, w, W) and class token (B, W) of each layer, after the final norm for the last layer and
            as they are for those before; the image embedding (B, W) is the class token after the final norm.

        Raises:
            BackboneError: A layer does not exist, or the patch does not divide the size.
        """
        wrong = [layer for layer in layers if not 1 <= layer <= self.depth]
        if wrong:
            raise BackboneError(f"'{self.name}' has layers 1 to {self.depth}, not {wrong}")
        grid = self.grid(images.shape[-2], images.shape[-1])
        x, states = self.embed(images), {}
        for number, block in enumerate(self.model.blocks, start=1):
            x = block(x)
            if number in layers:
                states[number] = x
        x = states[self.depth] = self.model.norm(x)
        prefix = self.model.num_prefix_tokens
        return Features(
            levels=tuple(states[layer][:, prefix:].unflatten(1, grid) for layer in layers),
            image=x[:, 0],
            classes=tuple(states[layer][:, 0] for layer in layers),
        )

    def fingerprint(self) -> str:
        """Returns a short hash of the weights, so that a checkpoint can tell which tower it belongs to."""
        model: Any = self.model
        return fingerprint(self, [model.patch_embed.proj.weight, model.pos_embed])


def _build(name: str) -> Any:
    """Builds a tower of timm without weights and without a classifier."""
    import timm

    try:
        return timm.create_model(name, pretrained=False, num_classes=0)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        plain = name.split(".")[0]
        hint = (
            ""
            if name.startswith("local-dir:") or timm.is_model(plain)
            else f"; {nearest(plain, timm.list_models('vit_*'))}"
        )
        raise BackboneError(f"timm has no tower '{name}': {cause}{hint}") from error


def _download(model: Any, name: str) -> Source:
    """Fetches the weights that timm publishes for a tower."""
    config = model.pretrained_cfg or {}
    repository, file = config.get("hf_hub_id"), config.get("hf_hub_filename") or _FILES[0]
    if not repository:
        raise BackboneError(f"timm publishes no weights of '{name}' on the hub; give pretrained: FILE or {RANDOM}")
    from huggingface_hub import hf_hub_download

    try:
        return Source(repository, fetched(f"timm:{repository}/{file}", lambda: Path(hf_hub_download(repository, file))))
    except WeightsError:
        raise
    except Exception as error:  # the hub's client raises dozens of kinds, and its network library more
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackboneError(
            f"cannot download the weights of '{name}' ({repository}): {cause}. Download {file} by hand and give "
            f"pretrained: {file}"
        ) from error


def timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of an official DINOv2 file to timm's names; others only lose their classifier.

    The official tower adds a position to its class token; timm's with registers does not, so it is added here.
    """
    tensors = {key: value for key, value in tensors.items() if not key.startswith("head.")}
    if "mask_token" not in tensors and "register_tokens" not in tensors:
        return tensors
    tensors.pop("mask_token", None)  # for training alone
    if "register_tokens" in tensors and {"cls_token", "pos_embed"} <= tensors.keys():
        tensors["reg_token"] = tensors.pop("register_tokens")
        positions = tensors["pos_embed"].float()  # a sum of half-precision numbers needs more digits
        tensors["cls_token"] = tensors["cls_token"].float() + positions[:, :1]
        tensors["pos_embed"] = positions[:, 1:]
    swiglu = {"w12": "fc1", "w3": "fc2"}
    return {re.sub(r"(?<=\.mlp\.)(w12|w3)(?=\.)", lambda m: swiglu[m[1]], key): value for key, value in tensors.items()}


def _check_tower(model: Any, name: str) -> None:
    """Refuses towers whose embedding this module does not restate."""
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    def refuse(what: str) -> None:
        raise BackboneError(
            f"timm tower '{name}' has {what}; vlad drives plain vision transformers with a class token, learned "
            "positions and a final norm (DINOv2 with and without registers, DINO)"
        )

    if type(model) is not VisionTransformer:
        refuse(f"the type {type(model).__name__}")
    if type(model.patch_embed) is not PatchEmbed or len({*model.patch_embed.grid_size}) != 1:
        refuse("another patch embedding than a square grid's")
    if not model.has_class_token or model.pos_embed is None:
        refuse("no class token or no learned positions")
    if isinstance(model.norm, nn.Identity):
        refuse("no final norm of its tokens")
