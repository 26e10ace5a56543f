"""What AdaCLIP's authors publish: files, whose names are turned into ours; and the rounding and seed of their test."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from vlad.checkpoint import hyperparameters, not_published
from vlad.clip.blocks import TokenEdit, Tokens
from vlad.errors import WeightsError
from vlad.published import Published

__all__ = ["PUBLISHED", "SEED", "published_state", "read_settings", "run_own_blocks", "seed_numpy"]

SEED = 111
"""What the published test script seeds numpy with, once, at its start."""

PUBLISHED = {
    name: Published("Caoyunkang/AdaCLIP", f"weights/pretrained_{name}.pth", sha256, "space")
    for name, sha256 in {
        "mvtec_colondb": "be51a42c052bd4cf060e54f503a1f5d0b2a3b899bc8dc2e243042f18b215427e",
        "visa_clinicdb": "3deabbbaf1e412cfdfcb42923a500b986f4b9ee96ccbc7a735d89dbc87df44c8",
        "all": "33e8d3db1cb4aab030866b8b70a46e10aa27ebf2c23b5463cb07f2574addd98c",
    }.items()
}
"""The authors' weights by name."""


def published_state(
    file: Mapping[str, Any], prompt_type: str, blocks: Mapping[str, Sequence[int]], length: int, layers: int
) -> dict[str, Tensor]:
    """Maps the published names ``clip_model.*`` to ours; every key must have its place.

    Args:
        file: The file's tensors by name.
        prompt_type: Static and dynamic prompts (``SD``), one of them, or ``none``.
        blocks: Blocks with prompts in the ``visual`` and in the ``text`` tower.
        length: Prompt tokens.
        layers: Number of layers whose patches are compared.

    Returns:
        Tensors by the names of the method's own parameters.

    Raises:
        WeightsError: A key is missing, or one is left over.
        KeyError: It is no file of AdaCLIP's.
    """
    state, left = {}, {key: file[key] for key in file if key.startswith("clip_model.")}

    def take(name: str) -> Tensor:
        if f"clip_model.{name}" not in left:
            raise WeightsError(f"the AdaCLIP file lacks clip_model.{name}")
        return left.pop(f"clip_model.{name}")

    if not any(key.startswith("clip_model.patch_token_layer.") for key in left):
        raise KeyError("clip_model.patch_token_layer")
    for part in ("weight", "bias"):
        for i in range(layers):
            state[f"patch_heads.{i}.{part}"] = take(f"patch_token_layer.head.{i}.{part}")
        state[f"class_head.{part}"] = take(f"cls_token_layer.head.0.{part}")
        for tower in ("visual", "text") if "D" in prompt_type else ():
            name = f"dynamic_{tower}_prompt_generator.head"
            if blocks[tower]:
                state[f"{tower}_dynamic.{part}"] = torch.cat([take(f"{name}.{m}.{part}") for m in range(length)])
            else:  # made, saved and never used by the published code
                for m in range(length):
                    left.pop(f"clip_model.{name}.{m}.{part}", None)
    if "S" in prompt_type:
        for tower in ("visual", "text"):
            for block in blocks[tower]:
                state[f"{tower}_static.block_{block}"] = take(f"{tower}_prompter.static_prompts.{block - 1}")
        left.pop("clip_model.text_prompter.static_prompts.0", None)  # never used by the published code
    if left:
        raise WeightsError(f"the AdaCLIP file holds more than this method has: {', '.join(sorted(left)[:8])}")
    return state


def read_settings(file: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Reads type, branch, depth and length of prompts off the names and shapes of a published file, or off our own.

    A published file with dynamic prompts alone does not tell branch and depth: what made its prompts is saved for both
    towers, whichever has them, and serves every block.
    """
    if "vlad" in file:
        saved = hyperparameters(file)
        return {key: saved[key] for key in ("prompt_type", "branch", "depth", "length") if saved.get(key) is not None}
    if not any("patch_token_layer" in key for key in file):
        raise not_published(path, file, "AdaCLIP")
    static = {
        tower: [key for key in file if f"{tower}_prompter.static_prompts." in key] for tower in ("visual", "text")
    }
    dynamic = {
        tower: [key for key in file if re.search(rf"dynamic_{tower}_prompt_generator\.head\.\d+\.weight", key)]
        for tower in ("visual", "text")
    }
    found: dict[str, Any] = {
        "prompt_type": ("S" if any(static.values()) else "") + ("D" if any(dynamic.values()) else "")
    }
    found["prompt_type"] = found["prompt_type"] or "none"
    if any(static.values()):
        found["branch"] = "".join(letter for letter, tower in (("V", "visual"), ("L", "text")) if static[tower])
        found["depth"] = max(map(len, static.values()))
        found["length"] = next(len(file[keys[0]]) for keys in static.values() if keys)
    elif any(dynamic.values()):
        found["length"] = max(map(len, dynamic.values()))
    return found


def run_own_blocks(
    blocks: Iterable[nn.Module], x: Tensor, layers: Collection[int], before: TokenEdit | None = None
) -> Tokens:
    """Runs tokens through open_clip's own blocks one after the other, as the published code does.

    :func:`vlad.clip.blocks.run_blocks` is faster and agrees to float32's rounding; these are the same numbers to the
    last bit for a single image on a CPU. That counts where prompts are rounded to half precision and k-means decides
    between centres at one distance: a difference of 1e-7 there becomes one of 1e-5 in the map or 1e-3 in the score.

    Args:
        blocks: open_clip ``ResidualAttentionBlock`` modules.
        x: Embedded tokens (B, N, W).
        layers: Blocks, from 1, whose output is returned.
        before: An edit of the tokens ahead of each block.
    """
    states = {}
    for number, block in enumerate(blocks, 1):
        x = block(x if before is None else before(number, x))
        if number in layers:
            states[number] = x
    return Tokens(x, states)


def seed_numpy(processes: int) -> Any:
    """Seeds numpy's global state, which scikit-learn draws from, as the published test script does.

    Args:
        processes: Number of processes of the run; with several, a warning: each draws for its own images alone.

    Returns:
        The state it had, for ``np.random.set_state``.
    """
    if processes > 1:
        rank_zero_warn(
            "with as_published an image score depends on all images before it, in order; the scores will not equal the "
            f"published ones where {processes} processes share the images: use one"
        )
    state = np.random.get_state()  # noqa: NPY002 - the global state is what the published clustering draws from
    np.random.seed(SEED)  # noqa: NPY002
    return state
