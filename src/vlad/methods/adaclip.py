"""AdaCLIP: learnable prompts in both towers, some static and some computed from each image.

Source: Cao et al., "AdaCLIP: Adapting CLIP with Hybrid Learnable Prompts for Zero-Shot Anomaly Detection", ECCV
2024, arXiv 2407.15795, and its published code, whose numbers are reproduced; where code and paper differ, the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vlad.checkpoint import read_file
from vlad.clip.blocks import TokenEdit, Tokens
from vlad.clip.numerics import Numerics
from vlad.clip.prompt_tokens import append_prompts
from vlad.clip.similarity import normalize, upsample
from vlad.clip.text import PackedSentences
from vlad.encoders import Encoder
from vlad.errors import MethodError, WeightsError
from vlad.methods.adaclip_prompts import Branch, HybridPrompts, PromptType
from vlad.methods.adaclip_published import PUBLISHED, published_state, read_settings, run_own_blocks, seed_numpy
from vlad.methods.fusion import Clustering, fuse
from vlad.methods.losses import dice_loss, focal_loss, two_classes
from vlad.published import locate
from vlad.types import Batch, Features, Scores, join_rows, known_masks, take_rows

__all__ = ["AdaCLIP"]


class AdaCLIP(HybridPrompts):
    """AdaCLIP: static and dynamic prompts in CLIP's image and text tower, hybrid semantic fusion.

    Static prompts (S) are learned per block; dynamic ones (D) are linear maps of the image's own CLIP embedding. In
    the image tower (branch V) they are additional tokens; in the text tower (branch L) they replace the first
    words. Results do not depend on the batch size, in any combination.

    Paper: AdaCLIP, arXiv 2407.15795.
    """

    epochs = 5
    align_corners = True
    numerics = Numerics(activation="gelu", position_antialias=False)  # how the released prompts were trained
    published_weights = PUBLISHED

    def __init__(
        self,
        backbone: str | Encoder = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 518,
        weights: str | None = None,
        prompt_type: PromptType | None = None,
        branch: Branch | None = None,
        depth: int | None = None,
        length: int | None = None,
        fusion: bool = True,
        clusters: int = 20,
        clustering: Clustering = "fixed",
        sigma: float = 4.0,
        dice: Literal["image", "row"] = "image",
        half_prompts: bool = False,
        lr: float = 0.01,
        as_published: bool = False,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny``.
            pretrained: open_clip weights tag, for plain names; ``random`` for random weights.
            image_size: Side S of the images in pixels; images are resized to a square.
            weights: Trained prompts and layers: the authors' by name (``mvtec_colondb`` for tests on other datasets,
                ``visa_clinicdb`` for MVTec AD and ColonDB, ``all`` for your own images, not for benchmarks) or as a
                file, a vlad checkpoint, or a run folder.
            prompt_type: Static and dynamic prompts (``SD``, the default), one of them, or ``none``. What weights
                were trained with takes precedence over the default, for this and the next three.
            branch: Towers with prompts: image and text (``VL``, the default), ``V`` or ``L``. A published file of
                dynamic prompts alone tells neither this nor the depth: give both.
            depth: Blocks J whose prompts are renewed; 4 by default. The text tower's first block has none.
            length: Prompt tokens M; 5 by default.
            fusion: Whether the image score uses the fused abnormal patches; otherwise only the image embedding.
            clusters: Number of clusters K of the fusion, which uses the 5 K most abnormal patches.
            clustering: ``fixed`` depends only on the image; ``sklearn`` draws from numpy's global random state.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            dice: ``image``: one Dice coefficient per image. ``row``: one per row of pixels, as the published
                training computes it by a slip at its batch size of one.
            half_prompts: Round prompts to half precision, as the published code does.
            lr: Learning rate of AdamW.
            as_published: Reproduces the figures of the published test script. Sets ``half_prompts`` to true and
                ``clustering`` to ``sklearn``; ranks patches by probability, which can tie in float32, instead of logit
                margin; and seeds numpy with 111 before a test or prediction, so that an image's score depends on the
                images before it, at any batch size. By default, each image is scored independently.
        """
        super().__init__(backbone=backbone, pretrained=pretrained, image_size=image_size, sigma=sigma)
        image, text = self.backbone.image, self.text_tower
        if image.depth < 4:
            raise MethodError(f"AdaCLIP reads four blocks; this CLIP has {image.depth}")
        self.layers = tuple(image.depth // 4 * k for k in (1, 2, 3, 4))
        weights = weights and str(locate(weights, self.published_weights))
        known = read_settings(read_file(weights), weights) if weights else {}
        if known.get("prompt_type") == "D" and None in (known.get("branch", branch), known.get("depth", depth)):
            raise WeightsError(
                f"{weights} has dynamic prompts alone and does not tell in which towers and blocks they were: give "
                "model.branch (VL, V or L) and model.depth as it was trained"
            )
        self.prompt_type: PromptType = prompt_type or known.get("prompt_type", "SD")
        self.branch: Branch = branch or known.get("branch", "VL")
        self.depth: int = known.get("depth", 4) if depth is None else depth
        self.length: int = known.get("length", 5) if length is None else length
        # What was read off a file is known to a checkpoint, which comes without it.
        self.hparams.update({name: getattr(self, name) for name in ("prompt_type", "branch", "depth", "length")})
        deepest = min(tower.depth for tower, letter in ((image, "V"), (text, "L")) if letter in self.branch)
        if not 1 <= self.depth <= deepest:
            raise MethodError(f"depth must be from 1 to {deepest}, got {self.depth}")
        if self.length < 1 or clusters < 1:
            raise MethodError(f"length and clusters must be at least 1, got {self.length} and {clusters}")
        self.fusion, self.clusters = fusion, clusters
        self.clustering: Clustering = clustering
        self.dice, self.half_prompts, self.lr = dice, half_prompts, lr
        self.as_published = as_published
        if as_published:
            self.half_prompts, self.clustering = True, "sklearn"
        self._numpy_state: Any = None

        size = image.embed_dim
        self.patch_heads = nn.ModuleList(nn.Linear(image.width, size) for _ in self.layers)
        self.class_head = nn.Linear(size, size)
        self.build_prompts(image, text)
        if weights is not None:
            self.load_weights(weights)

    # -- image ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor) -> Features:
        """Runs what is frozen: the embedding, and the plain pass where something reads it.

        Returns:
            Tokens of the four layers of the plain pass, where no prompts change them or references are compared with
            them; the ordinary CLIP embedding (B, D), where dynamic prompts are made of it or it is the result; and
            the embedded tokens as ``classes`` and ``branch``, which the prompted tower starts from.
        """
        if self._one_by_one(images.shape[0]):
            return join_rows([self.encode(image) for image in images.split(1)])
        tower = self.backbone.image
        x = tower.embed(images)
        grid = tower.grid(images.shape[-2], images.shape[-1])
        start: dict[str, Any] = {"classes": (x[:, 0],), "branch": (x[:, 1:].unflatten(1, grid),)}
        plain = not self._prompted("visual") or self.memory.in_use
        if plain and not self.as_published:
            return self.read_layers(images, self.layers)._replace(**start)
        if plain:
            tokens = self._run(x)
            levels = tuple(tokens.hidden_states[layer][:, 1:].unflatten(1, grid) for layer in self.layers)
            return Features(levels, tower.project(tokens.last[:, 0]), **start)
        if "D" not in self.prompt_type:
            return Features((), **start)
        if self.as_published and not self.training:
            return Features((), tower.project(self._run(x).last[:, 0]), **start)
        return Features((), self.frozen(images, tower.encode, "embedding"), **start)

    def encode_prompted(self, features: Features) -> tuple[list[Tensor], Tensor]:
        """Runs the image tower with its prompts.

        Returns:
            Patch tokens of the four layers (B, n, W), and the image embedding (B, D).
        """
        if not self._prompted("visual"):
            assert features.image is not None
            return [level.flatten(1, 2) for level in features.levels], features.image
        tower = self.backbone.image
        x = torch.cat([features.classes[0][:, None], features.branch[0].flatten(1, 2)], dim=1)
        count = x.shape[1]
        edit = append_prompts(self.branch_prompts("visual", features.image), count)
        tokens = self._run(x, edit)
        states = [tokens.hidden_states[layer] for layer in self.layers]
        return [state[:, 1:count] for state in states], tower.project(tokens.last[:, 0])

    # -- scores --------------------------------------------------------------------------------------------

    def compare(
        self,
        features: Features,
        text: Tensor | PackedSentences,
        references: tuple[Tensor, ...] | None = None,
        *,
        labels: Tensor | None = None,
    ) -> Scores:
        """Compares an image's patches and its whole with its sentences.

        Args:
            features: Output of :meth:`encode`.
            text: Output of :meth:`texts`.
            references: Patch tokens of reference images, of the plain pass.
            labels: Groups of the fusion's patches, in place of clustering.

        Returns:
            Logit margins (abnormal over normal) of the patches per layer, and of the image (B, 1).
        """
        if self._one_by_one(count := features.classes[0].shape[0]):
            rows = [slice(row, row + 1) for row in range(count)]
            return join_rows([self.compare(*take_rows((features, text), r), references, labels=labels) for r in rows])
        tokens, pooled = self.encode_prompted(features)
        vectors = self.encode_text(text, features.image)
        toward = 100 * (vectors[:, 1] - vectors[:, 0]).float()
        heads = zip(self.patch_heads, tokens, strict=True)
        patches = torch.stack([normalize(head(layer).float()) for head, layer in heads])
        with torch.autocast(toward.device.type, enabled=False):
            margins = torch.einsum("lbnd,bd->lbn", patches, toward)
            whole = normalize(self.class_head(pooled.float()))
            if self.fusion:
                abnormality = margins.mean(0)
                if self.as_published:  # the order of the patches decides where k-means begins, ties included
                    abnormality = two_classes(abnormality)[:, 1]
                fused = fuse(patches, abnormality, self.clusters, clustering=self.clustering, labels=labels)
                whole = normalize(0.2 * fused + 0.8 * whole)
            image = (whole * toward).sum(1, keepdim=True)
        return Scores(
            margins.transpose(0, 1).unflatten(2, features.branch[0].shape[1:3]),
            image,
            self.nearest(features, references),
        )

    def map_of(self, scores: Scores, size: tuple[int, int]) -> Tensor:
        """Returns the abnormal probability: the sigmoid of the mean margin, upsampled.

        The mean of upsampled logits is the upsampled mean; a softmax over two is the sigmoid of their difference.
        """
        margin = super().map_of(scores, size)
        if self.as_published:  # as it is written there; in float32 it rounds to 6e-8, which ties the smallest values
            normal, abnormal = two_classes(margin).unbind(1)
            return (abnormal + 1 - normal) / 2
        return margin.sigmoid()

    def components_of(self, scores: Scores, anomaly_map: Tensor) -> Tensor:
        """Returns the abnormal probability of the image (B, 1)."""
        assert scores.image is not None
        return scores.image.sigmoid()

    # -- as published --------------------------------------------------------------------------------------

    def _run(self, x: Tensor, before: TokenEdit | None = None) -> Tokens:
        """Runs the image tower, and reads the four layers on the way."""
        tower = self.backbone.image
        if self.as_published:
            return run_own_blocks(tower.visual.transformer.resblocks, x, self.layers, before)
        return tower.run(x, layers=self.layers, before=before)

    def _one_by_one(self, count: int) -> bool:
        """Whether images of a batch are scored one by one: the published batch size, and so its rounding errors."""
        return self.as_published and not self.training and count > 1

    def on_test_start(self) -> None:
        """Seeds numpy's global state with ``as_published``, after the references and before the first image."""
        if self.as_published and self.fusion:
            self._numpy_state = seed_numpy(1 if self._trainer is None else self.trainer.world_size)

    def on_predict_start(self) -> None:
        """As :meth:`on_test_start`."""
        super().on_predict_start()
        self.on_test_start()

    def teardown(self, stage: str) -> None:
        """Restores numpy's random state."""
        if self._numpy_state is not None:
            np.random.set_state(self._numpy_state)  # noqa: NPY002
            self._numpy_state = None

    # -- training ------------------------------------------------------------------------------------------

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns the focal loss of the images, and focal and Dice losses of the maps summed over the layers.

        Anomalous images without a mask teach the image score alone; published code counts all their pixels as normal.
        """
        scores = self.compare(features, self.texts(batch["class_name"]))
        assert scores.image is not None
        known = known_masks(batch)
        return self.losses(scores.patches[known], scores.image[:, 0], batch["mask"][known], batch["label"])

    def losses(self, margins: Tensor, whole: Tensor, mask: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Computes the terms of the loss.

        Args:
            margins: Logit margins of the patches per layer (M, 4, h, w), of the images whose masks are known.
            whole: Logit margins of the images (B,).
            mask: True where anomalous (M, S, S).
            label: 1 for anomalous images (B,).
        """
        if not len(mask):
            nothing = 0 * margins.sum()
            return {
                "image": focal_loss(two_classes(whole), label),
                **dict.fromkeys(("focal", "dice", "dice_normal"), nothing),
            }
        rows = (lambda x: x.flatten(0, 1).unsqueeze(1)) if self.dice == "row" else (lambda x: x)
        terms: dict[str, list[Tensor]] = {"focal": [], "dice": [], "dice_normal": []}
        size = (mask.shape[-2], mask.shape[-1])
        for margin in margins.unbind(1):
            probabilities = two_classes(upsample(margin, size, align_corners=True))
            terms["focal"].append(focal_loss(probabilities, mask))
            terms["dice"].append(dice_loss(rows(probabilities[:, 1]), rows(mask)))
            terms["dice_normal"].append(dice_loss(rows(probabilities[:, 0]), rows(~mask.bool())))
        summed = {name: torch.stack(values).sum() for name, values in terms.items()}
        return {"image": focal_loss(two_classes(whole), label), **summed}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over prompts and layers, no schedule, as published."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.lr, betas=(0.5, 0.999), weight_decay=0.01)

    # -- published files -----------------------------------------------------------------------------------

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps the published names ``clip_model.*`` to ours; every key must be used."""
        return published_state(file, self.prompt_type, self._blocks, self.length, len(self.layers))
