"""MuSc: the images of a test set score each other; no training, no references, no text.

Source: Li et al., "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with Mutual Scoring of the
Unlabeled Images", ICLR 2024, arXiv 2401.16753, and its published code, whose numbers are reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.clip.numerics import Numerics
from vlad.clip.similarity import normalize, zero_to_one
from vlad.encoders import Encoder
from vlad.encoders.dino import VisionTower
from vlad.errors import MethodError
from vlad.methods.base import Method
from vlad.types import Features, Prediction, Scores, Tags

__all__ = ["MuSc", "mutual_scores", "neighbourhood_means", "smooth_over_neighbours"]

_CHUNK_BYTES = 256 << 20


class MuSc(Method):
    """Mutual scoring of unlabelled images: a normal patch has similar patches in most other images; training-free.

    Transductive: it uses all test images of a category to score each one, so an image's score depends on the others,
    and its figures are not comparable with those of methods that score images independently.

    Paper: MuSc, arXiv 2401.16753.
    """

    align_corners = True

    def __init__(
        self,
        backbone: str | Encoder = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 518,
        layers: Sequence[int] | None = None,
        degrees: Sequence[int] = (1, 3, 5),
        share: float = 0.3,
        neighbours: Sequence[int] = (1, 2, 3),
        activation: Literal["gelu", "pretrained"] = "gelu",
        sigma: float = 0.0,
    ) -> None:
        """Builds the method on a frozen encoder.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder``, ``vlad-tiny``, ``timm:name``, or a
                ready encoder.
            pretrained: Weights tag or file; ``random`` for random weights.
            image_size: Side S of the images in pixels; images are resized to a square.
            layers: Layers whose patches are scored, from 1; by default four at equal distances, 6, 12, 18, 24 of 24.
            degrees: Sides in patches of the neighbourhoods over which patches are averaged; odd.
            share: Of the other images, so many that a patch is nearest to count for it; at least one.
            neighbours: The image score is averaged over so many images whose embeddings are alike, the image itself
                among them, and over these numbers. Published: 1, 2, 3; on VisA 1, 8, 9.
            activation: ``gelu``: in place of the QuickGELU that OpenAI's weights were trained with, as the published
                code has it at any image size but CLIP's own. ``pretrained``: what CLIP was trained with.
            sigma: Standard deviation in pixels of a Gaussian over the map; published: none.

        Raises:
            MethodError: A setting is out of range.
        """
        # Of this object, ahead of the base, which builds CLIP by it.
        self.numerics = Numerics(activation=activation)  # type: ignore[misc]
        super().__init__(
            backbone=backbone,
            pretrained=pretrained,
            image_size=image_size,
            layers=layers or (),
            sigma=sigma,
            text=False,
        )
        depth = self.backbone.depth
        self.layers = self.layers or tuple(sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3, 4)}))
        for name, values in (("degrees", degrees), ("neighbours", neighbours)):
            if not values or any(value < 1 or (name == "degrees" and value % 2 == 0) for value in values):
                odd = "odd " if name == "degrees" else ""
                raise MethodError(f"{name} are {odd}numbers, at least 1, got {list(values)}")
        if not 0 < share <= 1:
            raise MethodError(f"share must lie above 0 and up to 1, got {share}")
        self.degrees, self.share, self.neighbours = tuple(degrees), share, tuple(neighbours)

    @property
    def tags(self) -> Tags:
        """Needs the features of all test images of a category; references would be one more image of the set."""
        return Tags(
            transductive="features",
            takes_references=False,
            class_names=False,
            no_export="a set is scored, not an image",
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Features:
        """Reads patch tokens of the layers as they are, and the image embedding.

        Of a vision-only tower as the published code does with DINOv2: all layers go through the final norm, and the
        image embedding, its class token, keeps its length. CLIP's has length 1.
        """
        features = self.backbone.encode(images, self.layers)
        if not isinstance(self.backbone, VisionTower):
            return Features(features.levels, normalize(features.image))
        norm: Any = self.backbone.model.norm
        last = self.backbone.depth  # normed already
        levels = [x if n == last else norm(x) for n, x in zip(self.layers, features.levels, strict=True)]
        return Features(tuple(levels), features.image)

    def compare(self, features: Features, text: Any, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Refuses: one image alone has no score.

        Raises:
            MethodError: Always.
        """
        raise MethodError("MuSc scores the images of a test set by each other (transductive): run vlad test")

    def patch_scores(self, levels: Sequence[Tensor]) -> Tensor:
        """Returns mutual scores (N, h, w) of patches (N, h, w, W): their mean over layers and neighbourhoods."""
        total = torch.zeros(levels[0].shape[:3], dtype=torch.float64, device=levels[0].device)
        for degree in self.degrees:
            for level in levels:
                patches = neighbourhood_means(level, degree)
                total += mutual_scores(patches.flatten(1, 2), self.share).view_as(total)
        return total / (len(self.degrees) * len(levels))

    @torch.no_grad()
    def score_set(self, features: Features | None, predictions: Prediction | None, size: tuple[int, int]) -> Prediction:
        """Scores all images of a category by each other.

        Args:
            features: Features of all images.
            predictions: None.
            size: Height and width of the maps.

        Raises:
            MethodError: There is one image alone.
        """
        assert features is not None
        assert features.image is not None
        if len(features.image) < 2:
            raise MethodError("MuSc scores the images of a category by each other, and there is but one")
        with torch.autocast(features.image.device.type, enabled=False):
            patches = self.patch_scores([level.float() for level in features.levels])
            found = self.finish(Scores(patches.float()[:, None]), size)
            scores = smooth_over_neighbours(zero_to_one(found.image_score), features.image.float(), self.neighbours)
        return found._replace(image_score=scores, score_components=scores[:, None])


