"""Crane: AnomalyCLIP's learned sentences, conditioned on the image in training, and three self-self attentions.

Source: Salehi et al., "Crane: Context-Guided Prompt Learning and Attention Refinement for Zero-Shot Anomaly
Detection(s)", arXiv 2504.11055, and its published code, whose numbers are reproduced; where the two differ, the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.clip.numerics import Numerics
from vlad.clip.similarity import normalize, upsample
from vlad.encoders import Encoder
from vlad.errors import MethodError
from vlad.methods.learned_prompts import LearnedPrompts, deep_edit, run_sentences, write_words
from vlad.methods.losses import map_losses
from vlad.methods.two_paths import two_paths
from vlad.published import InRepository
from vlad.types import Batch, Features, Scores, known_masks

__all__ = ["Crane"]


def released(kind: str, blobs: dict[str, str]) -> dict[str, InRepository]:
    """Returns the files of a kind in the authors' repository, by name; ``mvtec_1`` is the one after epoch 1."""
    commit = "39181f9f718a28c1b06b5aa72bfb81e74b9a2cc3"
    found = {}
    for name, blob in blobs.items():
        trained, _, epoch = name.partition("_")
        path = f"checkpoints/trained_on_{trained}_{kind}/epoch_{epoch or 5}.pth"
        found[name] = InRepository("AlirezaSalehy/Crane", path, sha256="", commit=commit, blob=blob)
    return found


