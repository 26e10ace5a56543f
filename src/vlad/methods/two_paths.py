"""CLIP's image tower on two paths: its own, and a local one of self-self attention (AnomalyCLIP, FAPrompt)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vlad.clip.attention import LocalAttention
from vlad.clip.blocks import AttentionBranch
from vlad.methods.base import Method
from vlad.types import Features, name_features

__all__ = ["two_paths"]


def two_paths(
    method: Method,
    images: Tensor,
    layers: Sequence[int],
    local_from: int,
    *,
    attention: LocalAttention = "vv",
    norm: bool = False,
) -> Features:
    """Runs both paths: patches of the local one, and the class token of the original one, in the joint space.

    The local path takes queries, keys and values of the original one, has no MLP and never feeds back.

    Args:
        method: The method, whose encoder and cache of features are used.
        images: Normalised images (B, 3, H, W).
        layers: Blocks whose patches are returned; one ahead of the local path gives the original path's.
        local_from: Block at which the local path begins; above the depth there is none.
        attention: Which self-self attention the local path adds up.
        norm: Whether the class token goes through ``ln_post``.
    """
    tower = method.backbone.image
    local = [layer for layer in layers if layer >= local_from]
    plain = [layer for layer in layers if layer < local_from]

    def run(images: Tensor) -> Features:
        tokens = tower.run(
            tower.embed(images),
            layers=plain,
            branch=AttentionBranch(first=local_from, attention=attention) if local else None,
            branch_layers=local,
            class_token_only=tower.depth not in plain,
        )
        states, grid = {**tokens.hidden_states, **tokens.branch}, tower.grid(*images.shape[-2:])
        return Features(
            levels=tuple(tower.project(states[layer][:, 1:]).unflatten(1, grid) for layer in layers),
            image=tower.project(tokens.last[:, 0], norm=norm),
        )

    names = name_features(
        levels=tuple(
            f"projected {f'{attention} patches {layer} from {local_from}' if layer in local else layer}"
            for layer in layers
        ),
        image="embedding" if norm else "class, projected without norm",
    )
    return method.frozen(images, run, names)
