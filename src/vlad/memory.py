"""Patch memory: tokens of normal reference images by category, and the distance of new patches to the nearest one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.errors import MethodError, nearest

__all__ = ["Metric", "PatchMemory", "coreset", "memory_scores", "nearest_distance"]

Metric = Literal["cosine", "l2"]
"""``cosine``: 1 - cosine similarity, in [0, 2]. ``l2``: Euclidean distance of the raw tokens."""

_CHUNK_BYTES = 64 << 20
_BLOCK = 2048  # rows of the bank per product: larger ones are slower on CPUs, as the similarities leave the cache


class PatchMemory(nn.Module):
    """Patch tokens of reference images, by category and level, as buffers that a checkpoint saves and restores.

    Their number is unknown until they are added: ``load_state_dict`` takes whatever number was saved. The names of the
    categories are a buffer too (UTF-8 JSON), so that a file of tensors alone holds all of it.

    Attributes:
        metric: What tokens are compared by; with ``cosine`` they are held at length 1.
        limit: Rows per category and level at most, chosen by :func:`coreset`; None for all.

    Examples:
        >>> memory = PatchMemory()
        >>> memory.add("mvtec_ad/bottle", (torch.eye(4),))
        >>> memory_scores((torch.ones(1, 2, 2, 4),), memory.levels_of("mvtec_ad/bottle")).shape
        torch.Size([1, 2, 2])
    """

    names: Tensor

    def __init__(self, *, metric: Metric = "cosine", limit: int | None = None) -> None:
        super().__init__()
        self.metric, self.limit = metric, limit
        self.register_buffer("names", _to_bytes([]))

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories in the order they were added."""
        return tuple(json.loads(bytes(self.names.tolist()).decode()))

    def add(self, category: str, levels: Sequence[Tensor]) -> None:
        """Adds reference patches of a category; those it has already are kept.

        Args:
            category: Any name, such as ``mvtec_ad/bottle``.
            levels: Patch tokens of each level (N, D).

        Raises:
            MethodError: There are no tokens, some are not finite, or they do not fit those the category has.
        """
        if not levels or any(level.ndim != 2 or not len(level) for level in levels):
            shapes = [tuple(level.shape) for level in levels]
            raise MethodError(f"references of '{category}' must be patch tokens (N, D) of each level, got {shapes}")
        if not all(bool(level.isfinite().all()) for level in levels):
            raise MethodError(f"references of '{category}' hold NaN or infinite tokens; look at the images")
        names = list(self.categories)
        had: tuple[Tensor, ...] = ()
        if category in names:
            had = self.levels_of(category)
            if [bank.shape[1] for bank in had] != [level.shape[1] for level in levels]:
                raise MethodError(f"references of '{category}' have other levels or widths than those added before")
        else:
            names.append(category)
        number = names.index(category)
        for place, level in enumerate(levels):
            bank = level.detach().to(self.names.device, torch.float32, copy=True)
            bank = F.normalize(bank, dim=-1) if self.metric == "cosine" else bank
            bank = torch.cat([had[place], bank]) if had else bank
            if self.limit is not None and len(bank) > self.limit:
                bank = bank[coreset(bank, self.limit)]
            self.register_buffer(_bank(number, place), bank)
        self.names = _to_bytes(names).to(self.names.device)

    def fit(self, references: Mapping[str, Sequence[Tensor]]) -> None:
        """Forgets all categories and adds others; values as in :meth:`add`."""
        self.clear()
        for category, levels in references.items():
            self.add(category, levels)

    def clear(self) -> None:
        """Forgets all categories."""
        self._reset()

    def _reset(self) -> None:
        for name in [name for name in self._buffers if name.startswith("bank_")]:
            delattr(self, name)
        self.names = _to_bytes([]).to(self.names.device)

    def levels_of(self, category: str) -> tuple[Tensor, ...]:
        """Returns the reference patches of a category, one tensor (N, D) per level.

        Raises:
            MethodError: The category is unknown; the message names those that are known.
        """
        names = self.categories
        if category not in names:
            raise MethodError(f"there are no reference images of '{category}'; {nearest(category, names)}")
        number = names.index(category)
        found: list[Tensor] = []
        while (bank := self._buffers.get(_bank(number, len(found)))) is not None:
            found.append(bank)
        return tuple(found)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """Makes room for as many rows as were saved, then loads as any module does."""
        names = state_dict.get(prefix + "names")
        if names is not None:
            self._reset()
            device = self.names.device
            self.names = torch.empty_like(names, device=device)
            for key in [key for key in state_dict if key.startswith(prefix + "bank_")]:
                self.register_buffer(key.removeprefix(prefix), torch.empty_like(state_dict[key], device=device))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if names is not None:
            errors: list[str] = arguments[-1]
            lost = [c for n, c in enumerate(self.categories) if _bank(n, 0) not in self._buffers]
            if lost:
                errors.append(f"the patch memory names {', '.join(lost)} but holds no patches of it")


