"""SDP: CLIP-AD's training-free staged dual path.

Source: Chen et al., "CLIP-AD: A Language-Guided Staged Dual-Path Model for Zero-shot Anomaly Detection",
arXiv 2311.00453, and its published code, whose numbers are reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vlad.clip.blocks import AttentionBranch
from vlad.clip.similarity import normalize, to_grid, upsample, zero_to_one
from vlad.methods.base import Method
from vlad.methods.representative import Representative, representative_vector
from vlad.prompts import load_prompts
from vlad.types import Prediction

__all__ = ["SDP"]


class SDP(Method):
    """CLIP-AD without training: value-value attention in stages, compared with two text vectors.

    The image runs once through the tower on two paths. The ordinary path is CLIP; the second collects the
    value-value attention of each block and starts anew at every quarter of the depth. Patch tokens of the
    second path are compared with a normal and an abnormal text vector per class.

    Paper: CLIP-AD (SDP), arXiv 2311.00453.
    """

    def __init__(
        self,
        backbone: str = "ViT-B-16-plus-240",
        pretrained: str | None = "laion400m_e31",
        image_size: int = 240,
        layers: Sequence[int] = (3, 6, 9, 12),
        weights: str | None = None,
        sigma: float = 8.0,
        representative: Representative = "dbscan",
        eps: float = 0.5,
        min_samples: int = 15,
        image_fusion: Literal["sum", "minmax"] = "sum",
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo`` or ``local-dir:folder``.
            pretrained: open_clip weights tag, for plain names; null gives random weights.
            image_size: Side S of the images in pixels; they are squashed to a square.
            layers: Blocks whose tokens are compared with the text, from 1.
            weights: Not used: SDP has nothing to load.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            representative: How the sentences of a state become one vector.
            eps: DBSCAN radius; published: 1.5 on VisA, 0.5 elsewhere.
            min_samples: DBSCAN core size; published: 25 on VisA, 15 elsewhere.
            image_fusion: ``"sum"`` adds the text score and the map's maximum, per image. ``"minmax"``
                rescales both over all test images of a category first, as published: it needs the whole test
                set and is not defined for one image.
        """
        super().__init__(backbone=backbone, pretrained=pretrained, image_size=image_size, layers=layers, sigma=sigma)
        self.representative: Representative = representative
        self.eps, self.min_samples = eps, min_samples
        self.image_fusion = image_fusion
        self.prompts = load_prompts("clip_ad")
        depth = self.backbone.image.depth
        # A stage begins where the block's index (from 0) is a multiple of depth / 4, a float in the published code.
        self.stages = tuple(b + 1 for b in range(depth) if b % (depth / 4) == 0)
        if weights is not None:
            self.load_weights(weights)

    # -- text ----------------------------------------------------------------------------------------------

    def class_text(self, class_name: str) -> Tensor:
        """Returns the class's two text vectors (2, D), unit length: normal, abnormal."""
        sentences = self.prompts.sentences(class_name)
        rows = normalize(self.text_tower.encode([*sentences[0], *sentences[1]]).float())
        groups = rows.split([len(group) for group in sentences])
        vectors = [
            representative_vector(group, self.representative, eps=self.eps, min_samples=self.min_samples)
            for group in groups
        ]
        return normalize(torch.stack(vectors))

    # -- image ---------------------------------------------------------------------------------------------

    def stage_end(self, layer: int) -> int:
        """Returns the last block of the stage that holds a block."""
        later = [start - 1 for start in self.stages if start > layer]
        return min(later, default=self.backbone.image.depth)

    @torch.no_grad()
    def encode(self, images: Tensor, *, stages: bool = True) -> tuple[list[Tensor], list[Tensor]]:
        """Runs both paths and collects, for every layer, what the published code really reads.

        Its taps are references to tensors that later blocks edit in place. So the ordinary tap of block l is
        the half-finished block l + 1 (attention added, MLP not yet), except at the last block; and the staged
        tap is the second path at the *end* of the stage that holds block l. Released weights of SDP+ were
        trained on these tokens.

        Args:
            images: Normalised images (B, 3, S, S).
            stages: Whether the second path is wanted.

        Returns:
            Ordinary tokens per layer (B, 1 + n, W), and staged tokens per layer, whose class token is the
            ordinary one (empty if not wanted).
        """
        tower = self.backbone.image
        depth = tower.depth
        ends = {layer: self.stage_end(layer) for layer in self.layers}
        tokens = tower.run(
            tower.embed(images),
            layers={depth} & set(self.layers),
            attended={layer + 1 for layer in self.layers if layer < depth},
            branch=AttentionBranch(first=1, restarts=self.stages) if stages else None,
            branch_layers=set(ends.values()) if stages else (),
            need_last=depth in self.layers,
        )
        ordinary = [
            tokens.hidden_states[depth] if layer == depth else tokens.attended[layer + 1] for layer in self.layers
        ]
        if not stages:
            return ordinary, []
        staged = [
            torch.cat([plain[:, :1], tokens.branch[ends[layer]][:, 1:]], dim=1)
            for layer, plain in zip(self.layers, ordinary, strict=True)
        ]
        return ordinary, staged

    def compare(self, staged: list[Tensor], text: Tensor) -> tuple[Tensor, Tensor]:
        """Compares staged tokens with the text: "feature surgery" in closed form, summed over layers.

        With s_k the cosine of a token with text vector k, and p the softmax over the two cosines of the
        layer's class token (no temperature), the published weighting, multiplication and subtraction of the
        class mean amount to p_1 s_1 − p_0 s_0.

        Args:
            staged: Tokens per layer (B, 1 + n, W).
            text: Text vectors of each image (B, 2, D).

        Returns:
            The map's values per patch (B, n), and the image's text score (B,) in [0, 1].
        """
        values = []
        for tokens in staged:
            features = normalize(self.backbone.image.project(tokens).float())
            cosine = features @ text.float().transpose(1, 2)
            weight = cosine[:, 0].softmax(-1)
            value = cosine[:, 1:, 1] * weight[:, 1:] - cosine[:, 1:, 0] * weight[:, :1]
            values.append(value)
        score = (100 * cosine[:, 0]).softmax(-1)[:, 1]  # of the last layer
        return torch.stack(values).sum(0), score

    def score(self, images: Tensor, class_names: list[str]) -> Prediction:
        """Scores images; see :meth:`vlad.Method.score`."""
        _, staged = self.encode(images)
        patches, text_score = self.compare(staged, self.texts(class_names))
        unsmoothed_map = upsample(to_grid(patches), images.shape[-1], align_corners=False)
        return self.finish(unsmoothed_map, text_score)

    def finish(self, unsmoothed_map: Tensor, text_score: Tensor) -> Prediction:
        """Smooths a map and joins the text score with the smoothed map's maximum."""
        anomaly_map = self.smooth(unsmoothed_map)
        terms = torch.stack([text_score.float(), anomaly_map.amax((1, 2))], dim=1)
        return Prediction(unsmoothed_map, anomaly_map, terms.sum(1), terms)

    def fuse_scores(self, terms: Tensor) -> Tensor:
        """Joins the two terms (N, 2) of all images of a category; see ``image_fusion``."""
        return (zero_to_one(terms) if self.image_fusion == "minmax" else terms).sum(1)
