"""Types passed between data, methods and callbacks: a batch, and the output of each stage of a method.

Every method processes images in the same stages::

    images ── encode ──▶ Features ── compare ──▶ Scores ── finish ──▶ Prediction

The three outputs are named tuples of tensors (pytrees), so that they can be exported, gathered, cached and sliced by
image. Class names never enter the network: they are encoded as text tensors before ``compare``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

import torch
from torch import Tensor

__all__ = [
    "Batch",
    "Features",
    "Prediction",
    "Preprocess",
    "Requirements",
    "Scores",
    "Supervision",
    "Tags",
    "join_rows",
    "known_masks",
    "map_tensors",
    "name_features",
    "take_rows",
]

Supervision = Literal["auxiliary", "one-class"]
"""What a method learns from: labelled images with masks of auxiliary data sets (their test split, as most detectors of
this field), or the normal images of the train split alone."""

Tree = TypeVar("Tree")


class Batch(TypedDict, total=False):
    """A batch of images from the data module; ``predict`` batches have no ground truth.

    Attributes:
        image: Float images (B, 3, H, W), resized and normalised as the method requires.
        mask: Ground-truth masks (B, H, W), bool; all False for normal images.
        has_mask: Whether pixel labels are known (B,), bool: normal images and anomalous images with a mask.
        label: Image labels (B,), int64: 0 normal, 1 anomalous, -1 unknown.
        class_name: Class name of the image in the prompts (B strings).
        dataset: Name of the dataset (B strings).
        category: Category within the dataset (B strings).
        image_id: Identifier of the image, unique within its dataset and category (B strings).
        path: Image file (B strings).
        index: Row in the split's index (B,), int64.
        output: Path of the image's outputs, relative to the output folder, without suffix (B strings); only in testing
            and prediction.
        texture: Textures for pseudo-anomalies (B, 3, H, W), uint8; only in training with ``data.textures``.
        fixed: Which images are the same in every epoch (B,), bool; only if a method changes some in training.
        roi: Pixels that are inspected (B, H, W), bool; only with a region of interest.
        original_size: Height and width in pixels of the decoded image (B, 2), int64; after orientation and row crop.
        seen_size: Height and width in pixels of the part of it that the map covers, from the top left (B, 2), int64:
            all of it, but for what ``Preprocess.aspect == "keep"`` cuts off.
        preview: The image at the height of a heat map, uint8 RGB (h, w, 3) each; only if heat maps are drawn.
        mask_preview: The mask at that size, bool (h, w) each; only if heat maps are drawn.
        own_mask: The mask at the image's original resolution, for the part that the map covers, bool (h, w) each; only
            if pixel metrics are computed at that resolution.
        digest: SHA-256 of the image file (B strings); only in prediction.
        tiles: Number of tiles of an image that are scored together; see :mod:`vlad.tiling`.
        failed: Row and error of the images that cannot be read, ``(index, reason)`` each; only in prediction. These
            images are in no other list, and a batch may contain no image at all.
    """

    image: Tensor
    mask: Tensor
    has_mask: Tensor
    label: Tensor
    class_name: list[str]
    dataset: list[str]
    category: list[str]
    image_id: list[str]
    path: list[str]
    index: Tensor
    output: list[str]
    texture: Tensor
    fixed: Tensor
    roi: Tensor
    original_size: Tensor
    seen_size: Tensor
    preview: list[Tensor]
    mask_preview: list[Tensor]
    own_mask: list[Tensor]
    digest: list[str]
    tiles: int
    failed: list[tuple[int, str]]


def known_masks(batch: Batch) -> Tensor:
    """Returns for which images of a batch pixel labels are known (B,), bool; all, if the batch does not say."""
    return batch["has_mask"] if "has_mask" in batch else torch.ones(len(batch["image"]), dtype=torch.bool)


class Features(NamedTuple):
    """Output of the frozen part of a method; every tensor has the batch dimension first.

    Attributes:
        levels: Patch tokens of each level (B, h, w, W), rows and columns of the patch grid.
        image: Image embedding (B, D), or None.
        classes: Class token of each level (B, W), or nothing.
        branch: Patch tokens of a second attention branch, per level (B, h, w, W), or nothing.
        images: The normalised images (B, 3, H, W), only for methods that process them again.
    """

    levels: tuple[Tensor, ...]
    image: Tensor | None = None
    classes: tuple[Tensor, ...] = ()
    branch: tuple[Tensor, ...] = ()
    images: Tensor | None = None


def name_features(**names: Any) -> Any:
    """Returns :class:`Features` that hold names in place of tensors; see :meth:`vlad.Method.frozen`."""
    return Features(**{"levels": (), **names})


class Scores(NamedTuple):
    """Output of ``compare``, before upsampling, smoothing and fusion; higher means more anomalous.

    Attributes:
        patches: Scores or logit margins of each level on the patch grid (B, L, h, w); L is 0 for a method that uses
            only references.
        image: Terms of the image score (B, T), or None.
        memory: Distance of each patch to its nearest reference patch (B, h, w), or None without references.
        refined: Maps at the size of the image (B, H, W), if the method refines them; otherwise None.
        roi: Pixels that are inspected (B, H, W), bool; None for all of them.
    """

    patches: Tensor
    image: Tensor | None = None
    memory: Tensor | None = None
    refined: Tensor | None = None
    roi: Tensor | None = None


class Prediction(NamedTuple):
    """Anomaly maps and image scores of a batch; higher means more anomalous.

    Attributes:
        anomaly_map: Anomaly map, smoothed as the published evaluation does (B, H, W), float32.
        image_score: One score per image (B,), float32.
        unsmoothed_map: The same map before the Gaussian (B, H, W), float32.
        score_components: Parts (B, T) of the image score, for protocols that combine them over a whole test set.
        stages: Earlier predictions by name, such as ``initial``, if the method refines its map; they are also evaluated
            and drawn.
    """

    anomaly_map: Tensor
    image_score: Tensor
    unsmoothed_map: Tensor
    score_components: Tensor | None = None
    stages: dict[str, Prediction] | None = None

    def detached(self) -> Prediction:
        """Returns the prediction in float32, without gradients."""
        return map_tensors(lambda tensor: tensor.detach().float(), self)


def map_tensors(function: Callable[..., Tensor], *trees: Tree) -> Tree:
    """Applies a function to the tensors of trees of one shape: tensors, tuples, named tuples, lists, dicts, None.

    Examples:
        >>> map_tensors(torch.add, (torch.ones(1), None), (torch.ones(1), None))
        (tensor([2.]), None)
    """
    first: Any = trees[0]
    mapped: Any = first
    if isinstance(first, Tensor):
        mapped = function(*trees)
    elif isinstance(first, dict):
        mapped = {key: map_tensors(function, *(tree[key] for tree in trees)) for key in first}  # type: ignore[index]
    elif isinstance(first, tuple | list):
        values = [map_tensors(function, *parts) for parts in zip(*trees, strict=True)]
        mapped = type(first)(*values) if hasattr(first, "_fields") else type(first)(values)
    return mapped


def take_rows(tree: Tree, rows: Tensor | slice) -> Tree:
    """Selects images from a tree of tensors with the batch dimension first."""
    return map_tensors(lambda tensor: tensor[rows], tree)


def join_rows(trees: Sequence[Tree]) -> Tree:
    """Concatenates trees of tensors along the batch dimension.

    Examples:
        >>> join_rows([(torch.zeros(1),), (torch.ones(2),)])
        (tensor([0., 1., 1.]),)
    """
    return trees[0] if len(trees) == 1 else map_tensors(lambda *parts: torch.cat(parts), *trees)


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing that a method requires.

    Attributes:
        size: Side in pixels. ``squash``: both sides become this. ``keep``: the shorter one does.
        mean: Normalisation mean per RGB channel, for values in [0, 1].
        std: Normalisation standard deviation per RGB channel.
        aspect: ``squash`` resizes to a square, as the published CLIP-based methods do; ``keep`` keeps the aspect
            ratio and crops the remainder of ``multiple`` at the right and bottom (AnomalyDINO). Both use PIL's bicubic
            filter. ``whole`` leaves the image unchanged, uint8, one per batch; see :mod:`vlad.tiling`.
        multiple: With ``keep``: both sides become multiples of this, the patch size.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    aspect: Literal["squash", "keep", "whole"] = "squash"
    multiple: int = 1


@dataclass(frozen=True)
class Requirements:
    """Requirements of a method on the data, passed to ``AnomalyDataModule.require``.

    Attributes:
        preprocess: Size and normalisation.
        supervision: Kind of training data, or None for a method that is not trained.
        reference_rotations: Number of copies of each reference image, rotated by equal angles; 1: only the original.
    """

    preprocess: Preprocess
    supervision: Supervision | None = None
    reference_rotations: int = 1


@dataclass(frozen=True)
class Tags:
    """Properties of a method, for loops, tables and the conformance suite (similar to scikit-learn's tags).

    Attributes:
        transductive: Whether a score needs the whole test set: ``scores`` combines image scores of a category,
            ``features`` needs all of its features. Tables mark such methods; ``vlad predict`` rejects them.
        needs_references: Whether scoring requires reference images.
        takes_references: Whether the method supports reference images.
        class_names: Whether class names matter.
        no_export: Why ``torch.export`` does not work, or "".
    """

    transductive: Literal["", "scores", "features"] = ""
    needs_references: bool = False
    takes_references: bool = True
    class_names: bool = True
    no_export: str = ""
