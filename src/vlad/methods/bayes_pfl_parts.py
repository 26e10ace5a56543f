"""The trained parts of Bayes-PFL: distributions of prompts, and how text and image look at patches.

Source: "Bayesian Prompt Flow Learning for Zero-Shot Anomaly Detection", CVPR 2025, arXiv 2503.10080, and the behaviour
of its published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.clip.similarity import normalize

__all__ = ["AgnosticFlow", "Distribution", "Fuse", "ImageFlow", "Look", "Sample", "linear"]


def linear(width: int, out: int, *, bias: bool = True) -> nn.Linear:
    """Makes a linear layer as the published code starts it: N(0, 0.02), bias 0."""
    layer = nn.Linear(width, out, bias=bias)
    nn.init.normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        linear(width, hidden), nn.Softplus(), linear(hidden, hidden), nn.Softplus(), linear(hidden, width)
    )


class Sample(NamedTuple):
    """Samples of a distribution and how likely they are.

    Attributes:
        z: Samples after the flow (…, D).
        divergence: log q(z₀) − log p(z_K) of each (…), without constants.
        log_det: Logarithm of the flow's volume change of each (…).
    """

    z: Tensor
    divergence: Tensor
    log_det: Tensor


class Distribution(nn.Module):
    """Maps a vector to mean and variance of a Gaussian.

    What the published code calls the variance is exp(half the network's output), and is used as such throughout.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mean, self.log_variance = _mlp(width, hidden), _mlp(width, hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and variance (…, D) of vectors (…, D)."""
        return self.mean(x), (self.log_variance(x) / 2).exp()


def _flow(noise: Tensor, mean: Tensor, variance: Tensor, u: Tensor, w: Tensor, b: Tensor) -> Sample:
    """Draws by standard normal numbers (…, D) and passes the result through K planar flows.

    Args:
        noise: Standard normal numbers (…, D); everything else is broadcast to it.
        mean: Mean (…, D).
        variance: Variance (…, D).
        u: Directions of the flows (…, K, D); they are free, so that a flow need not be invertible.
        w: Normals of the flows (…, K, D).
        b: Offsets of the flows (…, K).
    """
    z = mean + noise * variance.sqrt()
    density = -(variance.log() + (z - mean).square() / variance).sum(-1) / 2
    log_det = torch.zeros_like(density)
    for step in range(u.shape[-2]):
        direction, across = u[..., step, :], w[..., step, :]
        bend = torch.tanh((across * z).sum(-1) + b[..., step])
        log_det = log_det + torch.log((1 + (1 - bend.square()) * (across * direction).sum(-1)).abs() + 1e-5)
        z = z + direction * bend[..., None]
    return Sample(z, density + z.square().sum(-1) / 2, log_det)


class ImageFlow(nn.Module):
    """Planar flows that are made from each image's embedding."""

    def __init__(self, width: int, flows: int) -> None:
        super().__init__()
        self.u, self.w, self.b = linear(width, flows * width), linear(width, flows * width), linear(width, flows)

    def forward(self, embedding: Tensor, encoder: Distribution, noise: Tensor) -> Sample:
        """Draws samples (B, R, D) for images (B, D) by standard normal numbers (R, D) or (B, R, D)."""
        flows = self.b.out_features
        u, w = (layer(embedding).unflatten(1, (1, flows, -1)) for layer in (self.u, self.w))
        mean, variance = encoder(embedding[:, None])
        return _flow(noise, mean, variance, u, w, self.b(embedding)[:, None])


class AgnosticFlow(nn.Module):
    """Planar flows that no image enters."""

    def __init__(self, width: int, flows: int) -> None:
        super().__init__()
        self.u, self.w = (nn.Parameter(torch.randn(flows, width)) for _ in range(2))
        self.b, self.state = nn.Parameter(torch.randn(flows)), nn.Parameter(torch.randn(width))

    def forward(self, encoder: Distribution, noise: Tensor) -> Sample:
        """Draws samples (R, D) by standard normal numbers (R, D)."""
        mean, variance = encoder(self.state[None])
        return _flow(noise, mean, variance, self.u, self.w, self.b)


class Look(nn.Module):
    """Residual cross-attention: sentences look at the patches of a layer, which are keys and values as they are."""

    heads = 4

    def __init__(self, width: int, out: int, layers: int) -> None:
        super().__init__()
        self.query = nn.Linear(out, out)
        self.project = nn.ModuleList(linear(width, out, bias=False) for _ in range(layers))

    def forward(self, text: Tensor, levels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Returns unit patches (B, n, D) and unit sentences (B, T, D) of each layer.

        Args:
            text: Unit sentences (B, T, D).
            levels: Patch tokens of each layer (B, h, w, W).
        """
        queries, found = self._split(self.query(text)), []
        for project, level in zip(self.project, levels, strict=True):
            patches = normalize(project(level.flatten(1, 2)).float())
            keys = self._split(patches)
            # The scale is of the whole width, as published, not of a head's.
            seen = F.scaled_dot_product_attention(queries, keys, keys, scale=text.shape[-1] ** -0.5)
            found.append((patches, normalize(seen.transpose(1, 2).flatten(2) + text)))
        return found

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Fuse(nn.Module):
    """One vector of the patches of all layers: their weighted mean, with weights of their own."""

    def __init__(self, width: int, layers: int, hidden: int, out: int) -> None:
        super().__init__()
        self.mix, self.weigh, self.out = linear(width * layers, hidden), linear(hidden, 1), linear(hidden, out)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Maps patch tokens of each layer (B, h, w, W) to vectors (B, D)."""
        x = self.mix(torch.cat([level.flatten(1, 2) for level in levels], dim=2))
        return self.out((self.weigh(x).softmax(1) * x).sum(1))
