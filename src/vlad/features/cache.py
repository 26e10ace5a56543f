"""The cache of features: a tensor is found by what was computed, with which weights, of which pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from vlad.datamodules.overlap import image_digest
from vlad.errors import OptionError
from vlad.features.store import FeatureStore, Row, make_room, used_bytes
from vlad.files import cache_folder
from vlad.types import take_rows

if TYPE_CHECKING:
    from vlad.encoders import Encoder

__all__ = ["FeatureCache", "encoder_facts", "leaves_of", "rebuild"]

Tree = TypeVar("Tree")

_FORMAT = 1


class FeatureCache:
    """What frozen encoders make of images, on disk.

    The key of a tensor holds the encoder's fingerprint and numerics, what was computed (layers, branch, projection),
    the precision and the kind of device; that of an image is a digest of its normalised pixels, so that preprocessing
    is part of it. Methods whose keys agree share what is there.

    Attributes:
        folder: Where the features are, a folder per encoder.
        budget: Bytes that all features may take.
        half: Whether they are kept, and used, in half precision.
        images: How many images the run will encode, for the announcement; 0 if unknown.
        read: Images whose features were all there.
        computed: Images that were encoded.
        uncached: Images among them whose features found no room.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        budget: float = 20e9,
        half: bool = False,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Touches no file yet.

        Args:
            folder: Where the features are; by default ``features`` in vlad's cache folder.
            budget: Bytes that all features below the folder may take. Shards that nobody used for an hour make room.
            half: Whether features are rounded to half precision.
            tell: Takes the line that says how large the cache will be, ahead of the first feature.
        """
        self.folder = folder or cache_folder() / "features"
        self.budget, self.half, self._tell = budget, half, tell
        self.images = self.read = self.computed = self.uncached = 0
        self._stores: dict[str, FeatureStore] = {}
        self._announced: set[str] = set()
        self._used: int | None = None
        self._full = False

    def fetch(
        self,
        images: Tensor,
        compute: Callable[[Tensor], Tree],
        names: Any,
        encoder: Encoder,
        fixed: Tensor | None = None,
    ) -> Tree:
        """Returns what an encoder makes of images; what is not there is computed and kept.

        Args:
            images: Normalised images (B, 3, H, W).
            compute: Makes a tree of tensors (B, …) of images, without gradients.
            names: The same tree with, in place of each tensor, what it is: all that decides it beside encoder, images,
                precision.
            encoder: The frozen encoder.
            fixed: Which images come again (B,), bool; others are computed and not kept. None: all of them.

        Raises:
            OptionError: ``half``, and a feature is too large for it.
            OutputError: The disk is full, the folder read-only, and the like.
        """
        facts = encoder_facts(encoder, images)
        keys = [_key({**facts, "tensor": name, "half": self.half}) for name in leaves_of(names)]
        store = self._store(facts["encoder"])
        again = [True] * len(images) if fixed is None else fixed.tolist()
        digests = [
            f"{image_digest(image).hex()}-{'x'.join(map(str, image.shape))}-{image.dtype}" if stays else ""
            for image, stays in zip(images, again, strict=True)
        ]

        def look() -> list[list[Tensor | None]]:
            return [[store.get(Row(key, image)) if image else None for key in keys] for image in digests]

        found = look()
        if any(value is None for row in found for value in row) and store.refresh():
            found = look()
        missing = [number for number, row in enumerate(found) if any(value is None for value in row)]
        self.read += len(images) - len(missing)
        self.computed += len(missing)
        if missing:
            whole = len(missing) == len(images)
            computed = compute(images if whole else take_rows(images, torch.tensor(missing, device=images.device)))
            columns = [self._on_cpu(leaf) for leaf in leaves_of(computed)]
            for place, number in enumerate(missing):
                row = {key: column[place] for key, column in zip(keys, columns, strict=True)}
                if digests[number]:
                    new = {k: v for k, v, old in zip(keys, row.values(), found[number], strict=True) if old is None}
                    self._keep(store, digests[number], new)
                found[number] = list(row.values())
            if whole and not self.half:
                return computed
        stacked = [torch.stack(column) for column in zip(*found, strict=True)]
        return rebuild(names, iter([self._placed(column, images) for column in stacked]))

    def _on_cpu(self, tensor: Tensor) -> Tensor:
        """Returns a copy on the CPU that training can use, whatever mode it was computed in."""
        with torch.inference_mode(False):
            copied = tensor.detach().to("cpu", torch.float16 if self.half else tensor.dtype, copy=True)
            if self.half and not bool(copied.isfinite().all()):
                raise OptionError("features.half: some features are too large for half precision; leave it out")
            return copied

    def _placed(self, tensor: Tensor, images: Tensor) -> Tensor:
        device = images.device
        return tensor.to(device, _computed_dtype(images) if self.half else tensor.dtype)

    def _store(self, fingerprint: str) -> FeatureStore:
        if fingerprint not in self._stores:
            self._stores[fingerprint] = FeatureStore(self.folder / fingerprint)
        return self._stores[fingerprint]

    def _keep(self, store: FeatureStore, image: str, rows: dict[str, Tensor]) -> None:
        """Adds an image's tensors within the budget; says ahead of the first how much it will be."""
        size = sum(value.nbytes for value in rows.values())
        if self._used is None:
            self._used = used_bytes(self.folder)
        kind = " ".join(sorted(rows))
        if kind not in self._announced and self.images:
            self._announced.add(kind)
            self._tell(
                f"features: {_size(size)} an image, {_size(size * self.images)} for {self.images} images, in "
                f"{store.folder} (budget {_size(self.budget)}, {_size(self._used)} of it used)"
            )
        if not self._full and self._used + size > self.budget:
            self.flush()
            room = max(size, min(size * self.images, int(self.budget / 10)))
            make_room(self.folder, room, keep=[one.folder for one in self._stores.values()])
            self._used = used_bytes(self.folder)
            if self._used + size > self.budget:
                self._full = True
                rank_zero_warn(
                    f"the features of further images find no room and are computed every time: {self.folder} has used "
                    f"its budget of {_size(self.budget)}; give a larger features.budget, or empty the folder"
                )
        if self._full:
            self.uncached += 1
            return
        self._used += size
        store.add({Row(key, image): value.clone() for key, value in rows.items()})

    def flush(self) -> None:
        """Writes what is not yet written.

        Raises:
            OutputError: The disk is full, the folder read-only, and the like.
        """
        for store in self._stores.values():
            store.flush()

    def close(self) -> None:
        """Writes what is not yet written and lets go of the files."""
        for store in self._stores.values():
            store.close()


