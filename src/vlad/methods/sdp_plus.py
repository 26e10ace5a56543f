"""SDP+: CLIP-AD with linear layers trained on an auxiliary dataset.

Source: CLIP-AD, arXiv 2311.00453, and its published code, whose numbers are reproduced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlad.clip.similarity import upsample
from vlad.methods.heads import cosine_margin
from vlad.methods.losses import margin_losses
from vlad.methods.sdp import SDP
from vlad.types import Batch, Features, Scores, known_masks

__all__ = ["SDPPlus"]


class SDPPlus(SDP):
    """CLIP-AD with one trained linear layer per encoder layer: SDP's map plus the maps of the linear layers.

    Trained on the *test* split, with masks, of an auxiliary dataset and tested on others; CLIP stays frozen.

    Paper: CLIP-AD (SDP+), arXiv 2311.00453.
    """

    epochs = 5  # the published recipe, used when neither max_epochs nor max_steps is given

    def __init__(self, lr: float = 1e-4, weights: str | None = None, **sdp: Any) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            lr: Learning rate of Adam.
            weights: Trained linear layers: a file in the published format
                (``{"linear_layers": {"fc.0.weight": …}}``), a vlad checkpoint, or a run folder.
            **sdp: As for :class:`SDP`; ``sigma`` is 2 on VisA in the published evaluation.
        """
        super().__init__(**sdp)
        self.lr = lr
        tower = self.backbone.image
        self.heads = nn.ModuleList(nn.Linear(tower.width, tower.embed_dim) for _ in self.layers)
        if weights is not None:
            self.load_weights(weights)

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps the released checkpoint's names ``linear_layers/fc.i.*`` to ours."""
        return {key.replace("fc.", "heads.", 1): value for key, value in file["linear_layers"].items()}

    def margins(self, features: Features, text: Tensor) -> list[Tensor]:
        """Returns each layer's logit margin on the patch grid (B, h, w): 100 · (cos abnormal − cos normal)."""
        toward = 100 * (text[:, 1] - text[:, 0]).float()
        pairs = zip(self.heads, features.levels, strict=True)
        return [cosine_margin(head, tokens, toward) for head, tokens in pairs]

    def compare(self, features: Features, text: Tensor, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Compares as SDP does, and adds the logit margins of the linear layers as further levels."""
        scores = super().compare(features, text, references)
        return scores._replace(patches=torch.cat([scores.patches, torch.stack(self.margins(features, text), 1)], 1))

    def map_of(self, scores: Scores, size: tuple[int, int]) -> Tensor:
        """Returns SDP's map plus the probabilities of the linear layers."""
        total = upsample(scores.patches[:, 0], size, align_corners=False)
        for margin in scores.patches[:, 1:].unbind(1):
            # The softmax over two upsampled logits is the sigmoid of their upsampled difference.
            total = total + upsample(margin, size, align_corners=True).sigmoid()
        return total

    def encode_for_loss(self, images: Tensor) -> Features:
        """Runs only the ordinary path, the input of the linear layers."""
        return self._encode(images, staged=False)

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns focal and Dice loss, each summed over the layers; the training loss is their sum.

        Anomalous images without a mask are left out.
        """
        known = known_masks(batch)
        mask = batch["mask"][known]
        margins = [margin[known] for margin in self.margins(features, self.texts(batch["class_name"]))]
        if not len(mask):
            nothing = torch.stack([0 * margin.sum() for margin in margins]).sum()
            return {"focal": nothing, "dice": nothing}
        size = (mask.shape[-2], mask.shape[-1])
        return margin_losses([upsample(margin, size, align_corners=True) for margin in margins], mask)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over the linear layers, no schedule, as published."""
        return torch.optim.Adam(self.heads.parameters(), lr=self.lr)