class Crane(LearnedPrompts):
    """Crane: image-conditioned prompt training, query, key and value self-attention, score-weighted pooling.

    AnomalyCLIP's two sentences and two paths. The local path adds up the sum of three self-self attentions. In
    training the image's embedding is an additional token of both sentences; scoring omits it, so that the text is two
    vectors. The image score compares a mean of the image's embedding and of its patches, weighted by their scores.

    Paper: Crane, arXiv 2504.11055.
    """

    epochs = 5
    numerics = Numerics(position_resize="bilinear", position_antialias=False)
    published_weights = released(
        "crane",
        {"mvtec": "078cf30d576f7b1b3652d68c4ddded575397b02f", "visa": "354e75448658baf28d452b66fdcbc51d49a9dccd"},
    )

    def __init__(
        self,
        backbone: str | Encoder = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 518,
        weights: str | None = None,
        layers: Sequence[int] | None = None,
        aliased: bool = True,
        local_from: int | None = None,
        length: int | None = None,
        depth: int | None = None,
        deep_length: int | None = None,
        soft_mean: bool = True,
        image_token_at_test: bool = False,
        training_upsampling: Literal["nearest", "bilinear"] = "nearest",
        sigma: float = 4.0,
        half_prompts: bool = True,
        lr: float = 1e-3,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny``.
            pretrained: open_clip weights tag, for plain names; ``random`` for random weights.
            image_size: Side S of the images in pixels; images are resized to a square.
            weights: Trained prompts: the authors' by the set they were trained on (``mvtec`` for other sets, ``visa``
                for MVTec AD) or as a file, a vlad checkpoint, or a run folder.
            layers: Blocks of the local path whose patches give maps, from 1; by default four at equal distances, 6,
                12, 18, 24 of 24.
            aliased: Whether all of them are the last block's, as in the published code, where later blocks change what
                was read of earlier ones: one map, whose losses count as often as there are layers.
            local_from: Block at which the local path begins; by default at a quarter of the depth, 6 of 24.
            length: Learned words of each sentence; 12 by default. The value stored in ``weights`` takes precedence
                over the default, for this and the next two.
            depth: Blocks of the text tower that learned tokens enter; 9 by default, or all if it has fewer.
            deep_length: Tokens overwritten before each further block, from the first word on; 4 by default.
            soft_mean: Whether the map is the mean of the layers' upsampled probabilities; else the probability of
                their mean logits, upsampled. Published with Crane: yes.
            image_token_at_test: Whether the image is a word of the sentences in scoring too, as the paper has it and
                the published evaluation does not: another method, whose maps have little in common.
            training_upsampling: How probabilities are enlarged for the losses.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            half_prompts: Round deep prompts, and their gradients, to half precision, as the published code does.
            lr: Learning rate of Adam.

        Raises:
            MethodError: A setting is out of range, or the CLIP's sentences cannot hold an image's embedding.
        """
        super().__init__(
            backbone=backbone, pretrained=pretrained, image_size=image_size, layers=layers or (), sigma=sigma
        )
        tower, text = self.backbone.image, self.text_tower
        if text.width != tower.embed_dim:
            raise MethodError(
                f"Crane makes the image's embedding ({tower.embed_dim}) a word ({text.width}) of its sentences: give a "
                "CLIP where both have one width"
            )
        self.layers = self.layers or self.default_layers()
        self.local_from = max(1, tower.depth // 4) if local_from is None else local_from
        self.aliased, self.soft_mean, self.image_token_at_test = aliased, soft_mean, image_token_at_test
        self.training_upsampling, self.lr = training_upsampling, lr
        self.temperature, self.image_temperature = 0.07, 0.01  # the latter in training alone
        first = tower.depth if aliased else self.layers[0]
        if not 1 <= self.local_from <= first:
            raise MethodError(
                f"local_from must be from 1 to {first}, the first layer read of it; got {self.local_from}"
            )
        weights = self.build_prompts(weights, length, depth, deep_length, half_prompts)
        if weights is not None:
            self.load_weights(weights)

    def default_layers(self) -> tuple[int, ...]:
        """Returns the layers that are read by default."""
        depth = self.backbone.depth
        return tuple(sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3, 4)}))

    # -- text ----------------------------------------------------------------------------------------------

    def image_text(self, image: Tensor) -> Tensor:
        """Encodes both sentences with an image as one more word, after the learned ones.

        Args:
            image: Unit embeddings of images (B, D).

        Returns:
            Unit text vectors (B, 2, D), normal and abnormal.
        """
        tower, count = self.text_tower, image.shape[0]
        ids, ends = self.tokenized(1)
        word = image[:, None, None].expand(-1, 2, 1, -1)
        words = torch.cat([self.words.expand(count, -1, -1, -1), word.to(self.words.dtype)], dim=2).flatten(0, 1)
        edit = deep_edit(self.deep_prompts, 2 * count, half=self.half_prompts)
        sentences = write_words(tower.embed(ids).repeat(count, 1, 1), words)
        text = run_sentences(tower, sentences, ends, edit)
        return normalize(text.float()).unflatten(0, (count, 2))

    # -- image ---------------------------------------------------------------------------------------------

    @property
    def layers_read(self) -> tuple[int, ...]:
        """Blocks of the local path that are read."""
        return (self.backbone.depth,) if self.aliased else self.layers

    @property
    def copies(self) -> tuple[int, ...]:
        """How often each level of the features counts."""
        return (len(self.layers),) if self.aliased else (1,) * len(self.layers)

    def encode(self, images: Tensor) -> Features:
        """Runs both paths; patches of the local one, and CLIP's own embedding of the image, in the joint space."""
        return two_paths(self, images, self.layers_read, self.local_from, attention="qq+kk+vv", norm=True)

    # -- scores --------------------------------------------------------------------------------------------

    def mean_level(self, levels: Tensor) -> Tensor:
        """Returns the mean over the levels (B, L, …), each counted as often as it is listed."""
        weights = levels.new_tensor(self.copies) / sum(self.copies)
        return torch.tensordot(levels, weights, dims=([1], [0]))

    def compare(self, features: Features, text: Tensor, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Compares patches with the two text vectors, and the image together with the patches that look abnormal.

        Args:
            features: Output of :meth:`encode`.
            text: Text vectors (B, 2, D); not used with ``image_token_at_test``.
            references: Patches of one category's references.

        Returns:
            Logit margins (abnormal over normal) of the patches per level, and of the image (B, 1).
        """
        assert features.image is not None
        with torch.autocast(features.image.device.type, enabled=False):
            whole = normalize(features.image.float())
            text = self.image_text(whole) if self.image_token_at_test else text.float()
            toward = (text[:, 1] - text[:, 0]) / self.temperature
            patches = torch.stack([normalize(level.float()) for level in features.levels], dim=1)
            margins = torch.einsum("blhwd,bd->blhw", patches, toward)
            weights = self.mean_level(margins).sigmoid()
            pooled = normalize(torch.einsum("bhw,bhwd->bd", weights, self.mean_level(patches)))
            image = (normalize(pooled / 2 + whole / 2) * toward).sum(1, keepdim=True)
        return Scores(margins, image, self.nearest(features, references))

    def map_of(self, scores: Scores, size: tuple[int, int]) -> Tensor:
        """Returns the abnormal probability of the levels together, upsampled."""
        if self.soft_mean:
            return upsample(self.mean_level(scores.patches.sigmoid()), size, align_corners=False)
        return upsample(self.mean_level(scores.patches), size, align_corners=False).sigmoid()

    def components_of(self, scores: Scores, anomaly_map: Tensor) -> Tensor:
        """Returns the abnormal probability of the image with its patches (B, 1)."""
        assert scores.image is not None
        return scores.image.sigmoid()

    # -- training ------------------------------------------------------------------------------------------

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy of the images, and focal and Dice losses of the maps.

        The sentences hold the image. Anomalous images without a mask only train the image score.
        """
        assert features.image is not None
        scores = self.compare(features, self.image_text(normalize(features.image.float())))
        known = known_masks(batch)
        return self.losses(scores, batch["mask"][known], batch["label"], known)

    def losses(self, scores: Scores, mask: Tensor, label: Tensor, known: Tensor) -> dict[str, Tensor]:
        """Computes the terms of the loss.

        Args:
            scores: Of the batch.
            mask: True where anomalous (M, S, S), of the images whose masks are known.
            label: 1 for anomalous images (B,).
            known: Whose masks are known (B,), bool.
        """
        assert scores.image is not None
        whole = scores.image[:, 0] * (self.temperature / self.image_temperature)
        terms = {"image": 0.2 * F.binary_cross_entropy_with_logits(whole, label.to(whole.dtype))}
        margins = scores.patches[known]
        if not len(mask):
            return {**terms, **dict.fromkeys(("focal", "dice"), 0 * margins.sum())}
        local = dict.fromkeys(("focal", "dice"), margins.new_zeros(()))
        for copies, margin in zip(self.copies, margins.unbind(1), strict=True):
            pair = (self.enlarge(margin.neg().sigmoid(), mask), self.enlarge(margin.sigmoid(), mask))
            found = map_losses([pair], mask)
            local = {name: value + 2 * copies * found[name] for name, value in local.items()}
        return {**terms, **local}

    def enlarge(self, probabilities: Tensor, mask: Tensor) -> Tensor:
        """Enlarges probabilities (M, h, w) to the size of masks, for the losses."""
        size = (mask.shape[-2], mask.shape[-1])
        if self.training_upsampling == "bilinear":
            return upsample(probabilities, size, align_corners=False)
        return F.interpolate(probabilities[:, None], size, mode="nearest")[:, 0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over the words and deep prompts, no schedule, as published."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, lr=self.lr, betas=(0.6, 0.999))
