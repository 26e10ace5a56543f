"""MRAD's memory: what labelled images and their parts look like, and the share of anomalous ones among those alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.checkpoint import read_file
from vlad.clip.similarity import normalize, upsample
from vlad.errors import WeightsError

__all__ = ["LabelledMemory", "load_memories", "row_quantile"]


class LabelledMemory(nn.Module):
    """Keys with labels, as buffers that a checkpoint saves and restores, and two trained projections to read them by.

    Attributes:
        keys: Unit vectors (K, W).
        values: Which is anomalous: one-hot (K, 2), normal first.
        queries: Projects what is asked, or None to go by the cosine.
        reading: Projects the keys, or None.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, width: int, read_width: int | None, hidden_share: float) -> None:
        """Makes an empty memory.

        Args:
            width: Width W of the keys.
            read_width: Width of the projections; None for none.
            hidden_share: In training the keys of the highest cosines, above this quantile, are left out: one may be
                what is asked.
        """
        super().__init__()
        self.hidden_share = hidden_share
        self.register_buffer("keys", torch.empty(0, width))
        self.register_buffer("values", torch.empty(0, 2))
        self.queries = None if read_width is None else nn.Linear(width, read_width)
        self.reading = None if read_width is None else nn.Linear(width, read_width)

    def __len__(self) -> int:
        return len(self.keys)

    def fill(self, keys: Tensor, labels: Tensor) -> None:
        """Takes keys (K, W) and their labels (K,), 1 for anomalous, in place of what it holds."""
        self.keys = keys.detach().float().to(self.keys.device)
        self.values = F.one_hot((labels > 0).long(), 2).float().to(self.keys.device)

    def forward(self, asked: Tensor) -> Tensor:
        """Returns the probability of being anomalous (B, …) of unit vectors (B, …, W); 0.5 of an empty memory."""
        if not len(self):
            return asked.new_full(asked.shape[:-1], 0.5)
        cosines = asked @ self.keys.T
        likeness = cosines  # no temperature: without projections the answer hugs the share of anomalous keys
        if self.queries is not None and self.reading is not None:
            likeness = self.queries(asked) @ self.reading(self.keys).T
        if self.training:
            likeness = likeness.masked_fill(cosines > row_quantile(cosines, self.hidden_share), -torch.inf)
        return likeness.softmax(-1) @ self.values[:, 1]


def parts_of(patches: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a key for the anomalous and for the normal part of each image, where it has such a part.

    Args:
        patches: Patches (B, h, w, W).
        masks: True where anomalous (B, H, W).

    Returns:
        Unit vectors (K, W): means over the cells of the grid that lie wholly in one part, as far as the four pixels in
        their middle tell; and labels (K,), 1 for anomalous.
    """
    cells = upsample(masks.float(), (patches.shape[1], patches.shape[2]), align_corners=False)
    keys, labels = [patches.new_empty(0, patches.shape[-1])], []
    for own, cell in zip(patches, cells, strict=True):
        for label in (1, 0):
            inside = own[cell == label]
            if len(inside):
                keys.append(normalize(inside.mean(0, keepdim=True)))
                labels.append(label)
    return torch.cat(keys), torch.tensor(labels, dtype=torch.long, device=patches.device)


def load_memories(paths: Sequence[str], memories: dict[str, LabelledMemory]) -> None:
    """Fills memories from a run or checkpoint of MRAD's, or from the authors' files, one for each memory.

    Args:
        paths: One path, or as many as memories.
        memories: By name; a checkpoint holds ``memories.NAME.keys``.

    Raises:
        WeightsError: Another kind of file, or another number of them.
    """
    files = [read_file(path) for path in paths]
    found: dict[str, Tensor | None] = {}
    if len(files) == 1 and "vlad" in files[0]:
        found = {key.removeprefix("memories."): value for key, value in files[0]["state_dict"].items()}
    elif len(files) == len(memories):
        for name, file in zip(memories, files, strict=True):
            found |= {f"{name}.{part}": file.get(part) for part in ("keys", "values")}
    for name, memory in memories.items():
        keys, values = found.get(f"{name}.keys"), found.get(f"{name}.values")
        width = memory.keys.shape[1]
        if keys is None or values is None or keys.shape != (len(values), width) or values.shape != (len(keys), 2):
            raise WeightsError(
                f"bank {', '.join(map(str, paths))} holds no keys (K, {width}) of {name}: give a run or checkpoint of "
                "MRAD's, or the authors' files of images and of patches"
            )
        memory.fill(keys, values[:, 1])


def row_quantile(values: Tensor, share: float) -> Tensor:
    """Returns the quantile (…, 1) of the last axis, linear between ranks, of tensors of any size."""
    ordered = values.sort(-1).values
    rank = share * (values.shape[-1] - 1)
    low = int(rank)
    high = min(low + 1, values.shape[-1] - 1)
    return torch.lerp(ordered[..., low], ordered[..., high], rank - low)[..., None]
