"""SDP+: CLIP-AD with linear layers trained on an auxiliary data set.

Source: CLIP-AD, arXiv 2311.00453, and its published code, whose numbers are reproduced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.clip.similarity import normalize, to_grid, upsample
from vlad.methods.losses import dice_loss, focal_loss
from vlad.methods.representative import Representative
from vlad.methods.sdp import SDP
from vlad.types import Batch, Prediction, known_masks

__all__ = ["SDPPlus"]


class SDPPlus(SDP):
    """CLIP-AD with one trained linear layer per tap: SDP's map plus the maps of the layers.

    Trained on the *test* split, with masks, of an auxiliary data set and tested on others; CLIP stays frozen.

    Paper: CLIP-AD (SDP+), arXiv 2311.00453.
    """

    epochs = 5  # the published recipe, used when neither max_epochs nor max_steps is given

    def __init__(
        self,
        backbone: str = "ViT-B-16-plus-240",
        pretrained: str | None = "laion400m_e31",
        image_size: int = 240,
        layers: Sequence[int] = (3, 6, 9, 12),
        weights: str | None = None,
        sigma: float = 8.0,
        representative: Representative = "dbscan",
        eps: float = 0.5,
        min_samples: int = 15,
        image_fusion: Literal["sum", "minmax"] = "sum",
        lr: float = 1e-4,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo`` or ``local-dir:folder``.
            pretrained: open_clip weights tag, for plain names; null gives random weights.
            image_size: Side S of the images in pixels; they are squashed to a square.
            layers: Blocks whose tokens are compared with the text, from 1; one linear layer each.
            weights: Trained linear layers: a file in the published format
                (``{"linear_layers": {"fc.0.weight": …}}``), one of vlad's checkpoints, or a run folder.
            sigma: Standard deviation in pixels of the Gaussian over the map; published: 2 on VisA, else 8.
            representative: How the sentences of a state become one vector.
            eps: DBSCAN radius; published: 1.5 where the data set is VisA, 0.5 elsewhere.
            min_samples: DBSCAN core size; published: 25 where the data set is VisA, 15 elsewhere.
            image_fusion: As for SDP.
            lr: Learning rate of Adam.
        """
        super().__init__(
            backbone=backbone,
            pretrained=pretrained,
            image_size=image_size,
            layers=layers,
            sigma=sigma,
            representative=representative,
            eps=eps,
            min_samples=min_samples,
            image_fusion=image_fusion,
        )
        self.lr = lr
        tower = self.backbone.image
        self.heads = nn.ModuleList(nn.Linear(tower.width, tower.embed_dim) for _ in self.layers)
        if weights is not None:
            self.load_weights(weights)

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps the released checkpoint's names ``linear_layers/fc.i.*`` to ours."""
        return {key.replace("fc.", "heads.", 1): value for key, value in file["linear_layers"].items()}

    def margins(self, ordinary: list[Tensor], text: Tensor) -> list[Tensor]:
        """Returns each layer's logit margin on the patch grid (B, n): 100 · (cos abnormal − cos normal).

        Args:
            ordinary: Ordinary tokens per layer (B, 1 + n, W).
            text: Text vectors of each image (B, 2, D).
        """
        margins = []
        for head, tokens in zip(self.heads, ordinary, strict=True):
            features = normalize(head(tokens[:, 1:]).float())
            logits = 100 * features @ text.float().transpose(1, 2)
            margins.append(logits[..., 1] - logits[..., 0])
        return margins

    def score(self, images: Tensor, class_names: list[str]) -> Prediction:
        """Scores images; see :meth:`vlad.Method.score`."""
        size = images.shape[-1]
        text = self.texts(class_names)
        ordinary, staged = self.encode(images)
        patches, text_score = self.compare(staged, text)
        unsmoothed_map = upsample(to_grid(patches), size, align_corners=False)
        for margin in self.margins(ordinary, text):
            # The softmax over two upsampled logits is the sigmoid of their upsampled difference.
            unsmoothed_map = unsmoothed_map + upsample(to_grid(margin), size, align_corners=True).sigmoid()
        return self.finish(unsmoothed_map, text_score)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns focal and Dice loss, each summed over the layers; the training loss is their sum.

        Anomalous images without a mask are left out.
        """
        known = known_masks(batch)
        images, mask = batch["image"][known], batch["mask"][known]
        names = [name for name, has_mask in zip(batch["class_name"], known.tolist(), strict=True) if has_mask]
        if not names:
            nothing = 0 * torch.stack([parameter.sum() for parameter in self.heads.parameters()]).sum()
            return {"focal": nothing, "dice": nothing}
        ordinary, _ = self.encode(images, stages=False)
        focal, dice = [], []
        for margin in self.margins(ordinary, self.texts(names)):
            margin = upsample(to_grid(margin), images.shape[-1], align_corners=True)
            probabilities = torch.stack([F.sigmoid(-margin), F.sigmoid(margin)], dim=1)
            focal.append(focal_loss(probabilities, mask))
            dice.append(dice_loss(probabilities[:, 1], mask))
        return {"focal": torch.stack(focal).sum(), "dice": torch.stack(dice).sum()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over the linear layers, no schedule, as published."""
        return torch.optim.Adam(self.heads.parameters(), lr=self.lr)
