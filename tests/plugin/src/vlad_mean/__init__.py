"""A third party's method in its smallest form."""

import torch
from torch import nn

from vlad import Method
from vlad.clip.similarity import normalize, upsample
from vlad.methods.losses import focal_loss, two_classes
from vlad.types import Scores, known_masks


class MeanCosine(Method):
    """Distance of each patch to a learned prototype; needs no text tower.

    Paper: none, this is an example.
    """

    api = 2
    epochs = 1

    def __init__(
        self,
        backbone: str,
        pretrained: str | None = None,
        image_size: int = 64,
        layers: tuple[int, ...] = (4,),
        scale: float = 5.0,
    ) -> None:
        super().__init__(
            backbone=backbone, pretrained=pretrained, image_size=image_size, layers=layers, sigma=2.0, text=False
        )
        self.scale = scale
        self.prototype = nn.Parameter(torch.ones(len(self.layers), self.backbone.width))

    def compare(self, features, text, references=None):
        prototypes = normalize(self.prototype)
        cosines = [(normalize(level) * prototypes[n]).sum(-1) for n, level in enumerate(features.levels)]
        return Scores(-self.scale * torch.stack(cosines, 1), memory=self.nearest(features, references))

    def loss(self, features, batch):
        known = known_masks(batch)
        mask = batch["mask"][known]
        margin = upsample(self.compare(features, None).patches[known].mean(1), mask.shape[-2:], align_corners=False)
        return {"focal": focal_loss(two_classes(margin), mask) if len(mask) else 0 * margin.sum()}