def neighbourhood_means(patches: Tensor, degree: int) -> Tensor:
    """Averages patches over their neighbourhood (LNAMD).

    Args:
        patches: Patch tokens (N, h, w, W) of one layer.
        degree: Side of the neighbourhood in patches.

    Returns:
        Unit vectors (N, h, w, W). An image's numbers are normalised all together first, not patch by patch.
    """
    x = patches.permute(0, 3, 1, 2)
    x = F.layer_norm(x, x.shape[1:])
    if degree > 1:  # the border's zeros count: a factor that the unit length takes away
        x = F.avg_pool2d(x, degree, 1, degree // 2)
    return F.normalize(x.permute(0, 2, 3, 1), dim=-1)


def mutual_scores(patches: Tensor, share: float, chunk_bytes: int = _CHUNK_BYTES) -> Tensor:
    """Scores the patches of each image by all other images (MSM).

    A patch's distance to an image is that to its nearest patch; the score is the mean over the share of the images
    that are nearest. Each product of two images serves both ways. Beside the patches it holds (N, N, P) distances and
    about ``chunk_bytes``.

    Args:
        patches: Unit vectors (N, P, W) of N images.
        share: Share of the N - 1 other images, at least one of them.
        chunk_bytes: Memory of the similarities that are looked at together.

    Returns:
        Scores (N, P), float64: Euclidean distances, in [0, 2].
    """
    count, length, _ = patches.shape
    nearest = patches.new_full((count, count, length), torch.inf)  # [i, j]: patches of image i, to image j
    together = max(1, chunk_bytes // (4 * length * length))
    for i in range(count - 1):
        for first in range(i + 1, count, together):
            others = patches[first : first + together]
            cosine = torch.einsum("pw,nqw->npq", patches[i], others)
            nearest[i, first : first + together] = cosine.amax(2)
            nearest[first : first + together, i] = cosine.amax(1)
    for i in range(count):  # one image at a time: the distances are held once
        nearest[i] = (2 - 2 * nearest[i]).clamp(min=0).sqrt()
        nearest[i, i] = torch.inf
    kept = max(1, int(share * (count - 1)))
    return torch.stack([own.topk(kept, dim=0, largest=False).values.double().mean(0) for own in nearest])


def smooth_over_neighbours(scores: Tensor, embeddings: Tensor, numbers: Sequence[int]) -> Tensor:
    """Averages image scores over images that are alike (RsCIN).

    Args:
        scores: Image scores (N,), rescaled to [0, 1] over the set.
        embeddings: Image embeddings (N, D).
        numbers: Each number of nearest images, the image itself among them, gives weighted means; those are averaged.

    Returns:
        Scores (N,).
    """
    alike = embeddings @ embeddings.T
    means = []
    for number in numbers:
        weights, index = alike.topk(min(number, len(scores)), dim=1)
        means.append((weights / weights.sum(1, keepdim=True) * scores[index]).sum(1))
    return torch.stack(means).mean(0)
