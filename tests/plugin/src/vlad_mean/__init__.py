"""A third party's method in its smallest form."""

import torch
from torch import nn

from vlad import Method, Prediction
from vlad.clip.similarity import normalize, to_grid, upsample
from vlad.methods.losses import focal_loss


class MeanCosine(Method):
    """Distance of each patch to a learned prototype; needs no text tower.

    Paper: none, this is an example.
    """

    epochs = 1

    def __init__(self, backbone: str, pretrained: str | None = None, image_size: int = 64, scale: float = 5.0) -> None:
        super().__init__(backbone=backbone, pretrained=pretrained, image_size=image_size, sigma=2.0, text=False)
        self.scale = scale
        self.prototype = nn.Parameter(torch.ones(self.backbone.image.embed_dim))

    def patches(self, images):
        with torch.no_grad():
            tokens = self.backbone.image.run(self.backbone.image.embed(images)).last
            features = normalize(self.backbone.image.project(tokens[:, 1:]).float())
        return -features @ normalize(self.prototype)

    def score(self, images, class_names):
        unsmoothed_map = upsample(to_grid(self.patches(images)), images.shape[-1], align_corners=False)
        return Prediction(unsmoothed_map, self.smooth(unsmoothed_map), unsmoothed_map.amax((1, 2)))

    def loss(self, batch):
        anomalous = upsample(to_grid(self.patches(batch["image"])), batch["image"].shape[-1], align_corners=False)
        anomalous = torch.sigmoid(self.scale * anomalous)
        return {"focal": focal_loss(torch.stack([1 - anomalous, anomalous], dim=1), batch["mask"])}
