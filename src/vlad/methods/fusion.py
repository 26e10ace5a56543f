"""Hybrid semantic fusion: one vector for the most abnormal patches of an image, with equal weight per group.

Source: AdaCLIP, arXiv 2407.15795, as its published code computes it (which differs from the paper's text).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vlad.clip.similarity import normalize

__all__ = ["Clustering", "cluster", "fuse"]

Clustering = Literal["fixed", "sklearn"]
_STEPS = 30  # Lloyd's algorithm has long settled on a hundred points by then


@torch.no_grad()
def cluster(points: Tensor, count: int, clustering: Clustering = "fixed") -> Tensor:
    """Groups the points of each set by k-means.

    Args:
        points: Sets of points (B, n, D).
        count: Number of groups K; at most n are made.
        clustering: ``"fixed"``: k-means++ with the same random numbers for every set, so a set's groups do not depend
            on the rest of the batch or on earlier calls; on the device, without synchronisation. ``"sklearn"``:
            scikit-learn's KMeans under numpy's global state, as published.

    Returns:
        Groups (B, n), int64, from 0 to K − 1; one may stay empty.
    """
    count = min(count, points.shape[1])
    if clustering == "sklearn":
        from sklearn.cluster import KMeans

        found = [KMeans(n_clusters=count, n_init="auto").fit_predict(one) for one in points.float().cpu().numpy()]
        return torch.stack([torch.as_tensor(one) for one in found]).long().to(points.device)
    points = points.float()
    with torch.autocast(points.device.type, enabled=False):
        gram = points @ points.transpose(1, 2)
    place = torch.arange(points.shape[1], device=points.device)
    own = gram[:, place, place]  # the diagonal, in words that OpenVINO knows
    apart = (own[:, :, None] + own[:, None, :] - 2 * gram).clamp(min=0)  # squared distances
    labels = apart.gather(2, _first_centers(apart, count)[:, None, :].expand(-1, points.shape[1], -1)).argmin(2)
    for _ in range(_STEPS):
        share = torch.nn.functional.one_hot(labels, count).to(gram.dtype)
        size = share.sum(1, keepdim=True)
        share = share / size.clamp(min=1)
        toward = gram @ share  # products of points and group means; no mean is ever formed
        spread = (share * toward).sum(1, keepdim=True)
        labels = (spread - 2 * toward).masked_fill(size == 0, float("inf")).argmin(2)
    return labels


def _first_centers(apart: Tensor, count: int) -> Tensor:
    """Chooses centres by k-means++, the best of several draws each time (B, K), like scikit-learn.

    Args:
        apart: Squared distances between the points of a set (B, n, n).
        count: Number of centres K.
    """
    trials = 2 + int(torch.tensor(float(count)).log())
    draws = _draws(count, trials).to(apart.device)
    chosen = [torch.zeros(apart.shape[0], dtype=torch.long, device=apart.device)]  # the first point: the most abnormal
    nearest = apart[:, 0]
    for number in range(1, count):
        reach = nearest.cumsum(1)
        wanted = draws[number] * reach[:, -1:]
        below = reach[:, None, :] < wanted[:, :, None]  # searchsorted, which ONNX lacks
        candidates = below.sum(2).clamp(max=apart.shape[1] - 1)
        options = torch.minimum(
            nearest[:, None, :], apart.gather(1, candidates[..., None].expand(-1, -1, apart.shape[2]))
        )
        best = options.sum(2).argmin(1)
        rows = torch.arange(apart.shape[0], device=apart.device)
        nearest = options[rows, best]
        chosen.append(candidates[rows, best])
    return torch.stack(chosen, dim=1)


_DRAWN: dict[tuple[int, int], Tensor] = {}


def _draws(count: int, trials: int) -> Tensor:
    """Returns the random numbers of all sets (K, trials); drawn once, so that an exported graph contains them."""
    found = _DRAWN.get((count, trials))
    if found is None:
        with torch.inference_mode(False):  # what is remembered must serve training too
            found = torch.rand(count, trials, generator=torch.Generator().manual_seed(0))
        if not torch.compiler.is_compiling():  # a tracer's tensors have no values
            _DRAWN[count, trials] = found
    return found


def fuse(
    patches: Tensor,
    abnormality: Tensor,
    count: int,
    *,
    clustering: Clustering = "fixed",
    labels: Tensor | None = None,
) -> Tensor:
    """Fuses the 5 K most abnormal patches of each image into one vector: the mean of the means of K groups.

    Gradients reach the patches, not the choice of patches or groups.

    Args:
        patches: Unit patch embeddings of every layer (L, B, n, D).
        abnormality: How abnormal each patch is (B, n).
        count: Number of groups K.
        clustering: As for :func:`cluster`.
        labels: Groups of the chosen patches (B, min(n, 5 K)), instead of clustering.

    Returns:
        Unit vectors (B, D).
    """
    chosen = abnormality.detach().topk(min(patches.shape[2], 5 * count), dim=1).indices
    index = chosen[None, :, :, None].expand(patches.shape[0], -1, -1, patches.shape[3])
    near = patches.gather(2, index)
    if labels is None:
        labels = cluster(near.detach().permute(1, 2, 0, 3).flatten(2), count, clustering)
    share = torch.nn.functional.one_hot(labels, count).to(near.dtype)
    size = share.sum(1)
    groups = (size > 0).sum(1, keepdim=True)
    weight = (share / size.clamp(min=1)[:, None]).sum(2) / groups
    return normalize((weight[..., None] * near.mean(0)).sum(1))
