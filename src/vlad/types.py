"""What enters a method and what leaves it: one batch, one prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

__all__ = ["Batch", "Prediction", "Preprocess", "known_masks"]


class Batch(TypedDict, total=False):
    """One batch of images as the datamodules make it.

    ``predict`` batches hold no ``mask``, ``has_mask`` and ``label``.

    Attributes:
        image: Float images (B, 3, S, S), resized and normalised as the method asks.
        mask: Ground-truth masks (B, S, S), bool; all False for normal images.
        has_mask: Whether the pixels' truth is known (B,), bool: normal images and masked anomalies.
        label: Image labels (B,), int64: 0 normal, 1 anomalous, -1 unknown.
        class_name: What is in the picture, as said in the prompts (B strings).
        dataset: Name of the data set (B strings).
        category: Category within the data set (B strings).
        key: Name of the image, unique within its data set and category (B strings).
        path: Image file (B strings).
        mask_path: Mask file or "" (B strings).
        mask_threshold: Largest value in that file that still means normal (B,), int64.
        index: Row in the split's index (B,), int64.
        band: Part "k/n" of the file's rows that is the image, or "" (B strings).
        frame: Number of the video's frame, or -1 (B,), int64.
        reader: As for :func:`vlad.datamodules.decode.load_image` (B strings).
    """

    image: Tensor
    mask: Tensor
    has_mask: Tensor
    label: Tensor
    class_name: list[str]
    dataset: list[str]
    category: list[str]
    key: list[str]
    path: list[str]
    mask_path: list[str]
    mask_threshold: Tensor
    index: Tensor
    band: list[str]
    frame: Tensor
    reader: list[str]


def known_masks(batch: Batch) -> Tensor:
    """Returns of which images of a batch the pixels' truth is known (B,), bool: of all where it says nothing."""
    return batch["has_mask"] if "has_mask" in batch else torch.ones(len(batch["image"]), dtype=torch.bool)


@dataclass(frozen=True)
class Prediction:
    """What a method says of a batch; higher means more anomalous.

    Attributes:
        raw_map: Anomaly map before smoothing (B, S, S), float32.
        anomaly_map: Anomaly map smoothed as the method's published evaluation does (B, S, S), float32.
        image_score: One score per image (B,), float32.
        image_terms: Optional parts (B, T) of the image score, for protocols that combine them over a whole
            test set (:meth:`vlad.Method.fuse_scores`).
        unrefined: What a method that refines its maps said before it did; evaluated and drawn beside the rest.
    """

    raw_map: Tensor
    anomaly_map: Tensor
    image_score: Tensor
    image_terms: Tensor | None = None
    unrefined: Prediction | None = None

    def detached(self) -> Prediction:
        """Returns the prediction in float32, without gradients."""
        as_float = {
            name: value.detach().to(torch.float32) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **as_float, unrefined=self.unrefined and self.unrefined.detached())


@dataclass(frozen=True)
class Preprocess:
    """What a method wants done to a picture before it sees it.

    Attributes:
        size: Side S in pixels; the picture is squashed to a square with PIL's bicubic filter.
        mean: Normalisation mean per RGB channel, for values in [0, 1].
        std: Normalisation standard deviation per RGB channel.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
