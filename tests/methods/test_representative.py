"""Representative vectors: our clusters against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN

from vlad.methods.representative import dbscan_labels


def same_clusters(rows, eps, min_samples):
    ours = dbscan_labels(rows, eps, min_samples)
    names, ours = np.unique(ours.numpy(), return_inverse=True)
    theirs = DBSCAN(eps=eps, min_samples=min_samples).fit(rows.numpy()).labels_
    assert (ours + min(names[0], 0) == theirs).all()  # also in the order of scikit-learn's numbers
    return set(theirs.tolist())


@pytest.mark.parametrize("min_samples", [1, 3, 4, 6])
def test_clusters_chains_borders_and_noise(min_samples):
    seen = set()
    for seed in range(20):  # on a grid neighbours are exactly at the radius, and most rows at some border
        points = torch.randint(0, 12, (60, 2), generator=torch.Generator().manual_seed(seed)).float()
        seen |= same_clusters(points, 1.0, min_samples)
    assert {0, 1} <= seen
    assert (-1 in seen) == (min_samples > 1)


@pytest.mark.parametrize("eps", [0.3, 0.5, 1.5])
def test_clusters_of_sentence_features(eps):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 1, 640, generator=generator)
    spread = torch.linspace(0.1, 0.5, 5)[:, None, None]
    rows = (centres + spread * torch.randn(5, 40, 640, generator=generator)).flatten(0, 1)
    same_clusters(torch.nn.functional.normalize(rows, dim=-1), eps, 15)
