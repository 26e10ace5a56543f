"""Gives a method a cache of features, and tells what it saved."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from vlad.errors import OptionError
from vlad.features import FeatureCache

__all__ = ["CachedFeatures"]

_PARTS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class CachedFeatures(Callback):
    """Computes what a method's frozen encoder makes of an image once, and keeps it on disk.

    Further epochs, runs, and methods that read the same of the same encoder take it from there.

    Attributes:
        store: The cache of the run that goes on; None where features are not cached.
    """

    def __init__(self, cache: bool = False, budget: float = 20.0, half: bool = False) -> None:
        """Chooses whether, and how much.

        Args:
            cache: Whether features are cached, in ``features`` of vlad's cache folder (``VLAD_CACHE``).
            budget: GB that all cached features may take; those of further images are computed every time.
            half: Whether they are rounded to half precision, which halves their size.

        Raises:
            OptionError: No budget.
        """
        if not budget > 0:
            raise OptionError(f"features.budget is a number of GB, above 0, not {budget}")
        self.cache, self.budget, self.half = cache, budget, half
        self.store: FeatureCache | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the method its cache.

        Raises:
            OptionError: Images are augmented at random, so that nothing comes again.
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
        """Writes what is not yet written."""
        if self.store is not None:
            self.store.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keeps what was computed until then."""
        self._close(pl_module)

    def _close(self, method: LightningModule) -> FeatureCache | None:
        store, self.store = self.store, None
        if store is not None:
            method.feature_cache = None  # type: ignore[assignment]
            store.close()
        return store

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the cache away and tells what it saved."""
        store = self._close(pl_module)
        if store is None or not trainer.is_global_zero:
            return
        if not store.read + store.computed:
            rank_zero_warn(f"features.cache did nothing: {type(pl_module).__name__} does not ask for cached features")
            return
        without = f", {store.uncached} of them without room" if store.uncached else ""
        print(f"features: those of {store.read} images read, of {store.computed} computed{without}", flush=True)
