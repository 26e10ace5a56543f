"""Batches of noise, predictions for them, and metrics of others: no method and no data module takes part."""

import torch
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC

from vlad.types import Batch, Prediction


def batch_of(category="noise", size=4, first=0, side=64, dataset="noise"):
    """Noise with a defect in every second image; the rows of the split begin at ``first``."""
    mask = torch.zeros(size, side, side, dtype=torch.bool)
    mask[1::2, side // 6 : side // 2, side // 3 : 2 * side // 3] = True
    return Batch(
        image=torch.zeros(size, 3, side, side),
        mask=mask,
        has_mask=torch.ones(size, dtype=torch.bool),
        label=mask.flatten(1).any(1).long(),
        class_name=[category] * size,
        dataset=[dataset] * size,
        category=[category] * size,
        image_id=[str(first + i) for i in range(size)],
        path=[f"{first + i}.png" for i in range(size)],
        index=torch.arange(first, first + size),
    )


def prediction_for(batch, seed=0, components=False, stages=None):
    """Random maps that are higher in the defects."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(batch["mask"].shape, generator=generator) + 0.3 * batch["mask"]
    score = maps.amax((1, 2))
    return Prediction(maps, score, maps, torch.stack([score, -score], 1) if components else None, stages)


class MeanGap(Metric):
    """Mean score of anomalous pixels less that of normal ones: a third party's metric."""

    level = "pixel"
    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps, masks):
        assert maps.ndim == masks.ndim == 3
        assert masks.dtype == torch.bool
        self.sums = self.sums + torch.stack([maps[~masks].double().sum(), maps[masks].double().sum()])
        self.counts = self.counts + torch.stack([(~masks).sum(), masks.sum()])

    def compute(self):
        normal, anomalous = self.sums / self.counts
        return {"gap": anomalous - normal, "normal": normal}


class ImageAUROC(BinaryAUROC):
    """One of torchmetrics' own, which keeps lists of floats and of integers."""

    level = "image"
