"""The loops of every method: training, validation, test, prediction; and the contents of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor

from vlad.checkpoint import Restorable, check_loaded, slim
from vlad.errors import MethodError
from vlad.seeds import run_seed, seed_step, steps_done
from vlad.types import Batch, Features, Prediction, Tags, Tree, name_features

if TYPE_CHECKING:
    from vlad.encoders import Encoder
    from vlad.engines.frozen import FrozenEngine
    from vlad.features import FeatureCache
    from vlad.tiling import Tiling
    from vlad.types import Requirements

__all__ = ["Loops"]


class Loops(LightningModule):
    """The hooks that Lightning calls; :class:`vlad.Method` defines what is computed.

    Attributes:
        backbone: See :class:`vlad.Method`, also for the next two.
        feature_cache: Where :meth:`frozen` looks.
        engine: What computes :meth:`frozen`; None for torch.
        origin: Where trained parameters come from.
        tiling: How images are tiled in testing and prediction; None: no tiles.
        fixed: Which images of a training batch are the same in every epoch, while they are encoded; None for all.
    """

    backbone: Any
    feature_cache: FeatureCache | None
    origin: str
    tiling: Tiling | None = None
    engine: FrozenEngine | None = None
    fixed: Tensor | None = None

    @property
    def tags(self) -> Tags:
        """See :class:`vlad.Method`."""
        raise NotImplementedError

    @property
    def requirements(self) -> Requirements:
        """See :class:`vlad.Method`."""
        raise NotImplementedError

    @property
    def trains(self) -> bool:
        """See :class:`vlad.Method`."""
        raise NotImplementedError

    def prepare(self, batch: Batch) -> Batch:
        """See :class:`vlad.Method`."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> Features:
        """See :class:`vlad.Method`."""
        raise NotImplementedError

    def encode_for_loss(self, images: Tensor) -> Features:
        """See :class:`vlad.Method`."""
        raise NotImplementedError

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """See :class:`vlad.Method`."""
        raise NotImplementedError

    def refuse_unfit(self) -> None:
        """See :class:`vlad.Method`."""
        raise NotImplementedError

    def score_features(
        self,
        features: Features,
        class_names: Sequence[str],
        categories: Sequence[str] | None,
        size: Sequence[int],
        roi: Tensor | None = None,
    ) -> Prediction:
        """See :class:`vlad.Method`."""
        raise NotImplementedError

    # -- what is frozen ------------------------------------------------------------------------------------

    def read_layers(self, images: Tensor, layers: Sequence[int]) -> Features:
        """Returns the encoder's patch tokens and class tokens of some layers and its embedding of the image."""
        names = name_features(
            levels=tuple(f"patches {layer}" for layer in layers),
            image="embedding",
            classes=tuple(f"class {layer}" for layer in layers),
        )
        return self.frozen(images, lambda some: self.backbone.encode(some, layers), names)

    def frozen(
        self, images: Tensor, compute: Callable[[Tensor], Tree], names: Any, encoder: Encoder | None = None
    ) -> Tree:
        """Returns the outputs of a frozen encoder, from the feature cache if there is one.

        Args:
            images: Normalised images (B, 3, H, W).
            compute: Computes a tree of tensors (B, …) from images; runs without gradients.
            names: The same tree with names instead of tensors: what each is, and everything that determines its values
                except the encoder's weights, the images and the precision, such as layers, branch and projection.
                Methods that use the same name share the cached tensor.
            encoder: The encoder; the backbone by default.
        """
        with torch.no_grad():
            own = encoder or self.backbone
            if self.engine is not None:
                compute, names = self.engine.bind(compute, names, own)
            if self.feature_cache is None:
                return compute(images)
            return self.feature_cache.fetch(images, compute, names, own, self.fixed)

    # -- loops ---------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """References, and but for prediction evaluation, where the trainer has not got them already."""
        from vlad.callbacks.evaluator import Evaluator
        from vlad.callbacks.references import References

        present = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        wanted = (References,) if self.trainer.predicting else (Evaluator, References)
        return [kind() for kind in wanted if kind not in present]

    def refuse_training_free(self) -> None:
        """Raises MethodError if there is nothing to train."""
        if not self.trains:
            raise MethodError(f"{type(self).__name__} is training-free; run vlad test or vlad predict")

    def setup(self, stage: str) -> None:
        """Rejects training of a method without trainable parameters."""
        if stage == "fit":
            self.refuse_training_free()

    def on_train_start(self) -> None:
        """Records that the parameters are trained from now on."""
        self.origin = "fit"

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the step, so that a resumed training run draws the same random numbers."""
        seed_step(run_seed(), self.global_rank, steps_done(self.trainer))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logs the terms of the loss, step by step and as means over the epoch, and returns their sum."""
        batch = self.prepare(batch)
        self.fixed = batch.get("fixed")
        features = self.encode_for_loss(batch["image"])
        self.fixed = None
        terms = self.loss(features, batch)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        size = len(batch["image"])
        self.log("train/loss", total, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": term for name, term in terms.items()}, batch_size=size)
        means = {f"train/{name}_epoch": term for name, term in {"loss": total, **terms}.items()}
        self.log_dict(means, on_step=False, on_epoch=True, sync_dist=True, batch_size=size)
        return total

    def _score_batch(self, batch: Batch) -> Prediction | Features:
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"  # sanity checks come before training
        if not fitting:
            self.refuse_unfit()
        if self.tiling is not None:
            return self.tiling.score(batch, self.requirements.preprocess, self._score_images)
        return self._score_images(batch)

    def _score_images(self, batch: Batch) -> Any:
        features = self.encode(batch["image"])
        roi = batch.get("roi")
        if self.tags.transductive == "features":
            if roi is not None:
                raise MethodError(f"{type(self).__name__} scores images together and takes no data.roi")
            return features
        categories = None
        if "dataset" in batch:
            categories = [f"{one}/{other}" for one, other in zip(batch["dataset"], batch["category"], strict=True)]
        size = batch["image"].shape[-2:]
        return self.score_features(features, batch["class_name"], categories, size, roi).detached()

    def validation_step(self, batch: Batch, batch_idx: int) -> Prediction | Features:  # type: ignore[override]
        """Scores a batch."""
        return self._score_batch(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Prediction | Features:  # type: ignore[override]
        """Scores a batch."""
        return self._score_batch(batch)

    def on_predict_start(self) -> None:
        """Rejects methods that cannot score images independently."""
        if self.tags.transductive:
            raise MethodError(
                f"{type(self).__name__} as configured scores a whole test set at once (transductive); vlad predict "
                "scores image by image: run vlad test, or choose a setting that is not transductive"
            )

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction | Features | None:
        """Scores a batch of unlabelled images; None if none of them could be read."""
        return self._score_batch(batch) if len(batch["image"]) else None

    # -- checkpoints ---------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Removes the frozen encoder and records which one it was."""
        slim(cast(Restorable, self), checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rejects another method's or another encoder's checkpoint; fills in the frozen encoder for a strict load."""
        check_loaded(cast(Restorable, self), checkpoint)
