"""AnomalyCLIP: two learned sentences for every object, and patches that attend to values.

Source: Zhou et al., "AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection", ICLR 2024, arXiv
2310.18961, and its published code, whose numbers are reproduced; where code and paper differ, the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.checkpoint import read_file
from vlad.clip.blocks import AttentionBranch
from vlad.clip.numerics import Numerics
from vlad.clip.prompt_tokens import overwrite_prompts
from vlad.clip.similarity import normalize, upsample
from vlad.encoders import Encoder
from vlad.errors import MethodError
from vlad.methods.anomalyclip_published import PUBLISHED, published_state, read_settings
from vlad.methods.base import Method
from vlad.methods.losses import dice_loss, focal_loss
from vlad.published import locate
from vlad.types import Batch, Features, Scores, Tags, known_masks

__all__ = ["AnomalyCLIP"]

OBJECT, STATES = "object", ("", "damaged ")
"""What stands for every class, and what is said of it when normal and when abnormal."""


class AnomalyCLIP(Method):
    """AnomalyCLIP: object-agnostic learned prompts, diagonally prominent attention (DPAM).

    Two sentences are learned, "[words] object." and "[words] damaged object.", with deep prompts in the text tower;
    neither the class nor the image enters, so that two vectors are all that is left of the text. The image runs once
    through the tower on two paths: the original one is CLIP, whose class token gives the image score; the local one
    adds up the value-value attention of its blocks, and its patch tokens give the map.

    Paper: AnomalyCLIP, arXiv 2310.18961.
    """

    epochs = 15  # the published recipe, used when neither max_epochs nor max_steps is given
    numerics = Numerics(position_resize="bilinear", position_antialias=False)
    published_weights = PUBLISHED

    def __init__(
        self,
        backbone: str | Encoder = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 518,
        weights: str | None = None,
        layers: Sequence[int] = (),
        local_from: int | None = None,
        length: int | None = None,
        depth: int | None = None,
        deep_length: int | None = None,
        temperature: float = 0.07,
        sigma: float = 4.0,
        local_weight: float = 4.0,
        half_prompts: bool = True,
        lr: float = 1e-3,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny``.
            pretrained: open_clip weights tag, for plain names; ``random`` for random weights.
            image_size: Side S of the images in pixels; they are squashed to a square.
            weights: Trained prompts: the authors' by name (``mvtec``, trained on MVTec AD, for tests on other sets;
                ``visa``, trained on VisA, for MVTec AD) or as a file, one of vlad's checkpoints, or a run folder.
            layers: Blocks whose patches give maps, from 1; the maps are added. By default the last one, as published.
            local_from: Block at which the local path begins; by default at a quarter of the depth, 6 of 24 as
                published. Above the depth there is none, and the patches are CLIP's own.
            length: Learned words of each sentence; 12 by default. What weights were trained with takes precedence
                over the default, for this and the next two.
            depth: Blocks of the text tower that learned tokens enter; 9 by default, or all where it has fewer. The
                first has the words alone.
            deep_length: Tokens that are overwritten ahead of each further block, from the first word on; 4 by default.
            temperature: What cosines are divided by.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            local_weight: Weight of the map's losses against the image's.
            half_prompts: Round deep prompts, and their gradients, to half precision, as the published code does. The
                released prompts were trained so; without, text vectors move by about 1e-3.
            lr: Learning rate of Adam.
        """
        super().__init__(backbone=backbone, pretrained=pretrained, image_size=image_size, layers=layers, sigma=sigma)
        image, text = self.backbone.image, self.text_tower
        self.layers = self.layers or (image.depth,)
        self.local_from = max(1, image.depth // 4) if local_from is None else local_from
        weights = weights and str(locate(weights, self.published_weights))
        known = read_settings(read_file(weights)) if weights else {}
        self.length: int = known.get("length", 12) if length is None else length
        self.depth: int = known.get("depth", min(9, text.depth)) if depth is None else depth
        self.deep_length: int = known.get("deep_length", min(4, self.length)) if deep_length is None else deep_length
        # What was read off a file is known to a checkpoint, which comes without it.
        self.hparams.update({name: getattr(self, name) for name in ("length", "depth", "deep_length")})
        self._check_settings()
        self.temperature, self.local_weight, self.half_prompts, self.lr = temperature, local_weight, half_prompts, lr
        self.words = nn.Parameter(0.02 * torch.randn(2, self.length, text.width))
        self.deep_prompts = nn.ParameterDict(
            {
                f"block_{block}": nn.Parameter(0.02 * torch.randn(self.deep_length, text.width))
                for block in range(2, self.depth + 1)
            }
        )
        self._text_version: tuple[tuple[int, int], ...] = ()
        if weights is not None:
            self.load_weights(weights)

    def _check_settings(self) -> None:
        deepest, longest = self.text_tower.depth, self.text_tower.context_length - 5  # start, state, object, ., end
        if self.local_from < 1:
            raise MethodError(f"local_from is a block number, from 1; got {self.local_from}")
        if not 1 <= self.depth <= deepest:
            raise MethodError(f"depth must be from 1 to {deepest}, got {self.depth}")
        if not 1 <= self.deep_length <= self.length <= longest:
            raise MethodError(
                f"deep_length must be from 1 to length, and length at most {longest}; got {self.deep_length} and "
                f"{self.length}"
            )

    # -- text ----------------------------------------------------------------------------------------------

    def sentences(self) -> list[str]:
        """Returns the normal and the abnormal sentence, with an X where a word is learned."""
        words = " ".join(["X"] * self.length)
        return [f"{words} {state}{OBJECT}." for state in STATES]

    def encode_text(self) -> Tensor:
        """Runs the two sentences through the text tower: unit vectors (2, D), normal and abnormal."""
        tower = self.text_tower
        ids = tower.tokenize(self.sentences())
        fixed = tower.embed(ids)
        words = torch.cat([fixed[:, :1], self.words.to(fixed.dtype), fixed[:, 1 + self.length :]], dim=1)
        prompts = {int(name.removeprefix("block_")): p.expand(2, -1, -1) for name, p in self.deep_prompts.items()}
        if self.half_prompts:  # rounded once per sentence, as are their gradients
            prompts = {block: prompt.half().to(prompt.dtype) for block, prompt in prompts.items()}
        return normalize(tower.run(words, tower.ends(ids), before=overwrite_prompts(prompts)).float())

    def class_text(self, class_name: str) -> Tensor:
        """Returns the two text vectors (2, D), the same for every class."""
        return self.encode_text()

    def texts(self, class_names: Sequence[str]) -> Tensor:
        """Returns the text vectors (B, 2, D); outside of training they are kept until the prompts change."""
        if self.training:
            return self.encode_text().expand(len(class_names), -1, -1)
        version = tuple((p._version, p.data_ptr()) for p in self.parameters() if p.requires_grad)
        if self._text_version != version:
            self._texts.clear()
            self._text_version = version
        return self._texts([OBJECT] * len(class_names), self.device)

    @property
    def tags(self) -> Tags:
        """Class names do not matter."""
        return Tags(class_names=False)

    # -- image ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor) -> Features:
        """Runs both paths; patches of the local one, and the class token of the original one, in the joint space.

        The local path takes the values of the original one and never feeds back. A layer ahead of it gives the
        original path's patches. The class token skips ``ln_post``, as the published prompts were trained with.
        """
        tower = self.backbone.image
        local = [layer for layer in self.layers if layer >= self.local_from]
        plain = [layer for layer in self.layers if layer < self.local_from]
        tokens = tower.run(
            tower.embed(images),
            layers=plain,
            branch=AttentionBranch(first=self.local_from) if local else None,
            branch_layers=local,
            class_token_only=tower.depth not in plain,
        )
        states, grid = {**tokens.hidden_states, **tokens.branch}, tower.grid(*images.shape[-2:])
        return Features(
            levels=tuple(tower.project(states[layer][:, 1:]).unflatten(1, grid) for layer in self.layers),
            image=tower.project(tokens.last[:, 0], norm=False),
        )

    def compare(self, features: Features, text: Tensor, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Compares patches and the whole image with the two text vectors.

        Args:
            features: What :meth:`encode` returned.
            text: What :meth:`texts` returned (B, 2, D).
            references: Patches of one category's references, of the local path.

        Returns:
            Logit margins (abnormal over normal) of the patches per layer, and of the image (B, 1).
        """
        assert features.image is not None
        toward = (text[:, 1] - text[:, 0]).float() / self.temperature
        with torch.autocast(toward.device.type, enabled=False):
            margins = [torch.einsum("bhwd,bd->bhw", normalize(level.float()), toward) for level in features.levels]
            image = (normalize(features.image.float()) * toward).sum(1, keepdim=True)
        return Scores(torch.stack(margins, dim=1), image, self.nearest(features, references))

    def map_of(self, scores: Scores, size: tuple[int, int]) -> Tensor:
        """Returns the abnormal probability, upsampled and summed over the layers."""
        return upsample(scores.patches.sigmoid().sum(1), size, align_corners=False)

    def components_of(self, scores: Scores, anomaly_map: Tensor) -> Tensor:
        """Returns the abnormal probability of the image (B, 1); nothing of the map enters."""
        assert scores.image is not None
        return scores.image.sigmoid()

    # -- training ------------------------------------------------------------------------------------------

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy of the images, and focal and Dice losses of the maps summed over the layers.

        Anomalous images without a mask teach the image score alone.
        """
        scores = self.compare(features, self.texts([OBJECT] * len(batch["image"])))
        assert scores.image is not None
        known = known_masks(batch)
        return self.losses(scores.patches[known], scores.image[:, 0], batch["mask"][known], batch["label"])

    def losses(self, margins: Tensor, whole: Tensor, mask: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Computes the terms of the loss.

        Args:
            margins: Logit margins of the patches per layer (M, L, h, w), of the images whose masks are known.
            whole: Logit margins of the images (B,).
            mask: True where anomalous (M, S, S).
            label: 1 for anomalous images (B,).
        """
        terms = {"image": F.binary_cross_entropy_with_logits(whole, label.to(whole.dtype))}
        if not len(mask):
            return {**terms, **dict.fromkeys(("focal", "dice", "dice_normal"), 0 * margins.sum())}
        mask, size = mask.bool(), (mask.shape[-2], mask.shape[-1])
        local: dict[str, list[Tensor]] = {"focal": [], "dice": [], "dice_normal": []}
        for margin in margins.unbind(1):  # probabilities are upsampled, not logits
            abnormal = upsample(margin.sigmoid(), size, align_corners=False)
            normal = upsample(margin.neg().sigmoid(), size, align_corners=False)
            local["focal"].append(focal_loss(torch.stack([normal, abnormal], dim=1), mask))
            local["dice"].append(dice_loss(abnormal, mask))
            local["dice_normal"].append(dice_loss(normal, ~mask))
        return terms | {name: self.local_weight * torch.stack(values).sum() for name, values in local.items()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over the words and deep prompts, no schedule, as published."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, lr=self.lr, betas=(0.5, 0.999))

    # -- published files -----------------------------------------------------------------------------------

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps the released names ``prompt_learner/*`` to ours; refuses what was trained on another CLIP."""
        tower = self.text_tower
        ids = tower.tokenize(self.sentences())
        return published_state(file, ids, tower.embed(ids[:, :1]))
