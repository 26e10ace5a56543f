"""A frozen CLIP as an encoder: an image tower and, optionally, a text tower."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlad.clip.image import ImageTower
from vlad.clip.loading import check_towers, load_clip
from vlad.clip.numerics import Numerics
from vlad.clip.text import TextTower
from vlad.encoders.weights import RANDOM, Source, fingerprint
from vlad.errors import BackboneError
from vlad.files import write_atomic, write_text
from vlad.types import Features

__all__ = ["Backbone", "random_clip", "save_local"]

_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class Backbone(nn.Module):
    """A frozen CLIP; a :class:`vlad.encoders.Encoder` whose towers can also be driven step by step.

    Attributes:
        image: The image tower.
        text: The text tower, or None.
        name: The requested name.
        pretrained: Tag or file of the weights, ``random``, or None if the name is sufficient.
        source: Origin of the weights.
        mean: Normalisation mean of the images, 3 values for RGB in [0, 1].
        std: Normalisation standard deviation.
        patch_size: Side of a patch in pixels.
        native_size: Image side that the weights were trained at.
        depth: Number of blocks of the image tower.
        width: Width W of its tokens.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        numerics: Numerics | None = None,
        name: str = "",
        pretrained: str | None = None,
        source: Source | None = None,
        text: bool = True,
    ) -> None:
        """Wraps an open_clip model built with a custom text tower; usually created by :meth:`load`.

        Raises:
            BackboneError: The towers are not plain open_clip vision/text transformers.
        """
        super().__init__()
        check_towers(model, name)
        self.name, self.pretrained, self.source = name, pretrained, source or Source("model given as an object")
        preprocess = getattr(model.visual, "preprocess_cfg", {})
        self.mean = tuple(float(value) for value in preprocess.get("mean", _OPENAI_MEAN))
        self.std = tuple(float(value) for value in preprocess.get("std", _OPENAI_STD))
        self.image = ImageTower(model.visual, numerics or Numerics())
        self.text = TextTower(model.text, tokenizer) if text else None
        self.patch_size, self.native_size = self.image.patch_size, self.image.native_size
        self.depth, self.width = self.image.depth, self.image.width
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(
        cls,
        name: str,
        pretrained: str | None = None,
        *,
        numerics: Numerics | None = None,
        text: bool = True,
    ) -> Backbone:
        """Loads a CLIP through open_clip; raises an error unless one file provides all of its weights.

        Args:
            name: An open_clip model name (``ViT-B-16-plus-240``), ``hf-hub:org/repo``,
                ``local-dir:folder`` with ``open_clip_config.json`` and the weights, or ``vlad-tiny``, the small
                CLIP that ships with vlad (96 px; for demos and tests, not for real images).
            pretrained: open_clip weights tag (``laion400m_e31``) or file, for plain names; other names include their
                weights and ignore a tag. ``random`` gives random weights under the current seed, for any name.
            numerics: CLIP numerics; by default open_clip's.
            text: Whether to keep the text tower.

        Raises:
            BackboneError: Unknown name or tag, no weights, failed download, missing folder or file, weights that are
                partial, of another model, damaged or pickled with code, or an unsupported tower.
        """
        numerics = numerics or Numerics()
        model, tokenizer, source = load_clip(name, pretrained, numerics, text=text)
        schema = name == "vlad-tiny" or name.startswith(("hf-hub:", "local-dir:"))
        kept = None if schema and pretrained != RANDOM else pretrained
        return cls(model, tokenizer, numerics=numerics, name=name, pretrained=kept, source=source, text=text)

    def train(self, mode: bool = True) -> Backbone:
        """Does nothing: a frozen tower stays in evaluation mode."""
        return super().train(False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of patches of an image; see :meth:`vlad.clip.ImageTower.grid`."""
        return self.image.grid(height, width)

    def encode(self, images: Tensor, layers: Sequence[int]) -> Features:
        """Encodes images in one pass.

        Args:
            images: Normalised images (B, 3, H, W), any size divisible by the patch size.
            layers: Intermediate layers to return, counted from 1.

        Returns:
            Hidden states of each layer as patch tokens (B, h, w, W) and class token (B, W), neither normalised nor
            projected, and the image embedding (B, D), not normalised.

        Raises:
            BackboneError: A layer does not exist, or the size is not divisible by the patch size.
        """
        wrong = [layer for layer in layers if not 1 <= layer <= self.depth]
        if wrong:
            raise BackboneError(f"'{self.name}' has layers 1 to {self.depth}, not {wrong}")
        grid = self.grid(images.shape[-2], images.shape[-1])
        tokens = self.image.run(self.image.embed(images), layers=layers, class_token_only=self.depth not in layers)
        states = [tokens.hidden_states[layer] for layer in layers]
        return Features(
            levels=tuple(state[:, 1:].unflatten(1, grid) for state in states),
            image=self.image.project(tokens.last[:, 0]),
            classes=tuple(state[:, 0] for state in states),
        )

    def fingerprint(self) -> str:
        """Returns a short hash of the weights of both towers, which identifies the CLIP of a checkpoint."""
        visual = self.image.visual
        whole = [visual.conv1.weight, visual.positional_embedding, visual.proj]
        if self.text is not None:
            whole.append(self.text.text.positional_embedding)
        return fingerprint(self, whole)

    def image_fingerprint(self) -> str:
        """Returns a short hash of the weights of the image tower only, with or without a text tower."""
        visual = self.image.visual
        return fingerprint(self.image, [visual.conv1.weight, visual.positional_embedding, visual.proj])

    def legacy_fingerprint(self) -> str:
        """Returns the hash in checkpoints of method interface 1, over three tensors of the image tower."""
        visual = self.image.visual
        digest = hashlib.sha256()
        for weight in (visual.conv1.weight, visual.proj, visual.transformer.resblocks[0].ln_1.weight):
            digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def save_local(model: Any, config: dict[str, Any], folder: str | Path) -> str:
    """Writes an open_clip model as a folder that ``backbone: local-dir:folder`` opens.

    Args:
        model: An open_clip model.
        config: Its ``embed_dim``, ``vision_cfg`` and ``text_cfg``.
        folder: Output folder, created if missing.

    Returns:
        The backbone name, ``local-dir:folder``.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    weights = {key: value.detach().contiguous().clone() for key, value in model.state_dict().items()}
    write_atomic(folder / "open_clip_model.safetensors", lambda partial: save_file(weights, partial))
    preprocess = {"mean": list(_OPENAI_MEAN), "std": list(_OPENAI_STD)}
    write_text(
        folder / "open_clip_config.json", json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=1)
    )
    return f"local-dir:{folder}"


def random_clip(config: dict[str, Any], seed: int = 0) -> Any:
    """Builds an open_clip model with random weights, the same on every machine for one seed."""
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CustomTextCLIP(**config)
