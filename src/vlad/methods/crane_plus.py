"""Crane+: Crane with patch values aggregated by DINOv2 similarity.

Source: Salehi et al., "Crane: Context-Guided Prompt Learning and Attention Refinement for Zero-Shot Anomaly
Detection(s)", arXiv 2504.11055, and its published code, whose numbers are reproduced; where the two differ, the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.clip.attention import project_out, project_qkv
from vlad.clip.blocks import AttentionBranch
from vlad.clip.similarity import normalize
from vlad.encoders import Encoder, load_encoder
from vlad.encoders.pair import EncoderPair
from vlad.errors import MethodError
from vlad.methods.crane import Crane, released
from vlad.types import Features, name_features

__all__ = ["CranePlus", "affinity"]


class CranePlus(Crane):
    """Crane on two frozen encoders: a patch's values are also aggregated from similar patches of DINOv2 (D-Attn).

    Paper: Crane, arXiv 2504.11055.
    """

    published_weights = released(
        "cranep",
        {
            "mvtec": "b8f0df94a926414ce51b06ff26c9d37dfc3c4131",
            "visa": "284c46268433d5152bf8f2f50e86029d8757dc4a",
            "mvtec_1": "cd9efdc951a7f2b882235840def88ae2345c422b",
            "visa_1": "cd9432b756e8e5c10eed23ad86fdcdadbfbaf2f1",
        },
    )

    def __init__(
        self,
        backbone: str | Encoder = "ViT-L-14-336",
        pretrained: str | None = "openai",
        dino: str = "timm:vit_base_patch14_reg4_dinov2.lvd142m",
        dino_pretrained: str | None = None,
        image_size: int = 518,
        weights: str | None = None,
        layers: Sequence[int] | None = None,
        aliased: bool = True,
        local_from: int | None = None,
        length: int | None = None,
        depth: int | None = None,
        deep_length: int | None = None,
        soft_mean: bool = False,
        affinity_mean: Literal["image", "batch"] = "image",
        affinity_offset: float = 1.2,
        image_token_at_test: bool = False,
        training_upsampling: Literal["nearest", "bilinear"] = "nearest",
        sigma: float = 4.0,
        half_prompts: bool = True,
        lr: float = 1e-3,
    ) -> None:
        """Builds the method on a frozen CLIP and a frozen DINOv2.

        Args:
            backbone: As for :class:`Crane`, like all arguments not described here.
            pretrained: As there.
            dino: Second encoder, ``timm:name``; published: ViT-B/14 with registers.
            dino_pretrained: Its weights: a file, null for timm's download, ``random`` for random weights.
            image_size: As there; both patches divide it.
            weights: As there; the authors' after epoch 5 (``mvtec``, ``visa``) or 1 (``mvtec_1``, which the published
                evaluation takes for medical sets, ``visa_1``).
            layers: Blocks whose values are gathered, and whose patches of the local path give maps; the last one by
                default.
            aliased: As there.
            local_from: As there.
            length: As there.
            depth: As there.
            deep_length: As there.
            soft_mean: As there. Published: no for MVTec AD, VisA, MPDD, SDD, BTAD and DTD-Synthetic, yes for DAGM and
                medical sets.
            affinity_mean: Mean of the similarities that a similarity must exceed: of the ``image``, or of the
                ``batch``, as in the published code, which scores batches of 8: a map then depends on what else is in
                the batch. The same for batches of one.
            affinity_offset: Times that mean a similarity must reach to count.
            image_token_at_test: As there.
            training_upsampling: As there.
            sigma: As there.
            half_prompts: As there.
            lr: As there.

        Raises:
            MethodError: As there, or a layer whose values are gathered does not lie above ``local_from``.
        """
        first = load_encoder(backbone, pretrained, numerics=self.numerics)
        if not isinstance(first, EncoderPair):
            second = load_encoder(dino, dino_pretrained, text=False)
            assert first is not None
            assert second is not None
            first = EncoderPair(first, second)
        self.affinity_mean, self.affinity_offset = affinity_mean, affinity_offset
        super().__init__(
            backbone=first,
            image_size=image_size,
            weights=weights,
            layers=layers,
            aliased=aliased,
            local_from=local_from,
            length=length,
            depth=depth,
            deep_length=deep_length,
            soft_mean=soft_mean,
            image_token_at_test=image_token_at_test,
            training_upsampling=training_upsampling,
            sigma=sigma,
            half_prompts=half_prompts,
            lr=lr,
        )
        self.backbone.second.grid(image_size, image_size)
        if self.layers[0] <= self.local_from:
            raise MethodError(f"layers of Crane+ lie above local_from {self.local_from}, got {list(self.layers)}")

    def default_layers(self) -> tuple[int, ...]:
        """Returns the last layer."""
        return (self.backbone.depth,)

    @property
    def copies(self) -> tuple[int, ...]:
        """How often each level counts: the local path's, then those gathered."""
        return (*super().copies, *(1 for _ in self.layers))

    def encode(self, images: Tensor) -> Features:
        """Runs both paths of CLIP and DINOv2: patches of the local path, then those gathered by affinity."""
        if self.affinity_mean == "batch":  # what depends on the batch is not remembered
            with torch.no_grad():
                return self.run(images)
        where = f"from {self.local_from}"
        local = [
            f"projected qq+kk+vv patches {layer} {where}, resized to the second grid" for layer in self.layers_read
        ]
        gathered = [f"projected values {layer} by affinity over {self.affinity_offset}" for layer in self.layers]
        return self.frozen(images, self.run, name_features(levels=(*local, *gathered), image="embedding"))

    def run(self, images: Tensor) -> Features:
        """Computes what :meth:`encode` returns."""
        tower = self.backbone.image
        tokens = tower.run(
            tower.embed(images),
            attended=self.layers,
            branch=AttentionBranch(first=self.local_from, attention="qq+kk+vv"),
            branch_layers=self.layers_read,
        )
        alike = self.alike(images)
        own, grid = tower.grid(*images.shape[-2:]), self.backbone.second.grid(*images.shape[-2:])
        weights = affinity(alike, self.affinity_offset, per_image=self.affinity_mean == "image")
        local = [resize(tokens.branch[layer][:, 1:], own, grid) for layer in self.layers_read]
        gathered = []
        for layer in self.layers:
            block = tower.visual.transformer.resblocks[layer - 1]
            # Of the half-finished tokens, as the published code adds a block's attention in place, ahead of this.
            _, _, values = project_qkv(block.attn, block.ln_1(tokens.attended[layer]))
            values = resize(values.transpose(1, 2).flatten(2)[:, 1:], own, grid)
            gathered.append(project_out(block.attn, weights.to(values.dtype) @ values))
        return Features(
            levels=tuple(tower.project(level).unflatten(1, grid) for level in (*local, *gathered)),
            image=tower.project(tokens.last[:, 0]),
        )

    def alike(self, images: Tensor) -> Tensor:
        """Returns DINOv2's patches (B, N, W), unit length, of images that were normalised for CLIP."""
        clip, dino = ((images.new_tensor(e.mean), images.new_tensor(e.std)) for e in self.encoders)
        pixels = (images * clip[1][:, None, None] + clip[0][:, None, None]).clamp(0, 1)
        second: Any = self.backbone.second
        normed = (pixels - dino[0][:, None, None]) / dino[1][:, None, None]
        return normalize(second.encode(normed, [second.depth]).levels[0].flatten(1, 2).float())

    @property
    def encoders(self) -> tuple[Encoder, Encoder]:
        """Both encoders."""
        return self.backbone.first, self.backbone.second


def affinity(patches: Tensor, offset: float = 1.2, *, per_image: bool = True) -> Tensor:
    """Returns by which weights (B, N, N), rows summing to 1, values are gathered from patches that are alike.

    Args:
        patches: Unit vectors (B, N, W).
        offset: Similarities below so many times their mean count nothing.
        per_image: Whether the mean is that of each image; else of the batch.
    """
    cosine = patches @ patches.transpose(1, 2)
    mean = cosine.mean((1, 2), keepdim=True) if per_image else cosine.mean()
    scores = 3 * (cosine - offset * mean)
    # A patch is always like itself: in a uniform image, where no similarity exceeds the mean, nothing else is left.
    far = (scores < 0) & ~torch.eye(patches.shape[1], dtype=torch.bool, device=patches.device)
    return scores.masked_fill(far, -torch.inf).softmax(-1)


def resize(patches: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Resizes patches (B, h · w, W) to another grid, bilinear."""
    if grid == wanted:
        return patches
    laid = patches.transpose(1, 2).unflatten(2, grid)
    return F.interpolate(laid, wanted, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
