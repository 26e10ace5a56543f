"""Caches the features of a method, and reports how many were reused."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from vlad.errors import OptionError
from vlad.features import FeatureCache

__all__ = ["CachedFeatures"]

_PARTS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class CachedFeatures(Callback):
    """Computes the features of a method's frozen encoder once per image, and caches them on disk.

    Later epochs, runs, and methods that use the same features of the same encoder read them from the cache.

    Attributes:
        store: The cache of the current run; None if features are not cached.
    """

    def __init__(self, cache: bool = False, budget: float = 20.0, half: bool = False) -> None:
        """Configures the cache.

        Args:
            cache: Whether to cache features, in ``features`` of vlad's cache folder (``VLAD_CACHE``).
            budget: Limit for all cached features in GB; features of further images are computed every time.
            half: Whether to round features to half precision, which halves their size.

        Raises:
            OptionError: The budget is invalid.
        """
        if not budget > 0:
            raise OptionError(f"features.budget is a number of GB, above 0, not {budget}")
        self.cache, self.budget, self.half = cache, budget, half
        self.store: FeatureCache | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sets the cache of the method.

        Raises:
            OptionError: Images are augmented at random, so that no image occurs twice.
        """
        if not self.cache:
            return
        data: Any = getattr(trainer, "datamodule", None)
        frames = getattr(data, "frames", {})
        if stage == "fit":
            changed = "data.augment" if getattr(data, "augment", None) else ""
            if not changed and "mosaic" in frames.get("train", ()):
                changed = "mosaic (of data.train)"
            if changed:
                raise OptionError(
                    f"features.cache and {changed} exclude each other: images that are changed at random never come "
                    "again; leave one of them out"
                )
        self.store = FeatureCache(
            budget=self.budget * 1e9,
            half=self.half,
            tell=lambda line: print(line, flush=True) if trainer.is_global_zero else None,
        )
        parts = [frames[part] for part in (*_PARTS[stage], "references") if part in frames]
        self.store.images = sum(len(part.drop_duplicates(["image_path", "row_crop", "frame"])) for part in parts)
        pl_module.feature_cache = self.store  # type: ignore[assignment]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes pending features."""
        if self.store is not None:
            self.store.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the features computed so far."""
        self._close(pl_module)

    def _close(self, method: LightningModule) -> FeatureCache | None:
        store, self.store = self.store, None
        if store is not None:
            method.feature_cache = None  # type: ignore[assignment]
            store.close()
        return store

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Removes the cache and reports its use."""
        store = self._close(pl_module)
        if store is None or not trainer.is_global_zero:
            return
        if not store.read + store.computed:
            rank_zero_warn(f"features.cache had no effect: {type(pl_module).__name__} does not ask for cached features")
            return
        without = f", {store.uncached} of them without room" if store.uncached else ""
        print(f"features: those of {store.read} images read, of {store.computed} computed{without}", flush=True)