def _bank(category: int, level: int) -> str:
    return f"bank_{category}_{level}"


def _to_bytes(names: Sequence[str]) -> Tensor:
    return torch.tensor(list(json.dumps(list(names), ensure_ascii=False).encode()), dtype=torch.uint8)


def nearest_distance(
    queries: Tensor,
    bank: Tensor,
    *,
    metric: Metric = "cosine",
    neighbours: int = 1,
    unit_bank: bool = False,
    chunk_bytes: int = _CHUNK_BYTES,
) -> Tensor:
    """Computes the distance of each patch to its nearest reference patch: exact, by matrix products, in float32.

    Args:
        queries: Patch tokens (B, h, w, D), of any length.
        bank: Reference patch tokens (N, D).
        metric: ``cosine`` or ``l2``; see :data:`Metric`.
        neighbours: Of so many nearest patches the mean distance is taken.
        unit_bank: Whether the rows of the bank have length 1 already, which spares a pass over it with ``cosine``.
        chunk_bytes: About so much memory is used for the similarities at a time; when traced for export or compiling,
            all of them are held.

    Returns:
        Distances (B, h, w), float32, at least 0.

    Raises:
        MethodError: The bank has fewer rows than neighbours, or another width than the queries.
    """
    if bank.shape[0] < neighbours or bank.shape[-1] != queries.shape[-1]:
        raise MethodError(
            f"{neighbours} nearest of patches (…, {queries.shape[-1]}) cannot be found in a memory {tuple(bank.shape)}"
        )
    with torch.autocast(queries.device.type, enabled=False):
        x, bank = queries.flatten(0, -2).float(), bank.float()
        if metric == "cosine" and not unit_bank:
            bank = F.normalize(bank, dim=-1)
        if metric == "cosine":
            x = F.normalize(x, dim=-1)
        if torch.compiler.is_compiling():
            return _nearest(x, bank, metric, neighbours, None).unflatten(0, queries.shape[:-1])
        block = max(neighbours, min(_BLOCK, chunk_bytes // 4, len(bank)))
        wanted = block if metric == "cosine" else max(block, neighbours * bank.shape[1])
        found = [
            _nearest(part, bank, metric, neighbours, block) for part in x.split(max(1, chunk_bytes // (4 * wanted)))
        ]
        return torch.cat(found).unflatten(0, queries.shape[:-1])


def _nearest(x: Tensor, bank: Tensor, metric: Metric, neighbours: int, block: int | None) -> Tensor:
    """Returns the mean distance (M,) of tokens (M, D) to their nearest rows of a bank (N, D), some rows at a time."""
    # Euclidean: |x - b|² without |x|², which changes no order. The distance itself is computed from the difference, as
    # small distances of long vectors would drown in the rounding of the squares.
    halves = None if metric == "cosine" else bank.square().sum(-1) * -0.5
    parts = bank.split(block) if block else (bank,)
    offsets = () if halves is None else halves.split(block) if block else (halves,)
    near: Tensor | None = None
    index, start = torch.empty(0), 0
    for number, rows in enumerate(parts):
        if halves is None and neighbours == 1:
            best = (x @ rows.T).amax(-1, keepdim=True)
            near = best if near is None else torch.maximum(near, best)
            continue
        closeness = x @ rows.T if halves is None else torch.addmm(offsets[number], x, rows.T)
        best, place = closeness.topk(neighbours if near is None else min(neighbours, len(rows)), dim=-1)
        place, start = place + start, start + (block or 0)
        if near is not None:
            best, order = torch.cat([near, best], -1).topk(neighbours, dim=-1)
            place = torch.cat([index, place], -1).gather(-1, order)
        near, index = best, place
    assert near is not None  # a bank has at least one row
    if halves is None:
        return (1 - near.mean(-1)).clamp(min=0)
    return (x[:, None] - bank[index]).square().sum(-1).sqrt().mean(-1)


def memory_scores(
    features_levels: Sequence[Tensor],
    bank_levels: Sequence[Tensor],
    *,
    metric: Metric = "cosine",
    neighbours: int = 1,
    chunk_bytes: int = _CHUNK_BYTES,
) -> Tensor:
    """Averages the distances to the nearest reference patches over the levels.

    Args:
        features_levels: Patch tokens of each level (B, h, w, D).
        bank_levels: Reference patches of each level (N, D), as :meth:`PatchMemory.levels_of` returns them: with
            ``cosine``, rows of length 1.
        metric: As :func:`nearest_distance`.
        neighbours: As there.
        chunk_bytes: As there.

    Returns:
        Distances (B, h, w), float32.

    Raises:
        MethodError: The numbers of levels differ, or as :func:`nearest_distance`.
    """
    if len(features_levels) != len(bank_levels) or not bank_levels:
        raise MethodError(
            f"the image has {len(features_levels)} levels of patches and the memory {len(bank_levels)}; "
            "fit the references with the same layers"
        )
    options: dict[str, Any] = {"neighbours": neighbours, "chunk_bytes": chunk_bytes, "unit_bank": metric == "cosine"}
    total = nearest_distance(features_levels[0], bank_levels[0], metric=metric, **options)
    for tokens, bank in zip(features_levels[1:], bank_levels[1:], strict=True):
        total = total + nearest_distance(tokens, bank, metric=metric, **options)
    return total / len(bank_levels)


@torch.no_grad()
def coreset(bank: Tensor, count: int, seed: int = 0, *, projected: int | None = None) -> Tensor:
    """Chooses rows that cover a bank: greedy k-centre, each next row being the farthest from all chosen so far.

    Args:
        bank: Patch tokens (N, D).
        count: How many rows to choose; all of them if there are no more.
        seed: Decides the first row and the projection.
        projected: Distances are measured after a random projection to so many dimensions, which is faster for large
            D; None measures them as they are.

    Returns:
        Row numbers (count,), int64, in the order of choice: the first n of them are the coreset of n rows.
    """
    count = min(count, len(bank))
    generator = torch.Generator().manual_seed(seed)
    first = int(torch.randint(len(bank), (1,), generator=generator))
    x = bank.float()
    if projected is not None and projected < x.shape[1]:
        x = x @ (torch.randn(x.shape[1], projected, generator=generator) / projected**0.5).to(x.device)
    squares = x.square().sum(-1)
    chosen = torch.full((count,), first, dtype=torch.long, device=x.device)
    far = torch.full_like(squares, torch.inf)
    for place in range(1, count):
        last = chosen[place - 1]
        far = torch.minimum(far, squares + squares[last] - 2 * (x @ x[last]))
        far[last] = -torch.inf  # never twice, however the squares round
        chosen[place] = far.argmax()
    return chosen
