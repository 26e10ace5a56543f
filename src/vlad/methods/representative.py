"""Representative vectors of a set of sentence features (CLIP-AD's "representative vector selection").

Source: CLIP-AD, arXiv 2311.00453, and its published code. Each function takes unit rows (N, D) and returns
one vector (D,), not normalised.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Representative", "dbscan_labels", "representative_vector"]

Representative = Literal["mean", "dbscan", "mean_shift", "kde", "pca"]


def _largest_cluster(rows: Tensor, labels: Tensor) -> Tensor | None:
    """Returns the mean of the largest cluster (the lowest label on ties), or None if all rows are noise."""
    clustered = labels[labels >= 0]
    if clustered.numel() == 0:
        return None
    largest = torch.bincount(clustered).argmax()
    return rows[labels == largest].mean(0)


def dbscan_labels(rows: Tensor, eps: float, min_samples: int) -> Tensor:
    """Clusters rows by density, like scikit-learn's DBSCAN, whose import would take longer than the whole text encoder.

    Args:
        rows: Points (N, D).
        eps: Radius of a neighbourhood.
        min_samples: Rows in a core row's neighbourhood, itself included.

    Returns:
        Clusters (N,), int64, each named by its first core row; -1 for noise. A row at the border of several belongs to
        the one with the lowest name.
    """
    points = rows.detach().cpu().double()
    near = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") <= eps
    core = near.sum(1) >= min_samples
    reached = near & core  # by each row, which core rows
    names = torch.arange(len(points))
    while True:
        lowest = torch.where(reached, names, len(points)).amin(1)
        if torch.equal(lowest[core], names[core]):
            return torch.where(reached.any(1), lowest, -1)
        names = torch.where(core, lowest, names)


def _dbscan(rows: Tensor, eps: float, min_samples: int) -> Tensor:
    vector = _largest_cluster(rows, dbscan_labels(rows, eps, min_samples).to(rows.device))
    if vector is None:  # the published code stops here; the mean is what a single cluster would give
        warnings.warn(f"DBSCAN(eps={eps}, min_samples={min_samples}) found no cluster; using the mean", stacklevel=3)
        return rows.mean(0)
    return vector


def _mean_shift(rows: Tensor) -> Tensor:
    from sklearn.cluster import MeanShift

    found = MeanShift(bandwidth=2).fit(rows.cpu().numpy())
    vector = _largest_cluster(rows, torch.as_tensor(found.labels_, device=rows.device).long())
    return rows.mean(0) if vector is None else vector


def _kde(rows: Tensor, bandwidth: float = 0.3) -> Tensor:
    """Weights each row by its density under a Gaussian kernel over all rows."""
    density = torch.exp(-torch.cdist(rows, rows).square() / (2 * bandwidth**2)).sum(1)
    return (density / density.sum()) @ rows


def _pca(rows: Tensor) -> Tensor:
    """Projects on the first principal direction, with channels as samples and sentences as features."""
    channels = rows.T - rows.T.mean(0)
    direction = torch.linalg.eigh(channels.T @ channels).eigenvectors[:, -1]
    vector = channels @ direction
    return vector if rows.mean(0) @ vector >= 0 else -vector


def representative_vector(rows: Tensor, kind: Representative, *, eps: float = 0.5, min_samples: int = 15) -> Tensor:
    """Condenses sentence features to one vector.

    Args:
        rows: Unit sentence features (N, D), float32.
        kind: ``"mean"``; ``"dbscan"``: mean of the largest cluster; ``"mean_shift"``: likewise, at bandwidth
            2, which on unit vectors is one cluster and so the mean; ``"kde"``: density-weighted mean;
            ``"pca"``: first principal component over channels.
        eps: DBSCAN radius (published: 1.5 on VisA, 0.5 elsewhere).
        min_samples: DBSCAN core size (published: 25 on VisA, 15 elsewhere).

    Returns:
        The vector (D,), not normalised.
    """
    if kind == "dbscan":
        return _dbscan(rows, eps, min_samples)
    by_kind = {"mean": lambda r: r.mean(0), "mean_shift": _mean_shift, "kde": _kde, "pca": _pca}
    return by_kind[kind](rows)
