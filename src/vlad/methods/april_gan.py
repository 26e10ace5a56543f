"""APRIL-GAN: linear layers trained on an auxiliary dataset, and a memory of patches of a few normal images.

Source: Chen, Han and Zhang, "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023
VAND Workshop Challenge Tracks 1&2", arXiv 2305.17382, and its published code, whose numbers are reproduced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlad.clip.numerics import Numerics
from vlad.clip.similarity import normalize, restrict, upsample, zero_to_one
from vlad.encoders import Encoder
from vlad.methods.base import Method
from vlad.methods.heads import cosine_margin
from vlad.methods.losses import margin_losses
from vlad.prompts import load_prompts
from vlad.published import InRepository
from vlad.types import Batch, Features, Prediction, Scores, Tags, known_masks

__all__ = ["AprilGAN"]

_PUBLISHED = {
    name: InRepository(
        "ByChelsea/VAND-APRIL-GAN",
        f"exps/pretrained/{name}_pretrained.pth",
        sha256="",
        commit="f13b8a634e04f9fde8fa03db125b25af5695d8e1",
        blob=blob,
    )
    for name, blob in (
        ("mvtec", "a057cec6c2ba5996baa0160a51e155908156813f"),
        ("visa", "86d6848c543f8393663d35c0333498ffb5ce9b68"),
    )
}


class AprilGAN(Method):
    """One trained linear layer per encoder layer, compared with two texts; with references, a patch memory bank.

    Trained on the *test* split, with masks, of an auxiliary dataset and tested on others; CLIP stays frozen. The
    memory bank is not trained, and the linear layers are not tuned on the references.

    Paper: APRIL-GAN, arXiv 2305.17382.
    """

    epochs = 15  # on VisA; 3 on MVTec AD
    align_corners = True
    published_weights = _PUBLISHED

    def __init__(
        self,
        backbone: str | Encoder = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 518,
        layers: Sequence[int] = (6, 12, 18, 24),
        memory_layers: Sequence[int] | None = None,
        weights: str | None = None,
        activation: Literal["gelu", "pretrained"] = "gelu",
        image_fusion: Literal["sum", "minmax"] = "sum",
        sigma: float = 0.0,
        lr: float = 1e-3,
        training_text: Literal["own", "first"] = "own",
        as_published: bool = False,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny``.
            pretrained: open_clip weights tag, for plain names; ``random`` for random weights.
            image_size: Side S of the images in pixels; images are resized to a square.
            layers: Blocks whose patch tokens are compared with the text, from 1, one linear layer each.
            memory_layers: Blocks whose patch tokens are compared with those of references; None for ``layers``.
            weights: Trained linear layers: the authors' by the set they were trained on (``mvtec`` for tests on other
                sets, ``visa`` for MVTec AD) or as a file, a vlad checkpoint, or a run folder.
            activation: ``gelu``: instead of the QuickGELU that OpenAI's weights were trained with, as in the published
                code for any image size except CLIP's own. ``pretrained``: the activation CLIP was trained with.
            image_fusion: The image score with references is the mean of the text score and of the map's maximum:
                ``sum`` divides the maximum by the number of layers, per image; ``minmax`` rescales it over all test
                images of a category, as published: that needs the whole test set and is not defined for one image.
            sigma: Standard deviation in pixels of a Gaussian over the map; published: none.
            lr: Learning rate of Adam.
            training_text: ``own``: each training image is compared with its own class. ``first``: all images of a
                batch with the class of the first, as in the code at the time of the released weights.
            as_published: Reproduces the figures of the published evaluation: sets ``image_fusion`` to ``"minmax"`` and
                changes nothing else; without references it has no effect.
        """
        # Of this object, ahead of the base, which builds CLIP by it.
        self.numerics = Numerics(activation=activation)  # type: ignore[misc]
        wanted = tuple(layers if memory_layers is None else memory_layers)
        super().__init__(
            backbone=backbone,
            pretrained=pretrained,
            image_size=image_size,
            layers=(*layers, *(layer for layer in wanted if layer not in layers)),
            sigma=sigma,
        )
        _ = self.text_tower  # refuses an encoder without text
        self.layers_read = self.layers
        self.layers, self.memory_layers = tuple(sorted(layers)), tuple(sorted(wanted))
        self.image_fusion = "minmax" if as_published else image_fusion
        self.lr, self.training_text = lr, training_text
        tower = self.backbone.image
        self.heads = nn.ModuleList(nn.Linear(tower.width, tower.embed_dim) for _ in self.layers)
        if weights is not None:
            self.load_weights(weights)

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps the released checkpoint's names ``trainable_linearlayer/fc.i.*`` to ours."""
        return {key.replace("fc.", "heads.", 1): value for key, value in file["trainable_linearlayer"].items()}

    # -- text and image ------------------------------------------------------------------------------------

    def class_text(self, class_name: str) -> Tensor:
        """Returns a class's two text vectors (2, D), unit length: normal, abnormal; means of unit embeddings."""
        normal, abnormal = load_prompts("april_gan").sentences(class_name)
        rows = normalize(self.text_tower.encode([*normal, *abnormal]).float())
        return normalize(torch.stack([rows[: len(normal)].mean(0), rows[len(normal) :].mean(0)]))

    def encode(self, images: Tensor) -> Features:
        """Reads, in one pass, the layers compared with the text and those compared with references."""
        return self.read_layers(images, self.layers_read)

    def memory_levels(self, features: Features) -> tuple[Tensor, ...]:
        """Returns the patch tokens of ``memory_layers`` (B, h, w, W), without the linear layers."""
        return tuple(features.levels[self.layers_read.index(layer)] for layer in self.memory_layers)

    # -- scores --------------------------------------------------------------------------------------------

    def margins(self, features: Features, text: Tensor) -> Tensor:
        """Returns logit margins on the patch grid (B, L, h, w): 100 · (cos abnormal − cos normal) of each layer."""
        toward = 100 * (text[:, 1] - text[:, 0]).float()
        levels = [features.levels[self.layers_read.index(layer)] for layer in self.layers]
        pairs = zip(self.heads, levels, strict=True)
        return torch.stack([cosine_margin(head, tokens, toward) for head, tokens in pairs], dim=1)

    def compare(self, features: Features, text: Tensor, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Compares patches with the text by way of the linear layers, the image with the text, patches with references.

        The image's term is its probability of being abnormal, the softmax over 100 times both cosines.
        """
        assert features.image is not None
        logits = 100 * normalize(features.image.float())[:, None] @ text.float().transpose(1, 2)  # (B, 1, 2)
        return Scores(self.margins(features, text), logits.softmax(-1)[:, 0, 1:], self.nearest(features, references))

    def nearest(self, features: Features, references: tuple[Tensor, ...] | None) -> Tensor | None:
        """Returns 1 − cosine to the nearest reference patch (B, h, w), summed over ``memory_layers``."""
        mean = super().nearest(features, references)
        return None if mean is None else len(self.memory_layers) * mean

    def map_of(self, scores: Scores, size: tuple[int, int]) -> Tensor:
        """Returns the sum of the layers' probabilities, and of the distances to references, without weights."""
        # The softmax over two upsampled logits is the sigmoid of their upsampled difference.
        levels = [upsample(margin, size, align_corners=True).sigmoid() for margin in scores.patches.unbind(1)]
        if scores.memory is not None:
            levels.append(upsample(scores.memory, size, align_corners=True))
        return torch.stack(levels).sum(0)

    def components_of(self, scores: Scores, anomaly_map: Tensor) -> Tensor:
        """Returns the text score (B, 1); with references its half and that of the map's maximum by layers (B, 2)."""
        assert scores.image is not None
        if scores.memory is None:
            return scores.image  # the map plays no part
        return torch.cat([scores.image, anomaly_map.amax((1, 2))[:, None] / len(self.layers)], dim=1) / 2

    def finish(self, scores: Scores, size: tuple[int, int]) -> Prediction:
        """Adds all maps, then takes the image score.

        Args:
            scores: Output of :meth:`compare`.
            size: Height and width of the maps.
        """
        unsmoothed = self.map_of(scores, size)
        anomaly_map = restrict(self.smooth(unsmoothed), scores.roi)
        components = self.components_of(scores, anomaly_map)
        return Prediction(anomaly_map, components.sum(1), restrict(unsmoothed, scores.roi), components)

    @property
    def tags(self) -> Tags:
        """Transductive with ``image_fusion="minmax"``."""
        return Tags(transductive="scores" if self.image_fusion == "minmax" else "")

    def score_set(self, features: Features | None, predictions: Prediction | None, size: tuple[int, int]) -> Prediction:
        """Rescales the maps' maxima over all images of a category, as the published evaluation does with references."""
        assert predictions is not None
        parts = predictions.score_components
        assert parts is not None
        return predictions._replace(image_score=parts[:, 0] + zero_to_one(parts[:, 1:]).sum(1) / 2)

    # -- training ------------------------------------------------------------------------------------------

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns focal and Dice loss, each summed over the layers; the training loss is their sum.

        Anomalous images without a mask are left out.
        """
        names = batch["class_name"]
        names = names[:1] * len(names) if self.training_text == "first" else names
        known = known_masks(batch)
        mask = batch["mask"][known]
        margins = self.margins(features, self.texts(names))[known]
        if not len(mask):
            return {"focal": 0 * margins.sum(), "dice": 0 * margins.sum()}
        maps = [upsample(one, (mask.shape[-2], mask.shape[-1]), align_corners=True) for one in margins.unbind(1)]
        return margin_losses(maps, mask)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with the betas of GANs, no schedule, as published."""
        return torch.optim.Adam(self.heads.parameters(), lr=self.lr, betas=(0.5, 0.999))
