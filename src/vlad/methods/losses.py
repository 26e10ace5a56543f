"""Losses on anomaly probability maps, as the CLIP-based detectors publish them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.errors import MethodError, nearest

__all__ = [
    "PIXEL_LOSSES",
    "Losses",
    "balanced_bce_loss",
    "dice_loss",
    "focal_loss",
    "map_losses",
    "margin_losses",
    "two_classes",
]


def two_classes(margin: Tensor) -> Tensor:
    """Returns the probabilities of normal and abnormal (B, 2, …) from logit margins (B, …)."""
    return torch.stack([F.sigmoid(-margin), F.sigmoid(margin)], dim=1)


def focal_loss(probabilities: Tensor, target: Tensor, *, gamma: float = 2.0, eps: float = 1e-5) -> Tensor:
    """Computes the focal loss on probabilities, averaged over all pixels.

    The one-hot target is clamped to [eps, 1 − eps] and eps is added to the probability of the true class
    (APRIL-GAN, CLIP-AD, AnomalyCLIP and AdaCLIP share this form).

    Args:
        probabilities: Class probabilities (B, 2, ...), normal first.
        target: 1 where anomalous (B, ...), any integer, bool or float type.
        gamma: Focusing exponent.
        eps: Smoothing of the target.

    Returns:
        A scalar.
    """
    anomalous = target.to(probabilities.dtype)
    one_hot = torch.stack([1 - anomalous, anomalous], dim=1).clamp(eps, 1 - eps)
    true = (one_hot * probabilities).sum(dim=1) + eps
    return (-((1 - true) ** gamma) * true.log()).mean()


def dice_loss(probability: Tensor, target: Tensor, *, smoothing: float = 1.0) -> Tensor:
    """Computes one minus the soft Dice coefficient per image, averaged over the batch.

    Args:
        probability: Probability of the region (B, H, W).
        target: 1 inside the region (B, H, W).
        smoothing: Added to numerator and denominator.

    Returns:
        A scalar.
    """
    probability, target = probability.flatten(1), target.flatten(1).to(probability.dtype)
    overlap = (probability * target).sum(1)
    total = probability.sum(1) + target.sum(1)
    return (1 - (2 * overlap + smoothing) / (total + smoothing)).mean()


def margin_losses(margins: Iterable[Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Computes focal and Dice loss of logit margins, each summed over several levels, as APRIL-GAN and SDP+ do.

    The same as :func:`focal_loss` of :func:`two_classes` and :func:`dice_loss` of the sigmoid, in half the passes over
    the pixels.

    Args:
        margins: Logit margins of each level (B, H, W).
        mask: True where anomalous (B, H, W), bool.
    """
    eps = 1e-5  # as in focal_loss
    sign = torch.where(mask, 1.0, -1.0)
    inside = mask.flatten(1).sum(1)
    focal, dice = [], []
    for margin in margins:
        true = (margin * sign).sigmoid()  # probability of the true class
        smoothed = true * (1 - 2 * eps) + 2 * eps
        focal.append(-((1 - smoothed).square() * smoothed.log()).mean())
        overlap = (true * mask).flatten(1).sum(1)
        outside = (~mask).flatten(1).sum(1) - ((true * ~mask).flatten(1).sum(1))  # abnormal probability there
        dice.append((1 - (2 * overlap + 1) / (overlap + outside + inside + 1)).mean())
    return {"focal": torch.stack(focal).sum(), "dice": torch.stack(dice).sum()}


def map_losses(maps: Iterable[tuple[Tensor, ...]], mask: Tensor) -> dict[str, Tensor]:
    """Computes the map losses of AnomalyCLIP and related methods, each summed over the levels.

    Args:
        maps: Probabilities of normal and of abnormal (B, H, W) for each level.
        mask: 1 where anomalous (B, H, W).

    Returns:
        The focal loss, and the Dice loss of the anomalous (``dice``) and of the normal region (``dice_normal``).
    """
    mask, terms = mask.bool(), []
    for normal, abnormal in maps:
        focal = focal_loss(torch.stack([normal, abnormal], dim=1), mask)
        terms.append(torch.stack([focal, dice_loss(abnormal, mask), dice_loss(normal, ~mask)]))
    return dict(zip(("focal", "dice", "dice_normal"), torch.stack(terms).sum(0), strict=True))


def balanced_bce_loss(logits: Tensor, target: Tensor, *, negatives: float = 3.0) -> Tensor:
    """Computes the binary cross-entropy over all anomalous pixels and the hardest normal ones.

    Args:
        logits: Logits (B, H, W).
        target: True where anomalous (B, H, W), bool.
        negatives: Normal pixels per anomalous pixel; without anomalous pixels, a hundredth of all pixels count.

    Returns:
        A scalar.
    """
    each = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").flatten()
    target = target.flatten().bool()
    positives = int(target.sum())
    wanted = int(negatives * positives) if positives else len(target) // 100
    hardest = each[~target].topk(min(max(1, wanted), len(target) - positives)).values
    return (each[target].sum() + hardest.sum()) / max(1, positives + len(hardest))


PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": lambda logits, target: F.binary_cross_entropy_with_logits(logits, target.float()),
    "balanced_bce": balanced_bce_loss,
    "focal": lambda logits, target: focal_loss(two_classes(logits), target),
}


@dataclass
class Losses:
    """The terms of the training loss of a method that learns from pseudo-anomalies.

    Attributes:
        pixel: Loss in addition to Dice: binary cross-entropy; the same with three hard negatives for each positive; or
            focal (A10).
        region_view: Weight of the loss on a square region around the pseudo-anomaly; 0 for none (A11).
    """

    pixel: Literal["bce", "balanced_bce", "focal"] = "bce"
    region_view: float = 1.0

    def __post_init__(self) -> None:
        """Rejects unknown losses."""
        if self.pixel not in PIXEL_LOSSES:
            raise MethodError(f"no pixel loss is named '{self.pixel}'; {nearest(self.pixel, PIXEL_LOSSES)}")
