"""AnomalyCLIP: two learned object-agnostic sentences, and value-value attention for the patches.

Source: Zhou et al., "AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection", ICLR 2024, arXiv
2310.18961, and its published code, whose numbers are reproduced; where code and paper differ, the code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.clip.numerics import Numerics
from vlad.clip.similarity import normalize, upsample
from vlad.encoders import Encoder
from vlad.errors import MethodError
from vlad.methods.learned_prompts import LearnedPrompts
from vlad.methods.losses import map_losses
from vlad.methods.two_paths import two_paths
from vlad.published import InRepository
from vlad.types import Batch, Features, Scores, known_masks

__all__ = ["AnomalyCLIP"]

_PUBLISHED = {  # by the set that they were trained on; the folders there are named after the set tested
    name: InRepository(
        "zqhang/AnomalyCLIP",
        f"checkpoints/{folder}/epoch_15.pth",
        sha256="",
        commit="45ed4dd35c05797d854294b5e8d585c545920089",
        blob=blob,
    )
    for name, folder, blob in (
        ("mvtec", "9_12_4_multiscale_visa", "72adc786e031b49ea288ba5f815f0d38cf158708"),
        ("visa", "9_12_4_multiscale", "c90f1d9d92d158b436a8fc193f984d4cec8b1fc8"),
    )
}


class AnomalyCLIP(LearnedPrompts):
    """AnomalyCLIP: object-agnostic learned prompts, diagonally prominent attention (DPAM).

    Two sentences are learned, "[words] object." and "[words] damaged object.", with deep prompts in the text tower;
    they depend on neither the class nor the image, so the text is reduced to two vectors. The image runs once
    through the tower on two paths: the original one is CLIP, whose class token gives the image score; the local one
    adds up the value-value attention of its blocks, and its patch tokens give the map.

    Paper: AnomalyCLIP, arXiv 2310.18961.
    """

    epochs = 15  # the published recipe, used when neither max_epochs nor max_steps is given
    numerics = Numerics(position_resize="bilinear", position_antialias=False)
    published_weights = _PUBLISHED

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
            image_size: Side S of the images in pixels; images are resized to a square.
            weights: Trained prompts: the authors' by name (``mvtec``, trained on MVTec AD, for tests on other datasets;
                ``visa``, trained on VisA, for MVTec AD) or as a file, a vlad checkpoint, or a run folder.
            layers: Blocks whose patches give maps, from 1; the maps are added. By default the last one, as published.
            local_from: Block at which the local path begins; by default at a quarter of the depth, 6 of 24 as
                published. Above the depth there is none, and the patches are CLIP's own.
            length: Learned words of each sentence; 12 by default. The value stored in ``weights`` takes precedence
                over the default, for this and the next two.
            depth: Blocks of the text tower that learned tokens enter; 9 by default, or all if it has fewer. The
                first has only the words.
            deep_length: Tokens overwritten before each further block, from the first word on; 4 by default.
            temperature: Divisor of the cosines.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            local_weight: Weight of the map losses relative to the image loss.
            half_prompts: Round deep prompts, and their gradients, to half precision, as the published code does. The
                released prompts were trained so; without, text vectors move by about 1e-3.
            lr: Learning rate of Adam.
        """
        super().__init__(backbone=backbone, pretrained=pretrained, image_size=image_size, layers=layers, sigma=sigma)
        depth_of_image = self.backbone.image.depth
        self.layers = self.layers or (depth_of_image,)
        self.local_from = max(1, depth_of_image // 4) if local_from is None else local_from
        if self.local_from < 1:
            raise MethodError(f"local_from is a block number, from 1; got {self.local_from}")
        self.temperature, self.local_weight, self.lr = temperature, local_weight, lr
        weights = self.build_prompts(weights, length, depth, deep_length, half_prompts)
        if weights is not None:
            self.load_weights(weights)

    # -- image ---------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Features:
        """Runs both paths; patches of the local one, and the class token of the original one, in the joint space.

        A layer ahead of the local path gives the original path's patches. The class token skips ``ln_post``, as the
        published prompts were trained with.
        """
        return two_paths(self, images, self.layers, self.local_from)

    def compare(self, features: Features, text: Tensor, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Compares patches and the whole image with the two text vectors.

        Args:
            features: Output of :meth:`encode`.
            text: Output of :meth:`texts` (B, 2, D).
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
        """Returns the abnormal probability of the image (B, 1); the map is not used."""
        assert scores.image is not None
        return scores.image.sigmoid()

    # -- training ------------------------------------------------------------------------------------------

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy of the images, and focal and Dice losses of the maps summed over the layers.

        Anomalous images without a mask only train the image score.
        """
        scores = self.compare(features, self.texts(batch["class_name"]))
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
        size = (mask.shape[-2], mask.shape[-1])
        maps = [  # probabilities are upsampled, not logits
            tuple(upsample(one.sigmoid(), size, align_corners=False) for one in (margin.neg(), margin))
            for margin in margins.unbind(1)
        ]
        return terms | {name: self.local_weight * value for name, value in map_losses(maps, mask).items()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over the words and deep prompts, no schedule, as published."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, lr=self.lr, betas=(0.5, 0.999))
