"""The interface of a method: the stages that an author writes, and everything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlad.checkpoint import load_weights
from vlad.clip.numerics import Numerics
from vlad.clip.similarity import restrict, smooth, upsample
from vlad.clip.text import TextTower
from vlad.encoders import Encoder, load_encoder
from vlad.errors import MethodError
from vlad.memory import memory_scores
from vlad.methods.arguments import plain_arguments
from vlad.methods.few_shot import ReferenceMemory
from vlad.methods.loops import Loops
from vlad.methods.texts import TextCache, stack_texts
from vlad.published import Published
from vlad.types import (
    Batch,
    Features,
    Prediction,
    Preprocess,
    Requirements,
    Scores,
    Supervision,
    Tags,
    join_rows,
    take_rows,
)

__all__ = ["Method"]

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Method(Loops):
    """Base class of all methods: implement :meth:`encode` and :meth:`compare`, and :meth:`loss` if it is trained.

    The base class provides upsampling, smoothing, few-shot references, training and test loops, metrics, logging and
    checkpoints, which contain trained and fitted tensors but never the frozen encoder. Rules: an image's prediction
    does not depend on the other images in the batch; scoring draws no random numbers; higher scores mean more
    anomalous; constructor arguments are plain JSON values or dataclasses of them.

    Attributes:
        api: Version of the method interface that the class was written for.
        epochs: Epochs of the published recipe, used by ``vlad fit`` when the user gives none.
        staged: Whether training has stages in which some trainable parameters get no gradient; with several processes,
            unused parameters are then searched at each step.
        supervision: Kind of training data; see :data:`vlad.types.Supervision`.
        numerics: CLIP numerics of the published method; see :class:`vlad.clip.Numerics`.
        published_weights: The authors' weights by name, for ``weights: NAME``.
        align_corners: How patch scores are upsampled; papers differ.
        backbone: The frozen encoder, or None for a method without one.
        layers: Intermediate layers that the method uses, counted from 1.
        image_size: Side S of the images in pixels.
        sigma: Standard deviation in pixels of the Gaussian that smooths the anomaly map.
        memory: Patch tokens of the reference images, by category; empty for zero-shot.
        origin: Where trained parameters come from: a file, a checkpoint, ``fit``; "" while untrained.
        weight_files: SHA-256 of the files that trained parameters were loaded from, by path.
        allow_untrained: Whether the method may score while untrained, for experiments.
        feature_cache: Cache that :meth:`frozen` uses, or None.
    """

    api: ClassVar[int] = 2
    epochs: ClassVar[int | None] = None
    staged: ClassVar[bool] = False
    supervision: ClassVar[Supervision] = "auxiliary"
    numerics: ClassVar[Numerics] = Numerics()
    published_weights: ClassVar[Mapping[str, Published]] = {}
    align_corners: ClassVar[bool] = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Method:
        """Records the constructor's arguments for checkpoints."""
        self = super().__new__(cls)
        self.__dict__["_arguments"] = (args, kwargs)
        return self

    def __init__(
        self,
        *,
        backbone: str | Encoder | None,
        pretrained: str | None = None,
        image_size: int,
        layers: Sequence[int] = (),
        sigma: float = 0.0,
        text: bool = True,
    ) -> None:
        """Loads the frozen encoder and saves the subclass's constructor arguments.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder``, ``vlad-tiny``, ``timm:name``, a ready
                encoder, or None.
            pretrained: Weights tag or file; ``random`` for random weights.
            image_size: Side S of the images in pixels.
            layers: Intermediate layers that the method uses, counted from 1.
            sigma: Standard deviation in pixels of the Gaussian over the map; 0 for none.
            text: Whether the method uses the text tower.

        Raises:
            BackboneError: The encoder cannot be loaded, or the patch does not divide ``image_size``.
            MethodError: A size, sigma or layer number is out of range.
        """
        super().__init__()
        for name, value, least in (("image_size", image_size, 1), ("sigma", sigma, 0)):
            if not isinstance(value, int | float) or not value >= least:
                raise MethodError(f"{name} is a number, at least {least}, not {value!r}")
        self.save_hyperparameters(plain_arguments(type(self), *self.__dict__.pop("_arguments", ((), {}))))
        self.backbone: Any = load_encoder(backbone, pretrained, numerics=self.numerics, text=text)
        if self.backbone is not None:
            self.backbone.grid(image_size, image_size)
            depth = self.backbone.depth
            if any(not 1 <= layer <= depth for layer in layers) or len(set(layers)) != len(layers):
                raise MethodError(f"layers must be different block numbers from 1 to {depth}, got {list(layers)}")
        self.layers = tuple(sorted(layers))
        self.image_size = image_size
        self.sigma = sigma
        self.memory = ReferenceMemory()
        self.origin = ""
        self.weight_files: Mapping[str, str] = {}
        self.allow_untrained = False
        self.feature_cache = None
        self._texts = TextCache(self.class_text, self.stack_texts)

    # -- what a method author writes -----------------------------------------------------------------------

    def encode(self, images: Tensor) -> Features:
        """Runs the frozen encoder; by default returns the patch tokens of ``layers`` and the image embedding.

        Args:
            images: Normalised images (B, 3, H, W), float.
        """
        return self.read_layers(images, self.layers)

    def compare(self, features: Features, text: Any, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Compares features with text and references.

        Args:
            features: Output of :meth:`encode`.
            text: Text of each image, a tree of tensors (B, …); None for a method without class names.
            references: Patch tokens of one category's references, per level (N, D); None for zero-shot. Usually
                passed on: ``Scores(patches, terms, self.nearest(features, references))``.

        Returns:
            Scores on the patch grid.
        """
        raise NotImplementedError

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns the named terms of the training loss; they are logged, and their sum is minimised.

        Args:
            features: Output of :meth:`encode_for_loss` for the images of the batch.
            batch: The batch, after :meth:`prepare`.
        """
        raise MethodError(f"{type(self).__name__} is training-free; run vlad test or vlad predict")

    def class_text(self, class_name: str) -> Any:
        """Returns a class's text, usually embeddings (K, D); cached. None if class names do not matter."""
        return None

    def map_of(self, scores: Scores, size: tuple[int, int]) -> Tensor:
        """Computes the anomaly map (B, H, W) from scores: by default the mean over the levels, upsampled."""
        return upsample(scores.patches.mean(1), size, align_corners=self.align_corners)

    def components_of(self, scores: Scores, anomaly_map: Tensor) -> Tensor:
        """Returns the terms (B, T) whose sum is the image score: by default only the map's maximum."""
        return anomaly_map.amax((1, 2))[:, None]

    def score_set(self, features: Features | None, predictions: Prediction | None, size: tuple[int, int]) -> Prediction:
        """Scores all test images of a category together; only for transductive methods, see ``tags``.

        Args:
            features: Features of all images, for ``transductive="features"``; else None.
            predictions: Predictions of all images without their maps, for ``transductive="scores"``; else None.
            size: Height and width of the maps.
        """
        raise NotImplementedError

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps a checkpoint in the authors' format to the names of this module's trained parameters."""
        raise KeyError

    def configure_optimizers(self) -> Any:
        """Returns Adam over all trainable parameters, with learning rate ``self.lr`` if it exists, else 1e-3."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, lr=getattr(self, "lr", 1e-3))

    @property
    def tags(self) -> Tags:
        """Properties of the method."""
        return Tags(class_names=type(self).class_text is not Method.class_text)

    # -- less often written --------------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> Batch:
        """Modifies a training batch before it is encoded, for example by adding pseudo-anomalies."""
        return batch

    def encode_for_loss(self, images: Tensor) -> Features:
        """Encodes images for the loss: by default :meth:`encode`; override it if the loss needs fewer features."""
        return self.encode(images)

    def stack_texts(self, texts: Sequence[Any]) -> Any:
        """Stacks the texts of single images into a batch."""
        return stack_texts(texts)

    def memory_levels(self, features: Features) -> tuple[Tensor, ...]:
        """Returns the patch tokens (B, h, w, D) of each level that are compared with the references."""
        return features.levels

    # -- what the base gives -------------------------------------------------------------------------------

    def forward(self, images: Tensor, text: Any, references: tuple[Tensor, ...] | None = None) -> Prediction:
        """Scores images with text that is already encoded; this is the exported function."""
        features = self.encode(images)
        return self.finish(self.compare(features, text, references), (images.shape[-2], images.shape[-1]))

    def finish(self, scores: Scores, size: tuple[int, int]) -> Prediction:
        """Computes the prediction: upsamples, adds the memory distances, smooths, and computes the image score.

        With references, the map is the zero-shot map plus the distances to the memory bank, and the maximum of the
        smoothed distances is added to the image score, as in APRIL-GAN (arXiv 2305.17382). Override this if a paper
        fuses them differently. Before the image score is computed, pixels outside a region of interest are set to the
        lowest value inside.

        Args:
            scores: Output of :meth:`compare`.
            size: Height and width of the maps.
        """
        if scores.patches.shape[1] == 0 and scores.memory is not None:  # a method that knows references alone
            unsmoothed = upsample(scores.memory, size, align_corners=self.align_corners)
            anomaly_map = restrict(self.smooth(unsmoothed), scores.roi)
            components = self.components_of(scores, anomaly_map)
            return Prediction(anomaly_map, components.sum(1), restrict(unsmoothed, scores.roi), components)
        unsmoothed = self.map_of(scores, size)
        anomaly_map = restrict(self.smooth(unsmoothed), scores.roi)
        components = self.components_of(scores, anomaly_map).float()
        if scores.memory is not None:
            distance = upsample(scores.memory, size, align_corners=self.align_corners)
            far = restrict(self.smooth(distance), scores.roi)
            unsmoothed, anomaly_map = unsmoothed + distance, anomaly_map + far  # the Gaussian is linear
            components = torch.cat([components, far.amax((1, 2))[:, None]], dim=1)
        return Prediction(anomaly_map, components.sum(1), restrict(unsmoothed, scores.roi), components)

    def score(self, images: Tensor, class_names: Sequence[str], categories: Sequence[str] | None = None) -> Prediction:
        """Scores a batch of images.

        Args:
            images: Normalised images (B, 3, H, W), float.
            class_names: Class name of each image (B strings).
            categories: Category of the references that each image is compared with, ``dataset/category`` (B strings);
                required if references of several categories were fitted.

        Returns:
            The prediction: maps (B, H, W) and image scores (B,); higher means more anomalous.

        Raises:
            MethodError: The method is untrained or lacks required references, or the number of class names is wrong.
        """
        if isinstance(class_names, str) or len(class_names) != len(images):
            raise MethodError(f"class_names must be a list of {len(images)} strings, one per image")
        self.refuse_unfit()
        return self.score_features(self.encode(images), class_names, categories, images.shape[-2:])

    def score_features(
        self,
        features: Features,
        class_names: Sequence[str],
        categories: Sequence[str] | None,
        size: Sequence[int],
        roi: Tensor | None = None,
    ) -> Prediction:
        """Scores images from their features, each compared with the references of its category.

        Args:
            features: Output of :meth:`encode`.
            class_names: Class name of each image (B strings).
            categories: Category of the references of each image, ``dataset/category`` (B strings), or None.
            size: Height and width of the maps.
            roi: Pixels that are inspected (B, H, W), bool; None for all of them.
        """
        text, (height, width) = self.texts(class_names), size
        if not self.memory.categories:
            return self.finish(self.compare(features, text, None)._replace(roi=roi), (height, width))
        if categories is None:
            if len(self.memory.categories) > 1:
                raise MethodError(f"of which category is each image? There are {', '.join(self.memory.categories)}")
            categories = self.memory.categories * len(class_names)
        parts, order = [], []
        for category in dict.fromkeys(categories):
            rows = [row for row, other in enumerate(categories) if other == category]
            order += rows
            some = torch.tensor(rows, device=self.device)
            whole = (features, text, roi)
            own_features, own_text, own = whole if len(rows) == len(categories) else take_rows(whole, some)
            scores = self.compare(own_features, own_text, self.memory.levels_of(category))
            parts.append(self.finish(scores._replace(roi=own), (height, width)))
        joined = join_rows(parts)
        return joined if len(parts) == 1 else take_rows(joined, torch.tensor(order, device=self.device).argsort())

    @torch.no_grad()
    def memory_distance(self, images: Tensor) -> Tensor:
        """Returns the distance of each patch to the nearest reference patch (B, h, w), for one category."""
        distance = self.nearest(self.encode(images), self.memory.levels_of(self.memory.categories[0]))
        assert distance is not None
        return distance

    def nearest(self, features: Features, references: tuple[Tensor, ...] | None) -> Tensor | None:
        """Returns the distance of each patch to the nearest reference patch (B, h, w); None without references."""
        return None if references is None else memory_scores(self.memory_levels(features), references)

    @torch.inference_mode(False)
    @torch.no_grad()
    def fit_references(self, batches: Iterable[Batch]) -> None:
        """Fits the method on normal images without gradients: by default a memory bank of patch tokens per category.

        Args:
            batches: Batches of normal images with ``image``, ``class_name``, ``dataset`` and ``category``.

        Raises:
            MethodError: The method does not support references, or there are none.
        """
        if not self.tags.takes_references:
            raise MethodError(f"{type(self).__name__} takes no reference images; leave out shots and references")
        self.memory.fit_batches(batches, lambda images: self.memory_levels(self.encode(images.to(self.device))))

    def texts(self, class_names: Sequence[str]) -> Any:
        """Returns the text of each image, a tree of tensors (B, …), encoding each class once; None without text."""
        return self._texts(class_names, self.device) if self.tags.class_names else None

    def smooth(self, maps: Tensor) -> Tensor:
        """Smooths maps (B, H, W) with the method's Gaussian."""
        return smooth(maps, self.sigma)

    @property
    def requirements(self) -> Requirements:
        """Requirements on the data; see ``AnomalyDataModule.require``."""
        mean, std = (_MEAN, _STD) if self.backbone is None else (self.backbone.mean, self.backbone.std)
        return Requirements(Preprocess(self.image_size, mean, std), self.supervision if self.trains else None)

    @property
    def fitted(self) -> bool:
        """Whether references were fitted; override it in a method that stores something other than patch tokens."""
        return bool(self.memory.categories)

    @property
    def trains(self) -> bool:
        """Whether the method has anything to train."""
        return any(p.requires_grad for p in self.parameters())

    @property
    def text_tower(self) -> TextTower:
        """The text tower.

        Raises:
            MethodError: The encoder has no text tower, or ``text=False`` was given.
        """
        if getattr(self.backbone, "text", None) is None:
            raise MethodError(f"{type(self).__name__} needs a text tower, and its encoder has none: give a CLIP")
        return self.backbone.text

    def refuse_unfit(self) -> None:
        """Raises MethodError if the method is untrained or lacks required references."""
        name = type(self).__name__
        if self.trains and not self.origin and not self.allow_untrained:
            raise MethodError(
                f"{name} has not been trained: give a trained run (--ckpt_path RUN), its authors' weights "
                "(--model.weights NAME_OR_FILE), run vlad fit first, or give --allow-untrained for an experiment"
            )
        if self.tags.needs_references and not self.fitted:
            raise MethodError(
                f"{name} compares with reference images and has none: give --shots K, or --references FOLDER of "
                "normal images"
            )

    def load_weights(self, path: str) -> None:
        """Loads trained parameters and fitted state from the authors' file or its name, a checkpoint, or a run folder.

        Raises:
            WeightsError: The file is unreadable or unsafe, or its tensors do not fit; the message lists them.
        """
        load_weights(self, path)