def encoder_facts(encoder: Encoder, images: Tensor) -> dict[str, Any]:
    """Returns what decides the values of features beside the images and what is computed."""
    numerics: dict[str, Any] = {}
    if (tower := getattr(encoder, "image", None)) is not None:
        activation = repr(tower.visual.transformer.resblocks[0].mlp.gelu)  # what it came to with this CLIP
        numerics = {**asdict(tower.numerics), "activation": activation}
    return {
        "format": _FORMAT,
        # Of a CLIP the image tower's, whether or not its text tower was loaded.
        "encoder": getattr(encoder, "image_fingerprint", encoder.fingerprint)(),
        "numerics": numerics,
        "precision": str(_computed_dtype(images)),
        "products": torch.get_float32_matmul_precision(),
        "device": images.device.type,
    }


def _computed_dtype(images: Tensor) -> torch.dtype:
    kind = images.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images.dtype


def _key(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def leaves_of(tree: Any) -> Iterator[Any]:
    """Yields the leaves of a tree of tuples; None is no leaf."""
    if isinstance(tree, tuple):
        for part in tree:
            yield from leaves_of(part)
    elif tree is not None:
        yield tree


def rebuild(names: Any, leaves: Iterator[Any]) -> Any:
    """Returns the tree of names with leaves in their places."""
    if isinstance(names, tuple):
        parts = [rebuild(part, leaves) for part in names]
        return type(names)(*parts) if hasattr(names, "_fields") else tuple(parts)
    return None if names is None else next(leaves)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
