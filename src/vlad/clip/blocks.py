"""One explicit loop over open_clip's residual attention blocks.

The published detectors each carry an edited copy of CLIP's transformer, to tap tokens, insert prompts or run
a second attention path. Here is the one loop that serves them all, over open_clip's own modules and weights.
Blocks are numbered from 1, as the papers do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlad.clip.attention import LocalAttention, attend, local_attention, project_out, project_qkv

__all__ = ["LocalPath", "TokenEdit", "Tokens", "run_blocks"]

TokenEdit = Callable[[int, Tensor], Tensor]
"""An edit of the tokens (B, N, W) ahead of block ``number``: deep prompts are made of these."""


@dataclass(frozen=True)
class LocalPath:
    """A second residual path with self-self attention beside the ordinary one.

    The path only listens: every block's q, k and v come from the ordinary path, which stays unchanged.

    Attributes:
        first: Block at which the path starts; before its first update it equals the ordinary tokens.
        attention: Which self-self attention feeds it.
        restarts: Blocks at which the path is thrown away and starts anew from zero (CLIP-AD's stages).
    """

    first: int = 1
    attention: LocalAttention = "vv"
    restarts: Collection[int] = frozenset()


@dataclass
class Tokens:
    """What a run through the blocks leaves; every tensor is (B, N, W).

    Attributes:
        last: Output of the last block that ran.
        taps: Output of each tapped block.
        attended: Tokens inside each asked-for block, between its attention and its MLP.
        local: The local path after each asked-for block.
    """

    last: Tensor
    taps: dict[int, Tensor] = field(default_factory=dict)
    attended: dict[int, Tensor] = field(default_factory=dict)
    local: dict[int, Tensor] = field(default_factory=dict)


def _check_numbers(numbers: Collection[int], depth: int) -> None:
    wrong = [n for n in numbers if not 1 <= n <= depth]
    if wrong:
        raise ValueError(f"block numbers run from 1 to {depth}, got {wrong}")


def run_blocks(
    blocks: Sequence[Any],
    x: Tensor,
    *,
    mask: Tensor | None = None,
    taps: Collection[int] = (),
    attended: Collection[int] = (),
    local: LocalPath | None = None,
    local_taps: Collection[int] = (),
    before: TokenEdit | None = None,
    need_last: bool = True,
    class_token_only: bool = False,
) -> Tokens:
    """Runs tokens through residual attention blocks; returns what was asked for on the way.

    A block is ``x + attn(ln_1(x))``, then ``x + mlp(ln_2(x))``, with layer scale where the model has it.
    q, k and v are projected once and shared by both paths. Nothing is run beyond the last thing asked for.

    Args:
        blocks: open_clip ``ResidualAttentionBlock`` modules.
        x: Embedded tokens (B, N, W).
        mask: Additive attention mask (N, N), for text.
        taps: Blocks whose output is returned.
        attended: Blocks whose half-finished tokens (attention added, MLP not yet) are returned.
        local: A second attention path, or None.
        local_taps: Blocks after which the local path is returned; needs ``local``.
        before: Edit of the tokens ahead of each block.
        need_last: Whether the output of the whole stack is needed. If not, blocks after the last tap are
            not run.
        class_token_only: Whether only token 0 of the last block is needed; it is then the only one computed,
            and ``last`` is (B, 1, W). Not with taps of the last block.

    Returns:
        The tokens asked for; none is a view that a later step edits.

    Raises:
        ValueError: A block number is out of range, or arguments contradict each other.
    """
    depth = len(blocks)
    _check_numbers([*taps, *attended, *local_taps], depth)
    if local is None and local_taps:
        raise ValueError("local_taps needs a local path")
    if local is not None and any(n < local.first for n in local_taps):
        raise ValueError(f"the local path starts at block {local.first}; it cannot be tapped before: {local_taps}")
    if class_token_only and (not need_last or depth in {*taps, *attended, *local_taps}):
        raise ValueError("class_token_only excludes taps of the last block")
    last_local = max(local_taps, default=0)
    stop = depth if need_last else max([*taps, *attended, *local_taps], default=0)
    tokens = Tokens(last=x)
    stream: Tensor | None = None
    for number, block in enumerate(blocks[:stop], start=1):
        if before is not None:
            x = before(number, x)
        q, k, v = project_qkv(block.attn, block.ln_1(x))
        if local is not None and local.first <= number <= last_local:
            update = block.ls_1(project_out(block.attn, local_attention(local.attention, q, k, v)))
            if number in local.restarts:
                stream = update
            else:
                stream = (x if stream is None else stream) + update
            if number in local_taps:
                tokens.local[number] = stream
        if number == stop and not need_last and number not in taps and number not in attended:
            break
        if class_token_only and number == depth:
            q, x = q[:, :, :1], x[:, :1]
        x = x + block.ls_1(project_out(block.attn, attend(q, k, v, mask)))
        if number in attended:
            tokens.attended[number] = x
        if number == stop and not need_last and number not in taps:
            break
        x = x + block.ls_2(_mlp(block.mlp, block.ln_2(x)))
        if number in taps:
            tokens.taps[number] = x
    tokens.last = x
    return tokens


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    """Runs a block's MLP; without gradients its GELU works in place, as a second tensor of that width costs 7 %."""
    hidden = mlp.c_fc(x)
    if isinstance(mlp.gelu, nn.GELU) and not hidden.requires_grad:
        return mlp.c_proj(torch.ops.aten.gelu_(hidden, approximate=mlp.gelu.approximate))
    return mlp.c_proj(mlp.gelu(hidden))


def causal_mask(length: int, like: Tensor) -> Tensor:
    """Returns the additive causal mask (length, length) in the dtype and on the device of ``like``."""
    mask = torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device)
    return mask.triu_(1)
