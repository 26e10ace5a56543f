"""AnomalyDINO: patches of DINOv2 compared with those of a few normal images, rotated, and a foreground mask.

Source: Damm et al., "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2", WACV 2025, arXiv
2405.14529, and its published code, whose numbers are reproduced.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.encoders import Encoder
from vlad.errors import MethodError
from vlad.memory import nearest_distance
from vlad.methods.patch_memory import NearestPatch
from vlad.types import Features, Prediction, Requirements, Scores, Tags

__all__ = ["AnomalyDINO", "foreground"]

_MASKED = {  # MVTec AD's and VisA's classes with a mask, by the names of categories and by either style of class names
    *("capsule", "hazelnut", "pill", "screw", "toothbrush"),
    *("candle", "capsules", "cashew", "chewinggum", "chewing_gum", "fryum", "pipe_fryum"),
    *("macaroni", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3", "pcb4", "printed_circuit_board"),
}


class AnomalyDINO(NearestPatch):
    """Distance of DINOv2's patches to the nearest of a few normal images and their rotations; training-free.

    If the category has a background, patches outside the foreground count as normal; the foreground is found by the
    first principal component of the image's patches. Without references, the batched zero-shot variant compares each
    image with all others of the test set.

    Paper: AnomalyDINO, arXiv 2405.14529.
    """

    def __init__(
        self,
        backbone: str | Encoder = "timm:vit_small_patch14_dinov2.lvd142m",
        pretrained: str | None = None,
        image_size: int = 448,
        aspect: Literal["squash", "keep"] = "keep",
        rotations: int = 8,
        mask: Literal["published", "all", "none"] = "published",
        mask_neighbours: Literal["raster", "grid"] = "raster",
        component_sign: Literal["loadings", "scores"] = "loadings",
        sigma: float = 4.0,
        top: float = 0.01,
        batched_share: float | None = None,
    ) -> None:
        """Builds the method on a frozen encoder.

        Args:
            backbone: ``timm:name``, or any other encoder: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder``,
                ``vlad-tiny``, or a ready one.
            pretrained: Weights tag or file; ``random`` for random weights.
            image_size: Shorter side of the images in pixels; published: 448, and 672 for the batched variant.
            aspect: ``keep`` the aspect ratio, or ``squash`` to a square.
            rotations: Each reference is remembered turned by so many equal angles; 1 for none, as published with
                "informed" preprocessing for all categories but hazelnut and screw.
            mask: ``published``: a foreground mask for those classes of MVTec AD and VisA that have one there, told by
                the class name; ``all`` or ``none`` of the images.
            mask_neighbours: The mask is dilated and closed along the ``raster`` order of the patches, across the ends
                of rows and never up or down, as the published code does; or in both directions of the ``grid``.
            component_sign: The principal component points to where its largest entry in size is positive, of the
                ``loadings`` as in scikit-learn of today, or of the patches' ``scores`` as in older ones.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            top: Share of the patches whose mean distance is the image score; at least one patch.
            batched_share: None to compare with references. A share, published 0.001, for the batched zero-shot
                variant: the mean distance to that share of the patches of all other test images, at least one patch;
                transductive.

        Raises:
            MethodError: A setting is out of range.
        """
        super().__init__(
            backbone=backbone, pretrained=pretrained, image_size=image_size, aspect=aspect, sigma=sigma, top=top
        )
        if rotations < 1:
            raise MethodError(f"rotations is a number of copies of a reference, at least 1, got {rotations}")
        if batched_share is not None and not 0 < batched_share < 1:
            raise MethodError(f"batched_share must lie between 0 and 1, or be null, got {batched_share}")
        if batched_share is not None and mask == "published":
            raise MethodError("batched_share: a set is scored without its class names; give mask all or none")
        self.rotations, self.mask, self.batched_share = rotations, mask, batched_share
        self.mask_neighbours, self.component_sign = mask_neighbours, component_sign

    @property
    def requirements(self) -> Requirements:
        """References include their rotations, which are computed from the image at full size."""
        return replace(super().requirements, reference_rotations=self.rotations)

    @property
    def tags(self) -> Tags:
        """The batched variant uses the whole test set and no references."""
        batched = self.batched_share is not None
        return Tags(
            transductive="features" if batched else "",
            needs_references=not batched,
            takes_references=not batched,
            class_names=self.mask == "published",
            no_export="a set is scored, not an image" if batched else "",
        )

    def class_text(self, class_name: str) -> Tensor:
        """Returns whether images of a class have a foreground mask, bool."""
        return torch.tensor(class_name.casefold().replace(" ", "_") in _MASKED)

    def compare(self, features: Features, text: Any, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Returns each patch's distance to the nearest reference patch, 0 outside of the foreground.

        Args:
            features: Output of :meth:`encode`.
            text: Which images have a foreground mask (B,), bool; None where the setting tells it for all.
            references: Patches of one category's references.
        """
        distance = self.nearest(features, references)
        if distance is None:
            raise MethodError("AnomalyDINO with batched_share scores a whole test set at once: run vlad test")
        if self.mask == "none" or not (text is None or torch.compiler.is_compiling() or bool(text.any())):
            return self.scores_of(distance)
        inside = self.foreground(features.levels[0])
        if text is not None:
            inside = inside | ~text[:, None, None]
        return self.scores_of(distance * inside)

    def foreground(self, tokens: Tensor) -> Tensor:
        """Returns which patches belong to the object (B, h, w), bool; see :func:`foreground`."""
        return foreground(tokens, raster=self.mask_neighbours == "raster", by_scores=self.component_sign == "scores")

    @torch.no_grad()
    def score_set(self, features: Features | None, predictions: Prediction | None, size: tuple[int, int]) -> Prediction:
        """Compares each image with all others: the mean distance to the nearest ``batched_share`` of their patches.

        Args:
            features: Features of all images of a category.
            predictions: None.
            size: Height and width of the maps.

        Raises:
            MethodError: There is only one image.
        """
        assert features is not None
        assert self.batched_share is not None
        tokens = features.levels[0]
        unit = F.normalize(tokens.float().flatten(1, 2), dim=-1)
        if len(unit) < 2:
            raise MethodError("batched_share compares the images of a category with each other, and there is but one")
        # Published: the mean of what lies strictly below the share's quantile, which is the patch left out here. Of
        # less than two patches that is nothing; here it is the nearest one.
        nearest = max(1, int(self.batched_share * (len(unit) - 1) * unit.shape[1]) - 1)
        distances = [
            nearest_distance(
                one, torch.cat([unit[:i], unit[i + 1 :]]).flatten(0, 1), neighbours=nearest, unit_bank=True
            )
            for i, one in enumerate(unit)
        ]
        distance = torch.stack(distances).unflatten(1, tokens.shape[1:3])
        return self.finish(self.scores_of(distance * self.foreground(tokens) if self.mask == "all" else distance), size)


