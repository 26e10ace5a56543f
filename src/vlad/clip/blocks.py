"""One explicit loop over open_clip's residual attention blocks.

The published detectors each carry an edited copy of CLIP's transformer, to read hidden states, insert prompts or run
a second attention branch. This one loop serves all of them, over open_clip's own modules and weights.
Blocks are numbered from 1, as in the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.clip.attention import LocalAttention, attend, local_attention, project_out, project_qkv

__all__ = ["AttentionBranch", "TokenEdit", "Tokens", "run_blocks"]

TokenEdit = Callable[[int, Tensor], Tensor]
"""An edit of the tokens (B, N, W) ahead of block ``number``: deep prompts are made of these."""


@dataclass(frozen=True)
class AttentionBranch:
    """A second residual branch with self-self attention, parallel to the ordinary tokens: value-value by default.

    Every block's q, k and v come from the ordinary tokens, which stay unchanged.

    Attributes:
        first: Block at which the branch starts; before its first update it equals the ordinary tokens.
        attention: Which self-self attention feeds it.
        restarts: Blocks at which the branch is reset to zero (CLIP-AD's stages).
    """

    first: int = 1
    attention: LocalAttention = "vv"
    restarts: Collection[int] = frozenset()


@dataclass
class Tokens:
    """Output of a run through the blocks; every tensor is (B, N, W).

    Attributes:
        last: Output of the last block that ran.
        hidden_states: Output of each requested block.
        attended: Tokens inside each requested block, between attention and MLP.
        branch: The second branch after each requested block.
    """

    last: Tensor
    hidden_states: dict[int, Tensor] = field(default_factory=dict)
    attended: dict[int, Tensor] = field(default_factory=dict)
    branch: dict[int, Tensor] = field(default_factory=dict)


def _check_numbers(numbers: Collection[int], depth: int) -> None:
    wrong = [n for n in numbers if not 1 <= n <= depth]
    if wrong:
        raise ValueError(f"block numbers run from 1 to {depth}, got {wrong}")


def run_blocks(
    blocks: Sequence[Any],
    x: Tensor,
    *,
    mask: Tensor | None = None,
    layers: Collection[int] = (),
    attended: Collection[int] = (),
    branch: AttentionBranch | None = None,
    branch_layers: Collection[int] = (),
    before: TokenEdit | None = None,
    after: TokenEdit | None = None,
    attention: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None,
    need_last: bool = True,
    class_token_only: bool = False,
) -> Tokens:
    """Runs tokens through residual attention blocks and returns the requested intermediate tokens.

    A block is ``x + attn(ln_1(x))``, then ``x + mlp(ln_2(x))``, with layer scale if the model has it.
    q, k and v are projected once and shared by both. Blocks after the last requested layer are not run.

    Args:
        blocks: open_clip ``ResidualAttentionBlock`` modules.
        x: Embedded tokens (B, N, W).
        mask: Additive attention mask (N, N), for text.
        layers: Intermediate layers: blocks whose output (hidden states) is returned.
        attended: Blocks whose half-finished tokens (attention added, MLP not yet) are returned.
        branch: A second residual branch with self-self attention, or None.
        branch_layers: Blocks after which the branch is returned; needs ``branch``.
        before: Edit of the tokens before each block.
        after: Edit of the tokens after each block; ``layers`` and ``last`` are taken after it.
        attention: Replacement for a block's attention: maps its number, queries, keys and values
            (B, heads, N, W / heads) to attended values (B, N, W), before the output projection.
        need_last: Whether the output of the whole stack is needed. If not, blocks after the last requested layer are
            not run.
        class_token_only: Whether only token 0 of the last block is needed; it is then the only one computed,
            and ``last`` is (B, 1, W). Not with hidden states of the last block; its branch keeps all tokens.

    Returns:
        The requested tokens; later steps modify none of them in place.

    Raises:
        ValueError: A block number is out of range, or arguments contradict each other.
    """
    depth = len(blocks)
    _check_numbers([*layers, *attended, *branch_layers], depth)
    if branch is None and branch_layers:
        raise ValueError("branch_layers needs a branch")
    if branch is not None and any(n < branch.first for n in branch_layers):
        raise ValueError(f"the branch starts at block {branch.first}; it cannot be read before: {branch_layers}")
    if class_token_only and (not need_last or depth in {*layers, *attended}):
        raise ValueError("class_token_only excludes hidden states of the last block")
    last_local = max(branch_layers, default=0)
    stop = depth if need_last else max([*layers, *attended, *branch_layers], default=0)
    tokens = Tokens(last=x)
    stream: Tensor | None = None
    for number, block in enumerate(blocks[:stop], start=1):
        if before is not None:
            x = before(number, x)
        q, k, v = project_qkv(block.attn, block.ln_1(x))
        if branch is not None and branch.first <= number <= last_local:
            update = block.ls_1(project_out(block.attn, local_attention(branch.attention, q, k, v)))
            if number in branch.restarts:
                stream = update
            else:
                stream = (x if stream is None else stream) + update
            if number in branch_layers:
                tokens.branch[number] = stream
        if number == stop and not need_last and number not in layers and number not in attended:
            break
        if class_token_only and number == depth:
            q, x = q[:, :, :1], x[:, :1]
        values = attend(q, k, v, mask) if attention is None else attention(number, q, k, v)
        x = x + block.ls_1(project_out(block.attn, values))
        if number in attended:
            tokens.attended[number] = x
        if number == stop and not need_last and number not in layers:
            break
        x = x + block.ls_2(_mlp(block.mlp, block.ln_2(x)))
        if after is not None:
            x = after(number, x)
        if number in layers:
            tokens.hidden_states[number] = x
    tokens.last = x
    return tokens


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    """Runs a block's MLP; without gradients its GELU works in place, as a second tensor of that width costs 7 %.

    OpenAI's QuickGELU, x sigmoid(1.702 x), is the SiLU of 1.702 x over 1.702, which has a kernel that works in place.
    """
    hidden = mlp.c_fc(x)
    if hidden.requires_grad:
        return mlp.c_proj(mlp.gelu(hidden))
    if isinstance(mlp.gelu, nn.GELU):
        return mlp.c_proj(torch.ops.aten.gelu_(hidden, approximate=mlp.gelu.approximate))
    if type(mlp.gelu).__name__ == "QuickGELU":
        return mlp.c_proj(F.silu(hidden.mul_(1.702), inplace=True).mul_(1 / 1.702))
    return mlp.c_proj(mlp.gelu(hidden))


def causal_mask(length: int, like: Tensor) -> Tensor:
    """Returns the additive causal mask (length, length) in the dtype and on the device of ``like``."""
    mask = torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device)
    return mask.triu_(1)
