"""Deep prompt tokens as edits of the token sequence, for :func:`vlad.clip.blocks.run_blocks`.

Two published forms: tokens appended to an image sequence and refreshed ahead of the first blocks (AdaCLIP,
VPT-deep), and words of a sentence overwritten ahead of some blocks (AdaCLIP, AnomalyCLIP).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlad.clip.blocks import TokenEdit

__all__ = ["append_prompts", "overwrite_prompts"]


def _batched(prompt: Tensor, x: Tensor) -> Tensor:
    return prompt.to(x.dtype).expand(x.shape[0], -1, -1)


def append_prompts(prompts: Mapping[int, Tensor], count: int) -> TokenEdit:
    """Makes an edit that appends prompt tokens, then replaces them ahead of later blocks.

    Ahead of the first block named the prompts are appended at the end of the sequence; ahead of each further
    block named they replace the tokens appended before. In other blocks they stay and evolve.

    Args:
        prompts: Block number (from 1) → prompt tokens, (M, W) shared by the batch or (B, M, W).
        count: Length N of the sequence without prompts; what lies beyond is prompt.

    Returns:
        The edit.
    """

    def edit(number: int, x: Tensor) -> Tensor:
        if number not in prompts:
            return x
        return torch.cat([x[:, :count], _batched(prompts[number], x)], dim=1)

    return edit


def overwrite_prompts(prompts: Mapping[int, Tensor], position: int = 1) -> TokenEdit:
    """Makes an edit that overwrites tokens in place of the sequence; its length stays.

    Args:
        prompts: Block number (from 1) → prompt tokens, (M, W) shared by the batch or (B, M, W).
        position: Index of the first token overwritten; 1 keeps the start token.

    Returns:
        The edit.
    """

    def edit(number: int, x: Tensor) -> Tensor:
        if number not in prompts:
            return x
        prompt = _batched(prompts[number], x)
        return torch.cat([x[:, :position], prompt, x[:, position + prompt.shape[1] :]], dim=1)

    return edit
