"""The other public reimplementation of WinCLIP, which differs from the paper in its arithmetic.

Source: github.com/caoyunkang/WinClip at 0818c9d, whose numbers are reproduced but for what is said below. Published
tables quote it; :class:`vlad.methods.winclip.WinCLIP` is what the paper describes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlad.clip.similarity import normalize, restrict, upsample
from vlad.clip.windows import encode_windows, mean_over_windows, onednn_products
from vlad.methods.winclip import WinCLIP
from vlad.types import Features, Prediction, Scores

__all__ = ["CaoyunkangWinCLIP"]


class CaoyunkangWinCLIP(WinCLIP):
    """WinCLIP with the arithmetic of caoyunkang's code: harmonic means of *normality*, so that it leans to anomalous.

    Left out are its half precision, the swapped colour channels of its test images, and a slip by which the first
    window of every scale but the first is compared with the references of the scale before.

    Paper: WinCLIP, arXiv 2303.14814, as read by github.com/caoyunkang/WinClip.
    """

    def __init__(self, pretrained: str | None = "laion400m_e32", temperature: float = 0.01, **winclip: Any) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            pretrained: open_clip weights tag, for plain names.
            temperature: Cosines are divided by it ahead of the softmax.
            **winclip: As for :class:`WinCLIP`.
        """
        super().__init__(pretrained=pretrained, temperature=temperature, **winclip)

    def class_text(self, class_name: str) -> Tensor:
        """Returns a class's two prototypes (2, D), unit length; its sentences have no full stop."""
        groups = [[one.removesuffix(".") for one in group] for group in self.prompts.sentences(class_name)]
        return normalize(torch.stack([self.text_tower.encode(group).float().mean(0) for group in groups]))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Features:
        """Embeds the windows alone (B, h - s + 1, w - s + 1, D), one level per scale."""
        tower = self.backbone.image
        x, grid = tower.embed(images), tower.grid(images.shape[-2], images.shape[-1])
        self._check_scales(grid)
        with onednn_products(x):
            return Features(tuple(encode_windows(tower, x, grid, side) for side in self.scales))

    def compare(self, features: Features, text: Tensor, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Aggregates normality harmonically over the windows and over the scales, and takes it from 1."""
        inverse = [
            mean_over_windows(1 / self.probabilities(windows, text)[..., 0], side)
            for windows, side in zip(features.levels, self.scales, strict=True)
        ]
        abnormal = 1 - 1 / torch.stack(inverse).mean(0)
        return Scores(abnormal[:, None], memory=self.nearest(features, references))

    def nearest(self, features: Features, references: tuple[Tensor, ...] | None) -> Tensor | None:
        """Returns the map of distances to references (B, h, w): plain means over windows and scales."""
        if references is None:
            return None
        found = zip(self.distances(features, references), self.scales, strict=True)
        return torch.stack([mean_over_windows(one, side) for one, side in found]).mean(0)

    def finish(self, scores: Scores, size: tuple[int, int]) -> Prediction:
        """Adds the inverses of both maps; without references the text's map counts twice. The score is the maximum."""
        textual = scores.patches[:, 0]
        visual = textual if scores.memory is None else scores.memory
        patches = 1 / (1 / textual + 1 / visual)
        unsmoothed = upsample(patches, size, align_corners=self.align_corners)
        anomaly_map = restrict(self.smooth(unsmoothed), scores.roi)
        components = anomaly_map.amax((1, 2))[:, None]
        return Prediction(anomaly_map, components.sum(1), restrict(unsmoothed, scores.roi), components)
