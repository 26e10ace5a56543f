"""AF-CLIP: one attention layer over patches and their neighbours, and two class-agnostic sentences.

Source: "AF-CLIP", ACM MM 2025, arXiv 2507.19949, and the behaviour of its published code (Faustinaqq/AF-CLIP at
bb7edec), whose numbers are reproduced; written from a description, since that code has no licence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.checkpoint import load_weights
from vlad.clip.attention import attend
from vlad.clip.numerics import Numerics
from vlad.clip.similarity import normalize, restrict, restrict_patches, upsample
from vlad.encoders import Encoder
from vlad.errors import MethodError
from vlad.methods.af_clip_published import PUBLISHED, published_state, read_published, read_settings
from vlad.methods.learned_prompts import LearnedText
from vlad.types import Batch, Features, Prediction, Scores, Tags, known_masks

__all__ = ["AFCLIP", "Adaptor", "alignment_loss", "focal_loss", "neighbour_means"]

SENTENCES = ("without defect.", "with defect.")
"""Of the normal and the abnormal state, whatever the class."""

_HEADS = 8


class Adaptor(nn.Module):
    """Self-attention over class token and patches, without residual connection or MLP."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, _HEADS * head_width, bias=False) for _ in range(3))
        self.to_out = nn.Linear(_HEADS * head_width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens (B, N, W) to tokens of the same shape."""
        x = self.norm(tokens)
        q, k, v = (to(x).unflatten(2, (_HEADS, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        return self.to_out(attend(q, k, v))


def neighbour_means(patches: Tensor, side: int) -> Tensor:
    """Averages each patch with those around it, by a Gaussian of 4 patches; beyond the border stand zeros.

    Args:
        patches: Patch tokens (B, h, w, W).
        side: Side of the square of neighbours, an odd number; 1 leaves the tokens as they are.
    """
    if side == 1:
        return patches
    offset = torch.arange(side, device=patches.device) - side // 2
    weight = torch.exp(-offset.square() / 32.0)
    weight = (weight / weight.sum()).to(patches.dtype)  # the kernel is the product of one by rows and one by columns
    width, half = patches.shape[-1], side // 2
    x = patches.permute(0, 3, 1, 2)
    x = F.conv2d(x, weight.view(1, 1, side, 1).expand(width, -1, -1, -1), padding=(half, 0), groups=width)
    x = F.conv2d(x, weight.view(1, 1, 1, side).expand(width, -1, -1, -1), padding=(0, half), groups=width)
    return x.permute(0, 2, 3, 1)


class AFCLIP(LearnedText):
    """AF-CLIP: the patches of some layers, alone and averaged with their neighbours, through one attention layer.

    A frozen CLIP; an attention layer and twelve words ahead of two sentences are trained, on the *test* split, with
    masks, of an auxiliary dataset. References are compared with patches that the layer has not seen.

    Paper: AF-CLIP, arXiv 2507.19949.
    """

    epochs = 2
    numerics = Numerics(position_resize="bilinear", position_antialias=False)
    published_weights = PUBLISHED

    def __init__(
        self,
        backbone: str | Encoder = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 518,
        layers: Sequence[int] = (6, 12, 18, 24),
        memory_layers: Sequence[int] | None = None,
        weights: str | None = None,
        neighbours: Sequence[int] = (1, 3, 5),
        length: int | None = None,
        head_width: int | None = None,
        temperature: float = 0.07,
        alpha: float = 0.1,
        sigma: float = 4.0,
        map_weight: float = 1.0,
        alignment_weight: float = 1.0,
        gradients: Literal["published", "intended"] = "published",
        lr: float = 1e-4,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny``.
            pretrained: open_clip weights tag, for plain names; ``random`` for random weights.
            image_size: Side S of the images in pixels; images are resized to a square.
            layers: Blocks whose tokens go through the attention layer, from 1.
            memory_layers: Blocks whose patches are compared with those of references; None for ``layers``.
            weights: Trained words and attention layer: the authors' by the set they were trained on (``mvtec`` for
                tests on other sets, ``visa`` for MVTec AD), a folder of their two files or one of these, one of
                vlad's checkpoints, or a run folder.
            neighbours: Sides of the squares of patches that are averaged; 1 is the patch alone.
            length: Learned words ahead of each sentence; None for the value in the weights, else 12.
            head_width: Width of each of the eight heads; None for the value in the weights, else a sixteenth of the
                tower's width, which is the published 64 for ViT-L.
            temperature: Divisor of the sum of cosines.
            alpha: Weight of the zero-shot map and score relative to the distances to references.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            map_weight: Weight of the map's losses (the paper's lambda 1).
            alignment_weight: Weight of the loss on cosines between patches (lambda 2).
            gradients: ``published``: those of the published code, which overwrites the targets of the map's focal
                loss before its gradients are taken, so that the background is pushed down harder than its loss says;
                the released weights were trained so. ``intended``: those of the loss.
            lr: Learning rate of Adam.
        """
        read = tuple(layers if memory_layers is None else memory_layers)
        super().__init__(
            backbone=backbone,
            pretrained=pretrained,
            image_size=image_size,
            layers=(*layers, *(layer for layer in read if layer not in layers)),
            sigma=sigma,
        )
        image, text = self.backbone.image, self.text_tower
        self.layers_read = self.layers
        self.layers, self.memory_layers = tuple(sorted(layers)), tuple(sorted(read))
        self.neighbours = tuple(neighbours)
        known = read_settings(read_published(weights), _HEADS) if weights else {}
        self.length: int = known.get("length", 12) if length is None else length
        self.head_width: int = known.get("head_width", max(1, image.width // 16)) if head_width is None else head_width
        # What was read off a file is known to a checkpoint, which comes without it.
        self.hparams.update({name: getattr(self, name) for name in ("length", "head_width")})
        self._check_settings()
        self.temperature, self.alpha, self.gradients = temperature, alpha, gradients
        self.map_weight, self.alignment_weight, self.lr = map_weight, alignment_weight, lr
        self.words = nn.Parameter(0.01 * torch.randn(self.length, text.width))
        self.adaptor = Adaptor(image.width, self.head_width)
        if weights is not None:
            self.load_weights(weights)

    def _check_settings(self) -> None:
        if not self.neighbours or any(side < 1 or side % 2 == 0 for side in self.neighbours):
            raise MethodError(f"neighbours are odd numbers of patches, got {list(self.neighbours)}")
        longest = self.text_tower.context_length - 5  # start, with, defect, ., end
        if not 1 <= self.length <= longest:
            raise MethodError(f"length must be from 1 to {longest}, got {self.length}")
        if self.head_width < 1:
            raise MethodError(f"head_width must be at least 1, got {self.head_width}")

    def load_weights(self, path: str) -> None:
        """Loads the authors' two files, their name, a checkpoint, or a run folder."""
        load_weights(self, path, read_published(path))

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps the released names to ours."""
        return published_state(file)

    @property
    def tags(self) -> Tags:
        """Class names do not matter."""
        return Tags(class_names=False)

    # -- text and image ------------------------------------------------------------------------------------

    def class_text(self, class_name: str) -> Tensor:
        """Returns the two text vectors (2, D), unit length, with the learned words ahead even of the start token."""
        tower = self.text_tower
        ids = tower.tokenize(SENTENCES)
        fixed = tower.embed(ids)
        words = torch.cat([self.words.to(fixed.dtype).expand(2, -1, -1), fixed], dim=1)
        return normalize(tower.run(words, tower.ends(ids) + self.length).float())

    def encode(self, images: Tensor) -> Features:
        """Reads the layers for the attention layer and those for the memory, in one pass: patches and class tokens."""
        return self.read_layers(images, self.layers_read)

    def token_sets(self, features: Features) -> list[Tensor]:
        """Returns what is compared with the text: unit vectors (B, 1 + n, D), class token first, by layer and side."""
        sets = []
        for layer in self.layers:
            place = self.layers_read.index(layer)
            for side in self.neighbours:
                patches = neighbour_means(features.levels[place], side).flatten(1, 2)
                tokens = self.adaptor(torch.cat([features.classes[place][:, None], patches], dim=1))
                sets.append(normalize(self.backbone.image.project(tokens).float()))
        return sets

    def memory_levels(self, features: Features) -> tuple[Tensor, ...]:
        """Returns the patches of ``memory_layers`` (B, h, w, W), averaged with their neighbours; nothing is learned."""
        levels = [features.levels[self.layers_read.index(layer)] for layer in self.memory_layers]
        return tuple(neighbour_means(level, side) for level in levels for side in self.neighbours)

    # -- scores --------------------------------------------------------------------------------------------

    def compare(self, features: Features, text: Tensor, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Compares all sets of tokens with the text, and patches with those of references.

        Returns:
            Logit margins (abnormal over normal), summed over the sets, of the patches (B, 1, h, w) and of the class
            token (B, 1).
        """
        return self._scores(features, self.token_sets(features), text, self.nearest(features, references))

    def _scores(self, features: Features, sets: list[Tensor], text: Tensor, memory: Tensor | None = None) -> Scores:
        toward = (text[:, 1] - text[:, 0]).float()[:, :, None] / self.temperature
        with torch.autocast(toward.device.type, enabled=False):
            margin = torch.stack([tokens @ toward for tokens in sets]).sum(0)[..., 0]
        patches = margin[:, None, 1:].unflatten(2, features.levels[0].shape[1:3])
        return Scores(patches, margin[:, :1], memory)

    def nearest(self, features: Features, references: tuple[Tensor, ...] | None) -> Tensor | None:
        """Returns half of 1 − cosine to the nearest reference patch (B, h, w), averaged over sides and layers."""
        distance = super().nearest(features, references)
        return None if distance is None else distance / 2

    def finish(self, scores: Scores, size: tuple[int, int]) -> Prediction:
        """Upsamples the probabilities; with references, distances and a tenth of the probabilities.

        The image score is the class token's probability; with references the largest distance of a patch, of those
        that are inspected, is added to a tenth of it.

        Args:
            scores: Output of :meth:`compare`.
            size: Height and width of the maps.
        """
        assert scores.image is not None
        grid, parts = scores.patches[:, 0].sigmoid(), scores.image.sigmoid()
        if scores.memory is not None:
            grid = scores.memory + self.alpha * grid
            farthest = restrict_patches(scores.memory, scores.roi).amax((1, 2))
            parts = torch.cat([farthest[:, None], self.alpha * parts], dim=1)
        unsmoothed = upsample(grid, size, align_corners=False)
        anomaly_map = restrict(self.smooth(unsmoothed), scores.roi)
        return Prediction(anomaly_map, parts.sum(1), restrict(unsmoothed, scores.roi), parts)

    # -- training ------------------------------------------------------------------------------------------

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns the focal loss of the image scores, focal and L1 loss of the maps, and that on patches' cosines.

        Maps are compared with the mask on the patch grid. Anomalous images without a mask only train the image score.
        """
        sets = self.token_sets(features)
        scores = self._scores(features, sets, self.texts(batch["class_name"]))
        assert scores.image is not None
        terms = {"image": focal_loss(scores.image[:, 0].sigmoid(), batch["label"].float())}
        known = known_masks(batch)
        if not bool(known.any()):
            return {**terms, **dict.fromkeys(("focal", "l1", "alignment"), 0 * scores.patches.sum())}
        probability = scores.patches[known, 0].sigmoid()
        rows, columns = probability.shape[1:]
        target = upsample(batch["mask"][known].float(), (rows, columns), align_corners=False)
        target = torch.where(target < 0.5, 0, torch.where(target > 0.5, 1, target))  # a half stays a half
        overwritten = torch.where(target == 0, -1, target) if self.gradients == "published" else None
        alignment = torch.stack([alignment_loss(tokens[known, 1:], target.flatten(1)) for tokens in sets]).mean()
        return {
            **terms,
            "focal": self.map_weight * focal_loss(probability, target, overwritten),
            "l1": self.map_weight * (probability - target).abs().mean(),
            "alignment": self.alignment_weight * alignment,
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over the words and the attention layer with the betas of GANs, no schedule, as published."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, lr=self.lr, betas=(0.5, 0.999))


def focal_loss(p: Tensor, target: Tensor, overwritten: Tensor | None = None) -> Tensor:
    """Computes the mean of the binary cross-entropy times (1 − probability of the true class)⁴.

    Args:
        p: Abnormal probabilities, any shape.
        target: Truth of the same shape, 0 to 1.
        overwritten: What the published code has in the targets' place by the time the gradients are taken; the loss
            stays, and its gradient is that code's, of no loss at all. None for the gradient of the loss.
    """
    missed = 1 - (p * target + (1 - p) * (1 - target))
    entropy = F.binary_cross_entropy(p, target, reduction="none")
    loss = (entropy * missed**4).mean()
    if overwritten is None:
        return loss
    with torch.no_grad():  # of the product p · target the code sees the new target, of 1 − target the old one
        slope = (p - overwritten) / (p * (1 - p)).clamp(min=1e-12) * missed**4
        slope = (slope - 4 * entropy * missed**3 * (overwritten + target - 1)) / p.numel()
    return loss.detach() + (slope * (p - p.detach())).sum()


def alignment_loss(tokens: Tensor, target: Tensor) -> Tensor:
    """Computes how much more alike are patches of which one is anomalous than patches of one kind, at least 0.

    Mean cosine over all pairs of patches of one image of which exactly one is anomalous, less that over all pairs of
    one kind, a patch with itself among them; means are over the whole batch.

    Args:
        tokens: Unit vectors (B, n, D).
        target: 1 where anomalous, 0 where normal (B, n); patches in between belong to no pair.
    """
    kinds = torch.stack([target == 1, target == 0], dim=1).to(tokens.dtype)  # (B, 2, n)
    anomalous, normal = (kinds @ tokens).unbind(1)  # cosines of all pairs add up to products of sums
    counts = kinds.sum(2)
    same = (anomalous.square().sum() + normal.square().sum()) / counts.square().sum().clamp(min=1)
    different = 2 * (anomalous * normal).sum() / (2 * counts.prod(1)).sum().clamp(min=1)
    return F.relu(different - same)