def foreground(tokens: Tensor, *, raster: bool = True, by_scores: bool = False, threshold: float = 10.0) -> Tensor:
    """Tells object from background by the first principal component of an image's patches.

    The side of the threshold that more than 35 % of the image's centre are on, or else the other one, dilated and
    closed with 3 patches.

    Args:
        tokens: Patch tokens (B, h, w, D).
        raster: Whether patches are neighbours along the raster order alone; else in both directions.
        by_scores: Whether the component's sign goes by the largest score, not the largest loading.
        threshold: Least score of an object's patch, on the scale of DINOv2's tokens.

    Returns:
        Which patches belong to the object (B, h, w), bool.
    """
    height, width = tokens.shape[1:3]
    centred = tokens.double().flatten(1, 2)
    centred = centred - centred.mean(1, keepdim=True)
    component = torch.linalg.eigh(centred.transpose(1, 2) @ centred).eigenvectors[..., -1:]
    scores = centred @ component
    told = scores if by_scores else component
    scores = (scores * told.gather(1, told.abs().argmax(1, keepdim=True)).sign()).view(-1, height, width)
    rows, columns = (slice(int(0.2 * side), int(0.8 * side)) for side in (height, width))
    covered = (scores[:, rows, columns] > threshold).double().mean((1, 2))[:, None, None]
    on = torch.where(covered <= 0.35, -scores > threshold, scores > threshold)
    # Along the raster order: a row of one long image, as the published code hands a column to OpenCV.
    flags = on.double().view(-1, 1, 1, height * width) if raster else on.double()[:, None]
    kernel = (1, 3) if raster else (3, 3)

    def dilate(flags: Tensor) -> Tensor:
        return F.max_pool2d(flags, kernel, 1, (kernel[0] // 2, 1))

    closed = 1 - dilate(1 - dilate(dilate(flags)))
    return (closed > 0.5).view(-1, height, width)
