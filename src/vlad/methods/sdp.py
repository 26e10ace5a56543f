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
from vlad.clip.similarity import normalize, zero_to_one
from vlad.encoders import Encoder
from vlad.methods.base import Method
from vlad.methods.representative import Representative, representative_vector
from vlad.prompts import load_prompts
from vlad.types import Features, Prediction, Scores, Tags, name_features

__all__ = ["SDP"]


class SDP(Method):
    """CLIP-AD without training: value-value attention in stages, compared with two text vectors.

    The image runs once through the tower on two paths. The ordinary path is CLIP; the second collects the
    value-value attention of each block and restarts at every quarter of the depth. Patch tokens of the
    second path are compared with a normal and an abnormal text vector per class.

    Paper: CLIP-AD (SDP), arXiv 2311.00453.
    """

    def __init__(
        self,
        backbone: str | Encoder = "ViT-B-16-plus-240",
        pretrained: str | None = "laion400m_e31",
        image_size: int = 240,
        layers: Sequence[int] = (3, 6, 9, 12),
        sigma: float = 8.0,
        representative: Representative = "dbscan",
        eps: float = 0.5,
        min_samples: int = 15,
        image_fusion: Literal["sum", "minmax"] = "sum",
        as_published: bool = False,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo`` or ``local-dir:folder``.
            pretrained: open_clip weights tag, for plain names; ``random`` for random weights.
            image_size: Side S of the images in pixels; images are resized to a square.
            layers: Blocks whose tokens are compared with the text, from 1.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            representative: How the sentence embeddings of a state are reduced to one vector.
            eps: DBSCAN radius; published: 1.5 on VisA, 0.5 otherwise.
            min_samples: DBSCAN core size; published: 25 on VisA, 15 otherwise.
            image_fusion: ``"sum"`` adds the text score and the map's maximum, per image. ``"minmax"``
                rescales both over all test images of a category first, as published: it needs the whole test
                set and is not defined for one image.
            as_published: Reproduces the figures of the published evaluation: sets ``image_fusion`` to ``"minmax"`` and
                changes nothing else. Settings that the published script chooses by the name of the test set
                (``eps``, ``min_samples``, ``sigma``) must still be given.
        """
        super().__init__(backbone=backbone, pretrained=pretrained, image_size=image_size, layers=layers, sigma=sigma)
        self.representative: Representative = representative
        self.eps, self.min_samples = eps, min_samples
        self.image_fusion = "minmax" if as_published else image_fusion
        self.prompts = load_prompts("clip_ad")
        depth = self.backbone.image.depth
        # A stage begins where the block's index (from 0) is a multiple of depth / 4, a float in the published code.
        self.stages = tuple(b + 1 for b in range(depth) if b % (depth / 4) == 0)

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
        return min(later, default=self.backbone.depth)

    def encode(self, images: Tensor) -> Features:
        """Runs both branches and collects, for every layer, the tokens that the published code actually reads.

        Its hidden states are references to tensors that later blocks edit in place. So the ordinary tokens of block l
        are those of the half-finished block l + 1 (attention added, MLP not yet), except at the last block; and the
        staged ones are the value-value branch at the *end* of the stage that holds block l. Released weights of SDP+
        were trained on these tokens.
        """
        return self._encode(images, staged=True)

    def _encode(self, images: Tensor, *, staged: bool) -> Features:
        """Runs the ordinary path and, where asked for, the staged one."""
        tower = self.backbone.image
        depth = tower.depth
        ends = {layer: self.stage_end(layer) for layer in self.layers}

        def compute(images: Tensor) -> Features:
            tokens = tower.run(
                tower.embed(images),
                layers={depth} & set(self.layers),
                attended={layer + 1 for layer in self.layers if layer < depth},
                branch=AttentionBranch(first=1, restarts=self.stages) if staged else None,
                branch_layers=set(ends.values()) if staged else (),
                need_last=depth in self.layers,
            )
            states = {**tokens.attended, **{depth + 1: tokens.hidden_states.get(depth)}}
            ordinary = [states[layer + 1] for layer in self.layers]
            grid = tower.grid(*images.shape[-2:])
            return Features(
                levels=tuple(state[:, 1:].unflatten(1, grid) for state in ordinary),
                classes=tuple(state[:, 0] for state in ordinary),
                branch=tuple(tokens.branch[ends[layer]][:, 1:].unflatten(1, grid) for layer in self.layers if staged),
            )

        places = [f"attended in {layer + 1}" if layer < depth else str(depth) for layer in self.layers]
        names = name_features(
            levels=tuple(f"patches {place}" for place in places),
            classes=tuple(f"class {place}" for place in places),
            branch=tuple(f"vv patches {ends[layer]} from 1 anew at {self.stages}" for layer in self.layers if staged),
        )
        return self.frozen(images, compute, names)

    def compare(self, features: Features, text: Tensor, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Compares staged tokens with the text: "feature surgery" in closed form, summed over layers.

        With s_k the cosine of a token with text vector k, and p the softmax over the two cosines of the
        layer's class token (no temperature), the published weighting, multiplication and subtraction of the
        class mean amount to p_1 s_1 − p_0 s_0. The text score is the softmax of the last layer's class token.
        """
        project, values = self.backbone.image.project, []
        vectors = text.float().transpose(1, 2)  # (B, D, 2)
        for tokens, token in zip(features.branch, features.classes, strict=True):
            whole = (normalize(project(token[:, None]).float()) @ vectors)[:, 0]
            cosine = (normalize(project(tokens.flatten(1, 2)).float()) @ vectors).unflatten(1, tokens.shape[1:3])
            weight = whole.softmax(-1)[:, None, None]
            values.append(cosine[..., 1] * weight[..., 1] - cosine[..., 0] * weight[..., 0])
        score = (100 * whole).softmax(-1)[:, 1:]
        return Scores(torch.stack(values).sum(0)[:, None], score, self.nearest(features, references))

    def components_of(self, scores: Scores, anomaly_map: Tensor) -> Tensor:
        """Returns the text score and the smoothed map's maximum (B, 2)."""
        assert scores.image is not None
        return torch.cat([scores.image.float(), anomaly_map.amax((1, 2))[:, None]], dim=1)

    @property
    def tags(self) -> Tags:
        """Transductive with ``image_fusion="minmax"``."""
        return Tags(transductive="scores" if self.image_fusion == "minmax" else "")

    def score_set(self, features: Features | None, predictions: Prediction | None, size: tuple[int, int]) -> Prediction:
        """Rescales each component over all images of a category and adds them, as the published evaluation does."""
        assert predictions is not None
        assert predictions.score_components is not None
        return predictions._replace(image_score=zero_to_one(predictions.score_components).sum(1))
