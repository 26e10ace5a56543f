"""WinCLIP and WinCLIP+: windows of an image compared with text, and with windows of a few normal images.

Source: Jeong et al., "WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation", CVPR 2023, arXiv 2303.14814.
Its code is not public; anomalib's reimplementation, whose numbers are reproduced, agrees with the paper's formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.clip.similarity import normalize, restrict, upsample
from vlad.clip.windows import encode_windows, mean_over_windows, onednn_products
from vlad.encoders import Encoder
from vlad.errors import MethodError, nearest
from vlad.memory import nearest_distance
from vlad.methods.base import Method
from vlad.methods.winclip_prompts import SENTENCES, Sentences
from vlad.types import Features, Prediction, Preprocess, Requirements, Scores, name_features

__all__ = ["WinCLIP"]


class WinCLIP(Method):
    """Windows of two sizes, each embedded as a separate image and compared with text; training-free.

    A window of 2 x 2 or 3 x 3 patches goes through CLIP without the rest of the image, so that its embedding is aligned
    with the text embeddings, unlike a patch token. With references (WinCLIP+), windows and patch tokens
    are also compared with those of normal images.

    Paper: WinCLIP, arXiv 2303.14814.
    """

    def __init__(
        self,
        backbone: str | Encoder = "ViT-B-16-plus-240",
        pretrained: str | None = "laion400m_e31",
        image_size: int = 240,
        scales: Sequence[int] = (2, 3),
        temperature: float = 0.07,
        prompts: Sentences = "paper",
        aspect: Literal["squash", "keep"] = "squash",
        sigma: float = 0.0,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny``.
            pretrained: open_clip weights tag, for plain names; ``random`` for random weights.
            image_size: Side S of the images in pixels; with ``aspect: keep`` the shorter one.
            scales: Sides of the windows in patches.
            temperature: Divisor of the cosines before the softmax. The paper does not state it; anomalib uses 0.07.
            prompts: ``paper`` for its 22 templates, ``anomalib`` for the 21 lines of that code.
            aspect: ``squash`` to a square, as anomalib does, or ``keep`` the aspect ratio, which the paper's shorter
                side of 240 px comes nearest to.
            sigma: Standard deviation in pixels of a Gaussian over the map; published: none.

        Raises:
            BackboneError: The encoder cannot be loaded, or the patch does not divide ``image_size``.
            MethodError: A window does not fit on the patch grid, or another setting is out of range.
        """
        super().__init__(backbone=backbone, pretrained=pretrained, image_size=image_size, sigma=sigma)
        _ = self.text_tower  # refuses an encoder without text
        self.scales = tuple(sorted(scales))
        self._check_scales(self.backbone.grid(image_size, image_size))
        if temperature <= 0:
            raise MethodError(f"temperature must be above 0, got {temperature}")
        if prompts not in SENTENCES:
            raise MethodError(f"there are no prompts '{prompts}'; {nearest(prompts, list(SENTENCES))}")
        self.temperature, self.aspect = temperature, aspect
        self.prompts = SENTENCES[prompts]

    def _check_scales(self, grid: tuple[int, int]) -> None:
        if not self.scales or len(set(self.scales)) < len(self.scales) or self.scales[0] < 1:
            raise MethodError(f"scales must be different numbers of patches, at least 1, got {list(self.scales)}")
        if self.scales[-1] > min(grid):
            raise MethodError(
                f"windows of {self.scales[-1]} patches do not fit on a grid of {grid[0]} x {grid[1]}; give smaller "
                "scales or a larger image_size"
            )

    @property
    def requirements(self) -> Requirements:
        """With ``aspect: keep`` both sides are multiples of the patch."""
        encoder = self.backbone
        return Requirements(
            Preprocess(self.image_size, encoder.mean, encoder.std, self.aspect, multiple=encoder.patch_size)
        )

    # -- text ----------------------------------------------------------------------------------------------

    def class_text(self, class_name: str) -> Tensor:
        """Returns a class's two prototypes (2, D), unit length: normal, anomalous.

        Each is the mean of its sentences' embeddings, which are *not* normalised first.
        """
        normal, anomalous = self.prompts.sentences(class_name)
        rows = self.text_tower.encode([*normal, *anomalous]).float()
        return normalize(torch.stack([rows[: len(normal)].mean(0), rows[len(normal) :].mean(0)]))

    # -- image ---------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Features:
        """Embeds the image and every window of every scale.

        Returns:
            As ``levels`` the window embeddings of each scale (B, h - s + 1, w - s + 1, D) and, where references are
            compared, the patch tokens of the last block (B, h, w, W); as ``image`` the embedding (B, D).
        """
        patches = ("patches of the last block, normed",) if self.memory.in_use else ()
        names = name_features(levels=(*(f"windows of {side}" for side in self.scales), *patches), image="embedding")
        return self.frozen(images, self._encode, names)

    def _encode(self, images: Tensor) -> Features:
        tower = self.backbone.image
        x, grid = tower.embed(images), tower.grid(images.shape[-2], images.shape[-1])
        self._check_scales(grid)
        with onednn_products(x):
            windows = tuple(encode_windows(tower, x, grid, side) for side in self.scales)
            if not self.memory.in_use:
                return Features(windows, tower.encode_tokens(x))
            last = tower.run(x).last
        patches = tower.visual.ln_post(last[:, 1:]).unflatten(1, grid)
        return Features((*windows, patches), tower.project(last[:, 0]))

    # -- scores --------------------------------------------------------------------------------------------

    def probabilities(self, embeddings: Tensor, text: Tensor) -> Tensor:
        """Returns the softmax over the cosines with both prototypes.

        Args:
            embeddings: Embeddings (B, …, D), not normalised.
            text: Prototypes (B, 2, D).

        Returns:
            Probabilities (B, …, 2): normal, anomalous.
        """
        rows = normalize(embeddings.float()).flatten(1, -2)
        cosines = rows @ text.float().transpose(1, 2)
        return (cosines / self.temperature).softmax(-1).unflatten(1, embeddings.shape[1:-1])

    def compare(self, features: Features, text: Tensor, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Aggregates anomaly probabilities harmonically: over the windows that cover a patch, and over the scales.

        The whole image is the largest scale. Small values dominate a harmonic mean: one normal window suffices.
        """
        assert features.image is not None
        whole = self.probabilities(features.image[:, None], text)[..., 1]  # (B, 1)
        inverse = [
            mean_over_windows(1 / self.probabilities(windows, text)[..., 1], side)
            for windows, side in zip(features.levels, self.scales, strict=False)
        ]
        inverse.append((1 / whole)[..., None].expand_as(inverse[0]))
        return Scores((1 / torch.stack(inverse).mean(0))[:, None], whole, self.nearest(features, references))

    def distances(self, features: Features, references: tuple[Tensor, ...]) -> list[Tensor]:
        """Returns (1 - cosine) / 2 to the nearest of all references, wherever it is in them, for each level.

        Returns:
            Distances of each window (B, h - s + 1, w - s + 1) per scale, and of each patch (B, h, w).
        """
        if len(features.levels) != len(references):
            raise MethodError(
                f"the references have {len(references)} levels and the image {len(features.levels)}; fit the "
                "references with this method's scales, ahead of encode"
            )
        pairs = zip(features.levels, references, strict=True)
        return [nearest_distance(level, bank, unit_bank=True) / 2 for level, bank in pairs]

    def nearest(self, features: Features, references: tuple[Tensor, ...] | None) -> Tensor | None:
        """Returns WinCLIP+'s map of distances to references (B, h, w): the mean over patches and each scale."""
        if references is None:
            return None
        *windows, patches = self.distances(features, references)
        maps = [1 / mean_over_windows(1 / one, side) for one, side in zip(windows, self.scales, strict=True)]
        return torch.stack([patches, *maps]).mean(0)

    def finish(self, scores: Scores, size: tuple[int, int]) -> Prediction:
        """Averages the text's map with the references' map, and the image's probability with that map's maximum.

        Args:
            scores: Output of :meth:`compare`.
            size: Height and width of the maps.
        """
        assert scores.image is not None
        patches, components = scores.patches[:, 0], scores.image
        if scores.memory is not None:
            patches = (patches + scores.memory) / 2
            farthest = self._inside(scores.memory, scores.roi).amax((1, 2))
            components = torch.cat([components, farthest[:, None]], 1) / 2
        unsmoothed = upsample(patches, size, align_corners=self.align_corners)
        anomaly_map = restrict(self.smooth(unsmoothed), scores.roi)
        return Prediction(anomaly_map, components.sum(1), restrict(unsmoothed, scores.roi), components)

    @staticmethod
    def _inside(patches: Tensor, roi: Tensor | None) -> Tensor:
        """Gives patches (B, h, w) outside of a region of interest the lowest value inside."""
        if roi is None:
            return patches
        return restrict(patches, F.adaptive_max_pool2d(roi.float()[:, None], patches.shape[-2:])[:, 0] > 0)
