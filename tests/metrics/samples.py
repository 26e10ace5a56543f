"""Batches of noise and predictions for them; the metrics are tested without methods and data modules."""

import torch

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
