"""Windows: small squares of patches, each encoded as a separate image (WinCLIP, arXiv 2303.14814).

A window's embedding is CLIP's image embedding of only the class token and the window's patches, at their original
positions; all other patches are left out of the sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vlad.clip.attention import attend, project_out, project_qkv
from vlad.clip.blocks import run_blocks

if TYPE_CHECKING:
    from vlad.clip.image import ImageTower

__all__ = ["encode_windows", "mean_over_windows", "onednn_products", "window_patches"]

_TOKENS = 1024  # tokens per pass on CPUs: their hidden layer stays near the cache
_TOKENS_ON_DEVICE = 1 << 17
_FEW_ROWS = 64  # below, oneDNN's rearranging of the weights costs more than it gains


def window_patches(grid: tuple[int, int], side: int) -> Tensor:
    """Returns the patches of every window of side x side patches, one patch apart, row by row.

    Args:
        grid: Rows and columns (h, w) of the patches.
        side: Patches along a window's side.

    Returns:
        Patch numbers (n, side²), int64, with n = (h - side + 1) · (w - side + 1).

    Examples:
        >>> window_patches((2, 3), 2)
        tensor([[0, 1, 3, 4],
                [1, 2, 4, 5]])
    """
    numbers = torch.arange(grid[0] * grid[1]).view(grid)
    return numbers.unfold(0, side, 1).unfold(1, side, 1).flatten(0, 1).flatten(1)


def encode_windows(
    tower: ImageTower, x: Tensor, grid: tuple[int, int], side: int, *, tokens: int | None = None
) -> Tensor:
    """Computes the image embedding of every window, in a few passes of many windows.

    Operations before the first attention act on single tokens and are computed once per image, not once per window. In
    the last block only the class token is computed.

    Args:
        tower: The image tower.
        x: Embedded tokens (B, 1 + h · w, W), as :meth:`vlad.clip.ImageTower.embed` returns them.
        grid: Rows and columns (h, w) of the patches.
        side: Patches along a window's side.
        tokens: Approximate number of tokens per pass, which bounds the memory; by default 1024 on CPUs and 131072
            on other devices. When traced for export, one pass processes all tokens.

    Returns:
        Embeddings (B, h - side + 1, w - side + 1, D), not normalised.
    """
    blocks = tower.visual.transformer.resblocks
    first = blocks[0]
    patches = window_patches(grid, side).to(x.device) + 1
    index = F.pad(patches, (1, 0))  # the class token is number 0
    qkv = [part.transpose(1, 2) for part in project_qkv(first.attn, first.ln_1(x))]  # (B, 1 + h · w, heads, W / heads)
    tokens = tokens or (_TOKENS if x.device.type == "cpu" else _TOKENS_ON_DEVICE)
    found = []
    whole = torch.compiler.is_compiling()  # whose batch has no number
    for some in (index,) if whole else index.split(max(1, tokens // (x.shape[0] * index.shape[1]))):
        q, k, v = (part[:, some].flatten(0, 1).transpose(1, 2) for part in qkv)
        part = x[:, some].flatten(0, 1) + first.ls_1(project_out(first.attn, attend(q, k, v)))
        part = part + first.ls_2(first.mlp(first.ln_2(part)))
        last = run_blocks(blocks[1:], part, class_token_only=True).last
        found.append(tower.project(last[:, 0]).unflatten(0, (x.shape[0], -1)))
    return torch.cat(found, 1).unflatten(1, (grid[0] - side + 1, grid[1] - side + 1))


def mean_over_windows(values: Tensor, side: int) -> Tensor:
    """Averages, for each patch, the values of the windows that cover it.

    Args:
        values: One value per window (B, h - side + 1, w - side + 1).
        side: Patches along a window's side.

    Returns:
        Means (B, h, w).

    Examples:
        >>> mean_over_windows(torch.tensor([[[1.0, 3.0]]]), 2)
        tensor([[[1., 2., 3.],
                 [1., 2., 3.]]])
    """
    margin = [side - 1] * 4
    total = F.avg_pool2d(F.pad(values, margin), side, 1)
    covered = F.avg_pool2d(F.pad(torch.ones_like(values), margin), side, 1)
    return total / covered


@contextmanager
def onednn_products(like: Tensor) -> Iterator[None]:
    """Within it, linear layers run on oneDNN's float32 kernel, where PyTorch takes MKL's: 14 % less time on an AMD CPU.

    95 % of WinCLIP's time are linear layers over thousands of tokens. Products are those of float32, summed in another
    order. It does nothing on other devices, in other precisions, under autocast, where gradients are wanted, while
    traced for export, and where PyTorch was built without the kernel.

    Args:
        like: A tensor of the device and precision that is going to be computed in.
    """
    plain = like.device.type == "cpu" and like.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if plain and there and not torch.compiler.is_compiling():
        with _OneDNNLinear():
            yield
    else:
        yield


class _OneDNNLinear(TorchFunctionMode):
    """Takes over ``F.linear``, whoever calls it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and len(args) == 3 and not kwargs:
            x, weight, bias = args
            trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
            if x.dtype == weight.dtype == torch.float32 and not trained and x.shape[:-1].numel() >= _FEW_ROWS:
                return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))
