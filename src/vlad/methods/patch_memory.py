"""Nearest neighbours in a memory of normal patch tokens: training-free, on any encoder, without text.

The scheme shared by PatchCore (Roth et al., arXiv 2106.08265), APRIL-GAN's few-shot branch and AnomalyDINO (Damm et
al., arXiv 2405.14529), in its simplest form; it reproduces none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.encoders import Encoder
from vlad.methods.base import Method
from vlad.types import Features, Preprocess, Requirements, Scores, Tags

__all__ = ["NearestPatch"]


class NearestPatch(Method):
    """Distance of each patch to the nearest patch of a few normal images; training-free, on any encoder.

    Paper: none; the common core of PatchCore and AnomalyDINO.
    """

    def __init__(
        self,
        backbone: str | Encoder = "timm:vit_small_patch14_dinov2.lvd142m",
        pretrained: str | None = None,
        image_size: int = 448,
        layers: Sequence[int] | None = None,
        aspect: Literal["squash", "keep"] = "squash",
        sigma: float = 4.0,
        top: float = 0.01,
    ) -> None:
        """Builds the method on a frozen encoder.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder``, ``vlad-tiny``, ``timm:name``, or a
                ready encoder.
            pretrained: Weights tag or file; ``random`` for random weights.
            image_size: Side S of the images in pixels; with ``aspect: keep`` the shorter one.
            layers: Layers whose patch tokens are compared, from 1; the last by default.
            aspect: ``squash`` to a square, or ``keep`` the aspect ratio.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            top: Share of the patches whose mean distance is the image score; at least one patch.
        """
        super().__init__(
            backbone=backbone,
            pretrained=pretrained,
            image_size=image_size,
            layers=layers or (),
            sigma=sigma,
            text=False,
        )
        self.layers = self.layers or (self.backbone.depth,)
        self.aspect, self.top = aspect, top

    @property
    def requirements(self) -> Requirements:
        """With ``aspect: keep`` both sides are multiples of the patch."""
        encoder = self.backbone
        return Requirements(
            Preprocess(self.image_size, encoder.mean, encoder.std, self.aspect, multiple=encoder.patch_size)
        )

    @property
    def tags(self) -> Tags:
        """Nothing is scored without references."""
        return Tags(needs_references=True, class_names=False)

    def compare(self, features: Features, text: Any, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Returns each patch's distance to the nearest reference patch, and no zero-shot scores."""
        distance = self.nearest(features, references)
        assert distance is not None
        return self.scores_of(distance)

    def scores_of(self, distance: Tensor) -> Scores:
        """Makes scores from patch distances (B, h, w): the map, and the mean of the largest for the image."""
        highest = distance.flatten(1).topk(max(1, int(self.top * distance[0].numel())), dim=1).values
        return Scores(distance[:, None][:, :0], highest.mean(1, keepdim=True), distance)

    def components_of(self, scores: Scores, anomaly_map: Tensor) -> Tensor:
        """Returns the mean of the largest distances (B, 1); with a region of interest, only inside it."""
        assert scores.image is not None
        assert scores.memory is not None
        if scores.roi is None:
            return scores.image.to(torch.float32)
        inside = F.adaptive_max_pool2d(scores.roi.float()[:, None], scores.memory.shape[-2:])[:, 0] > 0
        means = []
        for distance, part in zip(scores.memory, inside, strict=True):
            count = max(1, int(self.top * int(part.sum())))
            means.append(distance[part].topk(count).values.mean())
        return torch.stack(means)[:, None].to(torch.float32)
