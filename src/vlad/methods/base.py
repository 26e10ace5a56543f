"""The interface of a method, and everything a method author does not have to write."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from vlad.clip.backbone import Backbone
from vlad.clip.numerics import Numerics
from vlad.clip.similarity import smooth
from vlad.clip.text import TextTower
from vlad.errors import MethodError, WeightsError
from vlad.metrics.evaluation import Evaluation, EvaluationResult
from vlad.types import Batch, Prediction, Preprocess
from vlad.weights import Published, class_path_of, describe, locate, read_weights

__all__ = ["Method"]


class Method(LightningModule):
    """Base of all detectors: write :meth:`score`; if it learns, :meth:`loss`.

    The base gives the training, validation, test and prediction loops, metrics, smoothing, logging, and
    checkpoints that hold what was trained and never the frozen CLIP. Constructor arguments are saved as
    hyper-parameters by themselves; keep them plain JSON values.

    Attributes:
        api: Version of the method interface that the class was written for.
        epochs: Epochs of the published recipe, used by ``vlad fit`` when the user gives none.
        learns_from: ``labelled``: the test split of auxiliary data, masks and all, as most detectors of this field.
            ``normal``: the normal images of the train split; the data module leaves anomalous ones out.
        numerics: How the published method drives CLIP; see :class:`vlad.clip.Numerics`.
        published_weights: The authors' weights by name, for ``weights: NAME``.
        backbone: The frozen CLIP, or None for a method without one.
        layers: Blocks the method reads, from 1.
        image_size: Side S of the images in pixels.
        sigma: Standard deviation in pixels of the Gaussian over the anomaly map.
    """

    api: ClassVar[int] = 1
    epochs: ClassVar[int | None] = None
    learns_from: ClassVar[Literal["labelled", "normal"]] = "labelled"
    numerics: ClassVar[Numerics] = Numerics()
    published_weights: ClassVar[Mapping[str, Published]] = {}

    backbone: Backbone

    def __init__(
        self,
        *,
        backbone: str,
        pretrained: str | None = None,
        image_size: int,
        layers: Sequence[int] = (),
        sigma: float = 0.0,
        text: bool = True,
    ) -> None:
        """Loads the frozen CLIP and saves the subclass's constructor arguments.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo`` or ``local-dir:folder``.
            pretrained: open_clip weights tag, for plain names.
            image_size: Side S of the images in pixels.
            layers: Blocks the method reads, from 1.
            sigma: Standard deviation in pixels of the Gaussian over the map; 0 for none.
            text: Whether the method uses the text tower.

        Raises:
            BackboneError: The CLIP cannot be loaded, or the patch does not divide ``image_size``.
            MethodError: A layer number is out of range.
        """
        super().__init__()
        self.save_hyperparameters(ignore=self._not_saved())
        self.backbone = Backbone.load(backbone, pretrained, numerics=self.numerics, text=text)
        self.backbone.image.grid(image_size, image_size)
        depth = self.backbone.image.depth
        if any(not 1 <= layer <= depth for layer in layers) or len(set(layers)) != len(layers):
            raise MethodError(f"layers must be different block numbers from 1 to {depth}, got {list(layers)}")
        self.layers = tuple(sorted(layers))
        self.image_size = image_size
        self.sigma = sigma
        self.evaluation = Evaluation()
        self._texts: dict[str, Tensor] = {}

    @classmethod
    def _not_saved(cls) -> list[str]:
        """Arguments kept out of the hyper-parameters: ``weights``, and those of bases that cls does not take."""
        every = {name for base in cls.__mro__ for name in inspect.signature(base.__init__).parameters}  # type: ignore[misc]
        own = set(inspect.signature(cls.__init__).parameters)
        return sorted((every - own) | {"weights"})

    # -- what a method author writes -----------------------------------------------------------------------

    def score(self, images: Tensor, class_names: list[str]) -> Prediction:
        """Scores a batch of images; each image's result is independent of the rest of the batch.

        Args:
            images: Normalised images (B, 3, S, S), float.
            class_names: What is in each image (B strings).

        Returns:
            The prediction: maps (B, S, S) and image scores (B,), higher meaning more anomalous.
        """
        raise NotImplementedError

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the named terms of the training loss; they are logged, and their sum is minimised."""
        raise MethodError(f"{type(self).__name__} is training-free; run vlad test or vlad predict")

    def class_text(self, class_name: str) -> Tensor:
        """Returns a class's text vectors (K, D), computed once and kept; see :meth:`texts`."""
        raise NotImplementedError

    def fuse_scores(self, terms: Tensor) -> Tensor | None:
        """Combines the image terms (N, T) of all test images of a category to scores (N,).

        For protocols that need the whole test set. None keeps each image's own score.
        """
        return None

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps a checkpoint in the authors' format to the names of this module's trained parameters."""
        raise KeyError

    def configure_optimizers(self) -> Any:
        """Adam over everything that is trained, at ``self.lr`` if the method has it, else 1e-3."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, lr=getattr(self, "lr", 1e-3))

    # -- what the base gives -------------------------------------------------------------------------------

    @property
    def preprocess(self) -> Preprocess:
        """What the data module does to images for this method."""
        return Preprocess(self.image_size, self.backbone.mean, self.backbone.std)

    @property
    def trains(self) -> bool:
        """Whether the method has anything to train."""
        return any(p.requires_grad for p in self.parameters())

    @property
    def text_tower(self) -> TextTower:
        """The text tower.

        Raises:
            MethodError: The method was built without one.
        """
        if self.backbone.text is None:
            raise MethodError(f"{type(self).__name__} was built without a text tower")
        return self.backbone.text

    def texts(self, class_names: Sequence[str]) -> Tensor:
        """Returns the text vectors of each image (B, K, D), encoding each class once, in float32."""
        for name in dict.fromkeys(class_names):
            if name not in self._texts:
                with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                    self._texts[name] = self.class_text(name)
        return torch.stack([self._texts[name].to(self.device) for name in class_names])

    def smooth(self, unsmoothed_map: Tensor) -> Tensor:
        """Smooths maps (B, S, S) with the method's Gaussian."""
        return smooth(unsmoothed_map, self.sigma)

    def forward(self, images: Tensor, class_names: list[str]) -> Prediction:
        """The same as :meth:`score`."""
        return self.score(images, class_names)

    def load_weights(self, path: str) -> None:
        """Loads trained parameters: the authors' file or its name, one of vlad's checkpoints, or a run folder.

        Raises:
            WeightsError: Unreadable or unsafe file, or its parameters do not fit; the message lists them.
        """
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if not trained:
            raise WeightsError(
                f"{type(self).__name__} is training-free and has no weights to load; drop weights: {path}"
            )
        state = read_weights(locate(path, self.published_weights), self)
        problems = [f"missing {name}" for name in trained if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in trained]
        problems += [
            f"{name} has shape {tuple(state[name].shape)}, expected {tuple(p.shape)}"
            for name, p in trained.items()
            if name in state and state[name].shape != p.shape
        ]
        if problems:
            raise WeightsError(f"{path} does not fit {type(self).__name__}: " + "; ".join(problems[:8]))
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(state[name])

    # -- loops ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuses to train what has nothing to train."""
        if stage == "fit" and not self.trains:
            raise MethodError(f"{type(self).__name__} is training-free; run vlad test or vlad predict")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logs the terms of the loss and returns their sum."""
        terms = self.loss(batch)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        size = len(batch["image"])
        self.log("train/loss", total, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": term for name, term in terms.items()}, batch_size=size)
        return total

    def _evaluate_step(self, batch: Batch) -> Prediction:
        prediction = self.score(batch["image"], batch["class_name"]).detached()
        rank, world = self.trainer.global_rank, self.trainer.world_size
        self.evaluation.update(batch, prediction, rank=rank, world_size=world)
        return prediction

    def _finish_evaluation(self, stage: str) -> EvaluationResult:
        result = self.evaluation.compute(self.fuse_scores)
        for part, found in ((stage, result), (f"{stage}/unrefined", result.unrefined)):
            mean = {name: value for name, value in found.mean.items() if not math.isnan(value)} if found else {}
            self.log_dict({f"{part}/{name}": value for name, value in mean.items()}, rank_zero_only=True)
        return result

    def on_validation_epoch_start(self) -> None:
        """Forgets the last evaluation."""
        self.evaluation.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> Prediction:  # type: ignore[override]
        """Scores a batch and adds it to the evaluation."""
        return self._evaluate_step(batch)

    def on_validation_epoch_end(self) -> None:
        """Computes the metrics over the validation set."""
        self._finish_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Forgets the last evaluation."""
        self.evaluation.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> Prediction:  # type: ignore[override]
        """Scores a batch and adds it to the evaluation."""
        return self._evaluate_step(batch)

    def on_test_epoch_end(self) -> None:
        """Computes the metrics over the test set."""
        self._finish_evaluation("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction:
        """Scores a batch of images of which nothing is known."""
        return self.score(batch["image"], batch["class_name"]).detached()

    # -- checkpoints ---------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the frozen CLIP out and records which one it was."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith("backbone.")}
        checkpoint["vlad"] = describe(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another method's or another CLIP's checkpoint; fills in the frozen CLIP for a strict load."""
        record, own = checkpoint.get("vlad", {}), describe(self)
        if record.get("class_path", own["class_path"]) != class_path_of(type(self)):
            raise WeightsError(f"the checkpoint is of {record['class_path']}, this method is {own['class_path']}")
        if record.get("fingerprint", own["fingerprint"]) != own["fingerprint"]:
            raise WeightsError(
                f"the checkpoint was trained on CLIP {record['backbone']} ({record['pretrained']}, weights "
                f"{record['fingerprint']}), this one is {own['backbone']} ({own['pretrained']}, weights "
                f"{own['fingerprint']}): give the same backbone and pretrained"
            )
        frozen = {key: value for key, value in self.state_dict().items() if key.startswith("backbone.")}
        checkpoint["state_dict"] = {**frozen, **checkpoint["state_dict"]}
