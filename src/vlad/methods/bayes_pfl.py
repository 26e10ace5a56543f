"""Bayes-PFL: many sentence pairs, sampled from learned distributions, one of them conditioned on the image.

Source: "Bayesian Prompt Flow Learning for Zero-Shot Anomaly Detection", CVPR 2025, arXiv 2503.10080, and the behaviour
of its published code (xiaozhen228/Bayes-PFL at 8f155a0); where code and paper differ, the code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from vlad.checkpoint import read_file
from vlad.clip.numerics import Numerics
from vlad.clip.similarity import normalize, upsample, zero_to_one
from vlad.encoders import Encoder
from vlad.errors import MethodError
from vlad.methods.base import Method
from vlad.methods.bayes_pfl_parts import AgnosticFlow, Distribution, Fuse, ImageFlow, Look, Sample, linear
from vlad.methods.bayes_pfl_published import published_state, read_settings, stage_of
from vlad.methods.learned_prompts import run_sentences
from vlad.published import locate
from vlad.types import Batch, Features, Prediction, Scores, Tags, known_masks

__all__ = ["BayesPFL"]

_NAMES = {
    **dict.fromkeys(("macaroni1", "macaroni2"), "macaroni"),
    **dict.fromkeys(("pcb1", "pcb2", "pcb3", "pcb4"), "printed circuit board"),
    **{"pipe_fryum": "pipe fryum", "chewinggum": "chewing gum", "metal_nut": "metal nut"},
}
_RATES = {"prompt": 1e-3, "flow": 1e-3, "temperature": 1e-2}
_WARM = 0.1  # share of the first stage


class _Words(NamedTuple):
    """A class's words, with one X for each learned word, and the sentence's end with them."""

    words: Tensor  # (L, W), or (B, L, W)
    end: Tensor  # (), or (B,)


class _Draw(NamedTuple):
    """Samples for the context words of each image (B, R, D), and for normal and abnormal state words (R, D)."""

    context: Sample
    normal: Sample
    abnormal: Sample


class BayesPFL(Method):
    """Bayes-PFL: B pairs of prompts x R samples; each sentence attends to the patches of each layer.

    Samples from an image-conditioned distribution shift the context words, samples from an unconditioned one the state
    words. Trained on the *test* split, with masks, of an auxiliary dataset; CLIP stays frozen.

    Paper: Bayes-PFL, arXiv 2503.10080.
    """

    epochs = 30
    staged = True
    align_corners = True
    noise: Tensor

    def __init__(
        self,
        backbone: str | Encoder = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 518,
        layers: Sequence[int] = (6, 12, 18, 24),
        weights: str | None = None,
        prompts: int | None = None,
        context_length: int | None = None,
        state_length: int | None = None,
        flows: int | None = None,
        samples: int = 10,
        noise_seed: int = 333,
        enriched: bool = True,
        top_pixels: int | None = None,
        domain: Literal["industrial", "medical"] = "industrial",
        as_published: bool = False,
        activation: Literal["gelu", "pretrained"] = "gelu",
        sigma: float = 8.0,
        prompt_epochs: int = 25,
        lr: float = 1e-4,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny``.
            pretrained: open_clip weights tag, for plain names; ``random`` for random weights.
            image_size: Side S of the images in pixels; images are resized to a square.
            layers: Blocks whose patches the sentences attend to, from 1.
            weights: Trained parts: the authors' file (``train_visa.pth``), a vlad checkpoint, or a run folder.
            prompts: Pairs of prompts B; None for the value in the weights, else 3.
            context_length: Learned words of the context; None for the value in the weights, else 5.
            state_length: Learned words of the state; None for the value in the weights, else 5.
            flows: Planar flows of a distribution; None for the value in the weights, else 10.
            samples: Samples R of each distribution when scoring.
            noise_seed: Seed of the standard normal numbers that samples are made of when scoring. They are drawn once
                and are the same for every image; the published code draws them again each time.
            enriched: Whether a vector of the image's patches is added to its embedding (the second stage of training).
                False for weights of the first stage.
            top_pixels: Pixels whose mean enters the image score; None for 2000 at 518 pixels, the same share at other
                sizes. The published evaluation uses 20 for categories with small defects, listed by name: capsules,
                macaroni1, macaroni2, pipe_fryum, screw, cashew, chewinggum.
            domain: ``industrial``; or ``medical``, where the map does not enter the image score (HeadCT, BrainMRI,
                Br35H).
            as_published: Whether both parts of the image score are rescaled over all test images of a category, as in
                the published evaluation.
            activation: ``gelu``: instead of the QuickGELU that OpenAI's weights were trained with, as in the published
                code. ``pretrained``: what CLIP was trained with.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            prompt_epochs: Epochs that train everything except the embedding's enrichment, which later epochs train
                (stage 2). The published code starts stage 2 when the tested set no longer improves.
            lr: Learning rate of Adam, except for prompts and flows (1e-3) and temperatures (1e-2).
        """
        # Of this object, ahead of the base, which builds CLIP by it.
        self.numerics = Numerics(activation=activation)  # type: ignore[misc]
        super().__init__(backbone=backbone, pretrained=pretrained, image_size=image_size, layers=layers, sigma=sigma)
        image, text = self.backbone.image, self.text_tower
        if text.width != image.embed_dim:
            raise MethodError(
                f"BayesPFL adds image embeddings to words: it needs a CLIP whose text width ({text.width}) is its "
                f"joint dimension ({image.embed_dim})"
            )
        known = read_settings(read_file(locate(weights, self.published_weights))) if weights else {}
        given = {"prompts": prompts, "context_length": context_length, "state_length": state_length, "flows": flows}
        defaults = {"prompts": 3, "context_length": 5, "state_length": 5, "flows": 10}
        settings = {key: known.get(key, defaults[key]) if value is None else value for key, value in given.items()}
        self.hparams.update(settings)  # what was read off a file is known to a checkpoint, which comes without it
        if min(*settings.values(), samples) < 1 or settings["context_length"] + settings["state_length"] > 60:
            raise MethodError(
                f"prompts, lengths, flows and samples must be at least 1, and both lengths together at most 60; got "
                f"{settings} and {samples} samples"
            )
        self.samples, self.enriched, self.prompt_epochs = samples, enriched, prompt_epochs
        self.lr = lr
        self.domain, self.as_published = domain, as_published
        self.stages, self.stage = ("prompts", "enrichment"), ""  # "" goes by the epoch
        self.top_pixels = round(2000 * (image_size / 518) ** 2) if top_pixels is None else top_pixels
        width, hidden, count = image.embed_dim, image.width // 2, settings["prompts"]

        def words(length: int, mean: float) -> nn.Parameter:
            return nn.Parameter(mean + nn.init.trunc_normal_(torch.empty(count, length, width), std=0.02))

        self.prompt_context = words(settings["context_length"], 0.0)
        self.prompt_state_normal = words(settings["state_length"], 0.5)
        self.prompt_state_abnormal = words(settings["state_length"], -0.5)
        self.temperature_pixel, self.temperature_image = (nn.Parameter(torch.tensor(1 / 0.07).log()) for _ in range(2))
        self.context_encoder, self.state_encoder = Distribution(width, hidden), Distribution(width, hidden)
        self.context_flow = ImageFlow(width, settings["flows"])
        self.normal_flow, self.abnormal_flow = (AgnosticFlow(width, settings["flows"]) for _ in range(2))
        self.look = Look(image.width, width, len(self.layers))
        self.class_mapping, self.image_mapping = linear(width, width), linear(width, width)
        self.fuse = Fuse(image.width, len(self.layers), hidden, width)
        noise = torch.randn(3, samples, width, generator=torch.Generator().manual_seed(noise_seed))
        self.register_buffer("noise", noise, persistent=False)
        if weights is not None:
            self.load_weights(weights)

    def load_weights(self, path: str) -> None:
        """Loads the authors' file, a checkpoint, or a run folder."""
        super().load_weights(path)
        if self.enriched and stage_of(path) == 1:
            rank_zero_warn(f"{path} is of the first stage, which trains no enriched embedding; give enriched: false")

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps the published names ``MyModel/*`` to ours."""
        return published_state(file)

    # -- text ----------------------------------------------------------------------------------------------

    def class_text(self, class_name: str) -> _Words:
        """Returns the words of "X name", to its end."""
        tower = self.text_tower
        ids = tower.tokenize([f"X {_NAMES.get(class_name.replace(' ', '_'), class_name.lower())}"])
        end = tower.ends(ids)[0]
        return _Words(tower.embed(ids[0, : int(end) + 1]), end)

    def stack_texts(self, texts: Sequence[Any]) -> _Words:
        """Joins the texts of images, padded to the longest one."""
        length = max(len(text.words) for text in texts)
        words = [F.pad(text.words, (0, 0, 0, length - len(text.words))) for text in texts]
        return _Words(torch.stack(words), torch.stack([text.end for text in texts]))

    def draw(self, embedding: Tensor, noise: Sequence[Tensor]) -> _Draw:
        """Makes samples of standard normal numbers: for contexts (R, D) or (B, R, D), normal and abnormal (R, D)."""
        return _Draw(
            self.context_flow(embedding, self.context_encoder, noise[0]),
            self.normal_flow(self.state_encoder, noise[1]),
            self.abnormal_flow(self.state_encoder, noise[2]),
        )

    def sentences(self, text: _Words, draw: _Draw) -> tuple[Tensor, Tensor]:
        """Returns unit vectors (B, R · prompts, D) of the normal and of the abnormal sentences, samples outermost.

        One sample is added to all words of its kind, context or state.
        """
        batch, samples, _ = draw.context.z.shape
        rows = (batch, samples, len(self.prompt_context), -1, -1)
        context = (self.prompt_context + draw.context.z[:, :, None, None]).expand(rows)
        kinds = []
        for state, sample in ((self.prompt_state_normal, draw.normal), (self.prompt_state_abnormal, draw.abnormal)):
            learned = torch.cat([context, (state + sample.z[None, :, None, None]).expand(rows)], dim=3)
            fixed = text.words[:, None, None].expand(*rows[:3], -1, -1)
            words = torch.cat([fixed[..., :1, :], learned, fixed[..., 2:, :]], dim=3)
            kinds.append(words.flatten(1, 2))
        more = kinds[0].shape[2] - text.words.shape[1]
        words = torch.stack(kinds, dim=1)  # (B, 2, R · prompts, L, W)
        longest = self.text_tower.context_length
        ends = (text.end + more).clamp(max=longest - 1)[:, None, None].expand(words.shape[:3])
        vectors = run_sentences(self.text_tower, words.flatten(0, 2)[:, :longest], ends.flatten())
        return normalize(vectors.float()).unflatten(0, words.shape[:3]).unbind(1)

    # -- scores --------------------------------------------------------------------------------------------

    def margins(self, features: Features, normal: Tensor, abnormal: Tensor) -> Tensor:
        """Returns logit margins of the patches (B, layers, pairs, h, w), after each sentence attended to them."""
        found = []
        for patches, text in self.look(torch.cat([normal, abnormal], dim=1), features.levels):
            one, other = text.chunk(2, dim=1)
            found.append(self.temperature_pixel.exp() * (other - one) @ patches.transpose(1, 2))
        return torch.stack(found, dim=1).unflatten(3, features.levels[0].shape[1:3])

    def image_margins(self, features: Features, normal: Tensor, abnormal: Tensor, enriched: bool) -> Tensor:
        """Returns logit margins of the images (B, pairs)."""
        assert features.image is not None
        image, scale = features.image.float(), self.temperature_image.exp()
        if enriched:
            image = self.image_mapping(image + self.fuse(features.levels))
            scale = scale.detach()  # the second stage does not train it
        one, other = (normalize(self.class_mapping(text)) for text in (normal, abnormal))
        return scale * torch.einsum("bpd,bd->bp", other - one, normalize(image))

    def compare(self, features: Features, text: _Words, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Compares patches and image with all pairs of sentences.

        Returns:
            Logit margins of the patches, one level for each layer and pair, and the image's abnormal probability, the
            mean over the pairs (B, 1).
        """
        assert features.image is not None
        with torch.autocast(features.image.device.type, enabled=False):
            normal, abnormal = self.sentences(text, self.draw(features.image.float(), self.noise.unbind(0)))
            margins = self.margins(features, normal, abnormal).flatten(1, 2)
            image = self.image_margins(features, normal, abnormal, self.enriched).sigmoid().mean(1, keepdim=True)
        return Scores(margins, image, self.nearest(features, references))

    def map_of(self, scores: Scores, size: tuple[int, int]) -> Tensor:
        """Returns the abnormal probability, upsampled as margins, averaged over layers and pairs one at a time."""
        total = torch.zeros(1, device=scores.patches.device)
        for margin in scores.patches.unbind(1):
            total = total + upsample(margin, size, align_corners=True).sigmoid()
        return total / scores.patches.shape[1]

    def finish(self, scores: Scores, size: tuple[int, int]) -> Prediction:
        """Makes the map like the base class; the image score is the mean of its own probability and the map's top.

        Args:
            scores: Output of :meth:`compare`.
            size: Height and width of the maps.
        """
        assert scores.image is not None
        prediction = super().finish(scores, size)
        parts = scores.image
        if self.domain == "industrial":
            pixels = prediction.unsmoothed_map.flatten(1)
            top = pixels.topk(min(self.top_pixels, pixels.shape[1]), dim=1).values.mean(1, keepdim=True)
            parts = torch.cat([parts, top], dim=1) / 2
        return prediction._replace(image_score=parts.sum(1), score_components=parts)

    @property
    def tags(self) -> Tags:
        """Transductive with ``as_published``."""
        return Tags(transductive="scores" if self.as_published else "")

    def score_set(self, features: Features | None, predictions: Prediction | None, size: tuple[int, int]) -> Prediction:
        """Rescales both parts over all images of a category, as the published evaluation does."""
        assert predictions is not None
        assert predictions.score_components is not None
        return predictions._replace(image_score=zero_to_one(predictions.score_components).mean(1))

    # -- training ------------------------------------------------------------------------------------------

    @property
    def trains_prompts(self) -> bool:
        """Whether the current epoch belongs to the first stage."""
        return (self.stage or self.stages[self.current_epoch >= self.prompt_epochs]) == "prompts"

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns the losses of one pair of prompts, drawn for the batch, with one sample of each distribution.

        Anomalous images without a mask do not train the map.
        """
        assert features.image is not None
        like = features.image.float()
        noise = [torch.randn_like(like)[:, None], torch.randn_like(like[:1]), torch.randn_like(like[:1])]
        pair = int(torch.randint(len(self.prompt_context), (1,)))
        return self.losses(features, batch, noise, pair)

    def losses(self, features: Features, batch: Batch, noise: Sequence[Tensor], pair: int) -> dict[str, Tensor]:
        """Computes the terms of the loss.

        Args:
            features: Output of :meth:`encode`.
            batch: The batch.
            noise: Standard normal numbers for contexts (B, 1, D), for normal and for abnormal states (1, D).
            pair: Which pair of prompts is trained; the orthogonality loss covers all pairs.
        """
        assert features.image is not None
        first = self.trains_prompts
        with torch.set_grad_enabled(first):
            draw = self.draw(features.image.float(), noise)
            both = self.sentences(self.texts(batch["class_name"]), draw)
        normal, abnormal = (vectors[:, pair : pair + 1] for vectors in both)
        whole = self.image_margins(features, normal, abnormal, enriched=not first)[:, 0]
        terms = {"image": F.binary_cross_entropy_with_logits(whole, batch["label"].to(whole.dtype))}
        if not first:
            return terms
        cosines = torch.stack([vectors @ vectors.transpose(1, 2) for vectors in both])
        apart = cosines * (1 - torch.eye(len(self.prompt_context), device=cosines.device))
        terms["orthogonal"] = apart.square().flatten(1).mean(1).sum()
        # That of the states is one number, and is divided by the batch all the same, as published.
        volumes = torch.stack([one.log_det.sum() for one in draw]).sum() / len(whole)
        terms["divergence"] = 0.01 * (torch.stack([one.divergence.mean() for one in draw]).sum() - volumes)
        known = known_masks(batch)
        mask = batch["mask"][known]
        margins = self.margins(features, normal, abnormal)[known, :, 0]
        if not len(mask):
            return {**terms, "focal": 0 * margins.sum(), "dice": 0 * margins.sum()}
        maps = [upsample(one, (mask.shape[-2], mask.shape[-1]), align_corners=True) for one in margins.unbind(1)]
        terms["focal"] = torch.stack([_focal_loss(one, mask) for one in maps]).sum()
        return {**terms, "dice": torch.stack([_dice_loss(one, mask) for one in maps]).sum()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with the betas of GANs, in four groups, whose learning rates follow :meth:`rate`.

        Parameters that a stage does not train get no gradient and do not change.
        """
        rates = {**_RATES, "rest": self.lr}
        groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
        for name, p in self.named_parameters():
            if p.requires_grad:
                kind = name.split(".")[0].split("_")
                groups[next((word for word in _RATES if word in kind), "rest")].append(p)
        found = [{"params": groups[kind], "lr": rate, "initial_lr": rate} for kind, rate in rates.items()]
        return torch.optim.Adam(found, betas=(0.5, 0.999))

    @staticmethod
    def rate(step: int, steps: int) -> float:
        """Returns the share of the learning rates at a step of the first stage: a warm-up from 0, then a cosine to 0.

        Args:
            step: Step, from 0.
            steps: Steps of the first stage.
        """
        warm = int(_WARM * steps)
        if step < warm:
            return step / max(1, warm)
        return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Sets the learning rates; the second stage starts without momentum."""
        steps = self.prompt_epochs * int(self.trainer.num_training_batches)
        done = self.trainer.global_step
        if done == steps:
            optimizer.state.clear()
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (self.rate(done, steps) if self.trains_prompts else 1)

    def on_train_end(self) -> None:
        """Warns if the second stage has not been reached but scores would use it."""
        if self.enriched and self.trainer.global_step <= self.prompt_epochs * int(self.trainer.num_training_batches):
            rank_zero_warn("the training ended ahead of its second stage: give enriched: false, or fewer prompt_epochs")


def _focal_loss(margin: Tensor, mask: Tensor) -> Tensor:
    """Computes the focal loss, the mean over anomalous pixels plus that over normal ones, each of the whole batch."""
    true = torch.where(mask.bool(), margin, -margin).sigmoid()
    each = -(1 - true).square() * (true + 1e-8).log()
    inside = mask.to(each.dtype)
    return (each * inside).sum() / (inside.sum() + 1e-8) + (each * (1 - inside)).sum() / ((1 - inside).sum() + 1e-8)


def _dice_loss(margin: Tensor, mask: Tensor) -> Tensor:
    """Computes one minus the soft Dice coefficient of the anomalous pixels of the whole batch."""
    probability, inside = margin.sigmoid(), mask.to(margin.dtype)
    return 1 - (2 * (probability * inside).sum() + 1e-5) / (probability.sum() + inside.sum() + 1e-5)
