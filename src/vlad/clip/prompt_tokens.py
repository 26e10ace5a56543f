"""Deep prompt tokens as edits of the token sequence, for :func:`vlad.clip.blocks.run_blocks`.

There are two published forms: tokens appended to an image sequence and replaced before the first blocks (AdaCLIP,
VPT-deep), and words of a sentence overwritten before some blocks (AdaCLIP, AnomalyCLIP).
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
    """Returns an edit that appends prompt tokens, then replaces them before later blocks.

    Before the first given block the prompts are appended at the end of the sequence; before each further given block
    they replace the tokens appended earlier. Other blocks process them like all tokens.

    Args:
        prompts: Block number (from 1) → prompt tokens, (M, W) shared by the batch or (B, M, W).
        count: Length N of the sequence without prompts; all later tokens are prompts.

    Returns:
        The edit.
    """

    def edit(number: int, x: Tensor) -> Tensor:
        if number not in prompts:
            return x
        return torch.cat([x[:, :count], _batched(prompts[number], x)], dim=1)

    return edit


def overwrite_prompts(prompts: Mapping[int, Tensor], position: int = 1) -> TokenEdit:
    """Returns an edit that overwrites tokens of the sequence, whose length stays the same.

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
