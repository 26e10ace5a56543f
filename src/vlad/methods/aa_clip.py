"""AA-CLIP: adapters after the first blocks of both towers, the text side trained before the image side.

Source: "AA-CLIP: Enhancing Zero-shot Anomaly Detection via Anomaly-Aware CLIP", CVPR 2025, arXiv 2503.06661, and its
published code, whose numbers are reproduced; where code and paper differ, the code.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.checkpoint import load_weights
from vlad.clip.attention import attend
from vlad.clip.blocks import TokenEdit, causal_mask, run_blocks
from vlad.clip.numerics import Numerics
from vlad.clip.similarity import normalize, upsample, zero_to_one
from vlad.encoders import Encoder
from vlad.errors import MethodError
from vlad.methods.aa_clip_published import published_state, read_published, read_settings
from vlad.methods.learned_prompts import LearnedText
from vlad.methods.losses import map_losses
from vlad.prompts import load_prompts
from vlad.types import Batch, Features, Prediction, Scores, Tags, known_masks

__all__ = ["AACLIP", "blur", "published_names"]

_HALVED = (16_000, 32_000)
"""Steps of the image side's training at which its learning rate is halved."""

_BLURS = {"industrial": (7, 1.0), "medical": (9, 1.5)}
"""Side and standard deviation, in patches, of the Gaussian over the patch grid."""


@cache
def published_names() -> dict[str, str]:
    """Returns the published code's names for the categories of its datasets."""
    return tomllib.loads((resources.files("vlad.prompts") / "aa_clip.toml").read_text())["names"]


def blur(maps: Tensor, side: int, sigma: float) -> Tensor:
    """Smooths maps (B, h, w) with a Gaussian of (side, side); beyond the border they are mirrored at the last value."""
    half = min(side // 2, maps.shape[-2] - 1, maps.shape[-1] - 1)  # a small grid can mirror no more
    weight = torch.exp(-0.5 * (torch.arange(-half, half + 1, device=maps.device) / sigma).square())
    weight = weight / weight.sum()
    padded = F.pad(maps[:, None].float(), (half,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))[:, 0]


def _linear(width: int, out: int) -> nn.Linear:
    layer = nn.Linear(width, out, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class AACLIP(LearnedText):
    """AA-CLIP: residual adapters in both towers, and separate projections for text, patches and image.

    Trained on the *test* split, with masks, of an auxiliary dataset, in two stages: first the text side, against
    patches of a CLIP with value-value attention, then the image side, against the text, which is then fixed.

    Paper: AA-CLIP, arXiv 2503.06661.
    """

    epochs = 25  # five of the text side, twenty of the image side
    staged = True
    align_corners = True

    def __init__(
        self,
        backbone: str | Encoder = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 518,
        layers: Sequence[int] = (6, 12, 18, 24),
        weights: str | None = None,
        text_adapters: int | None = None,
        image_adapters: int | None = None,
        text_weight: float = 0.1,
        image_weight: float = 0.1,
        relu: bool | None = None,
        activation: Literal["gelu", "pretrained"] = "gelu",
        names: Literal["published", "own"] = "published",
        domain: Literal["industrial", "medical"] = "industrial",
        as_published: bool = False,
        text_epochs: int = 5,
        local_from: int | None = None,
        local_attention: Literal["batch", "patches"] = "batch",
        text_layers: Literal["last", "all"] = "last",
        text_lr: float = 1e-5,
        lr: float = 5e-4,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny``.
            pretrained: open_clip weights tag, for plain names; ``random`` for random weights.
            image_size: Side S of the images in pixels; images are resized to a square.
            layers: Blocks whose patches are compared with the text, from 1; their maps are added.
            weights: Trained adapters: a folder with the two files of the published code or one of these (the authors
                have published none), a vlad checkpoint, or a run folder.
            text_adapters: Blocks of the text tower with an adapter, the first ones; None for what the weights have,
                else 3, or all.
            image_adapters: The same for the image tower; else 6, or all.
            text_weight: Share of an adapter's output in the text tower's tokens.
            image_weight: The same in the image tower.
            relu: Whether patch and image projections have a LeakyReLU; None for the value in the weights, else no.
            activation: ``gelu``: in place of the QuickGELU that OpenAI's weights were trained with, as the published
                code has it. ``pretrained``: what CLIP was trained with.
            names: ``published``: categories of MVTec AD, VisA, MPDD, BTAD and medical sets are called what the
                published code calls them (``bottle`` is "dark bottle"), others their own name. ``own``: all are.
            domain: ``industrial``, or ``medical``: a wider Gaussian, and the map alone for the image score.
            as_published: Whether image scores are rescaled over all test images of a category, as in the published
                evaluation.
            text_epochs: Epochs of a training that train the text side; further ones train the image side. 0 for the
                image side alone, on the text side of ``weights``.
            local_from: Block at which value-value attention begins in the training of the text side; by default at a
                quarter of the depth, 6 of 24 as published.
            local_attention: ``batch``: attention between the images of the batch at the same position, as in the
                published code, which confuses two axes. ``patches``: attention between the patches of an image. Only
                used in training.
            text_layers: Whether the ``last`` of ``layers`` alone trains the text side, as in the published code,
                which forgets the others, or ``all`` do.
            text_lr: Learning rate of Adam of the text side.
            lr: Learning rate of Adam of the image side, halved after 16000 and 32000 steps.
        """
        # Of this object, ahead of the base, which builds CLIP by it.
        self.numerics = Numerics(activation=activation)  # type: ignore[misc]
        super().__init__(backbone=backbone, pretrained=pretrained, image_size=image_size, layers=layers)
        image, text = self.backbone.image, self.text_tower
        known = read_settings(read_published(weights)) if weights else {}
        defaults = {"text_adapters": min(3, text.depth), "image_adapters": min(6, image.depth), "relu": False}
        given = {"text_adapters": text_adapters, "image_adapters": image_adapters, "relu": relu}
        settings = {key: known.get(key, defaults[key]) if value is None else value for key, value in given.items()}
        self.hparams.update(settings)  # what was read off a file is known to a checkpoint, which comes without it
        counts = ((settings["text_adapters"], text.depth), (settings["image_adapters"], image.depth))
        if any(not 0 <= count <= depth for count, depth in counts):
            raise MethodError(
                f"text_adapters and image_adapters go up to {text.depth} and {image.depth} blocks, got {counts[0][0]} "
                f"and {counts[1][0]}"
            )
        self.local_from = max(1, image.depth // 4) if local_from is None else local_from
        self.text_weight, self.image_weight, self.relu = text_weight, image_weight, bool(settings["relu"])
        self.names, self.domain, self.as_published = names, domain, as_published
        self.text_epochs, self.local_attention, self.text_layers = text_epochs, local_attention, text_layers
        self.text_lr, self.lr = text_lr, lr
        self.stages, self.stage = ("text", "image"), ""  # "" goes by the epoch
        self.text_adapters = nn.ModuleList(_linear(text.width, text.width) for _ in range(counts[0][0]))
        self.text_head = _linear(text.width, image.embed_dim)
        self.image_adapters = nn.ModuleList(_linear(image.width, image.width) for _ in range(counts[1][0]))
        self.heads = nn.ModuleList(_linear(image.width, image.embed_dim) for _ in self.layers)
        self.image_head = _linear(image.width, image.embed_dim)
        if weights is not None:
            self.load_weights(weights)

    def load_weights(self, path: str) -> None:
        """Loads the published code's two files, a checkpoint, or a run folder."""
        load_weights(self, path, read_published(path))

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps the published names to ours."""
        return published_state(file)

    # -- towers --------------------------------------------------------------------------------------------

    @staticmethod
    def _adapt(adapters: nn.ModuleList, weight: float) -> TokenEdit:
        """Makes the edit that mixes an adapter's output, brought to a token's own length, into each token."""

        def edit(number: int, x: Tensor) -> Tensor:
            if number > len(adapters):
                return x
            adapted = F.leaky_relu(adapters[number - 1](x))
            adapted = adapted * (x.norm(dim=-1, keepdim=True) / adapted.norm(dim=-1, keepdim=True))
            return weight * adapted + (1 - weight) * x

        return edit

    def class_text(self, class_name: str) -> Tensor:
        """Returns a class's two text vectors (2, D), unit length: normal, abnormal; means of unit sentences."""
        if self.names == "published":
            class_name = published_names().get(class_name.lower().replace(" ", "_"), class_name)
        normal, abnormal = load_prompts("aa_clip").sentences(class_name)
        tower = self.text_tower
        ids = tower.tokenize([*normal, *abnormal])
        ends = tower.ends(ids)
        length = int(ends.max()) + 1
        x = tower.embed(ids[:, :length]) + tower.text.positional_embedding[:length]
        edit = self._adapt(self.text_adapters, self.text_weight)
        x = run_blocks(tower.text.transformer.resblocks, x, mask=causal_mask(length, x), after=edit).last
        x = tower.text.ln_final(x[torch.arange(len(x), device=x.device), ends])
        rows = normalize(F.leaky_relu(self.text_head(x)).float())
        return normalize(torch.stack([rows[: len(normal)].mean(0), rows[len(normal) :].mean(0)]))

    def text_parameters(self) -> list[nn.Parameter]:
        """Returns the text side, which is fixed while the image side is trained."""
        return [*self.text_adapters.parameters(), *self.text_head.parameters()]

    def encode(self, images: Tensor) -> Features:
        """Runs the tower with its adapters; patches of the layers behind ``ln_post`` (B, h, w, W)."""
        tower = self.backbone.image
        edit = self._adapt(self.image_adapters, self.image_weight)
        states = tower.run(tower.embed(images), layers=self.layers, after=edit, need_last=False).hidden_states
        grid = tower.grid(*images.shape[-2:])
        patches = [tower.visual.ln_post(states[layer][:, 1:]) for layer in self.layers]
        return Features(levels=tuple(level.unflatten(1, grid) for level in patches))

    def _project(self, head: nn.Module, patches: Tensor) -> Tensor:
        """Maps patches (B, h, w, W) to unit vectors (B, h, w, D)."""
        x = head(patches)
        return normalize((F.leaky_relu(x) if self.relu else x).float())

    # -- scores --------------------------------------------------------------------------------------------

    def margins(self, features: Features, text: Tensor) -> Tensor:
        """Returns logit margins on the patch grid (B, L, h, w): 100 · (cos abnormal − cos normal) of each layer."""
        toward = 100 * (text[:, 1] - text[:, 0]).float()
        levels = zip(self.heads, features.levels, strict=True)
        return torch.stack([torch.einsum("bhwd,bd->bhw", self._project(*level), toward) for level in levels], dim=1)

    def image_cosines(self, features: Features, text: Tensor) -> Tensor:
        """Returns products of the image feature, the mean of the last layer's unit patches, with both texts (B, 2)."""
        mean = self._project(self.image_head, features.levels[-1]).flatten(1, 2).mean(1)
        return torch.einsum("bd,bkd->bk", mean, text.float())

    def compare(self, features: Features, text: Tensor, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Compares patches with both texts, the image with the abnormal one, patches with those of references.

        Returns:
            Half the logit margins, plus a half as published (B, L, h, w), and the image's likeness to the abnormal
            text, from 0 to 1 (B, 1).
        """
        abnormal = self.image_cosines(features, text)[:, 1:]
        return Scores((self.margins(features, text) + 1) / 2, (abnormal + 1) / 2, self.nearest(features, references))

    def nearest(self, features: Features, references: tuple[Tensor, ...] | None) -> Tensor | None:
        """Returns the distance to the nearest reference patch, in the units of the map: 50 per layer and cosine."""
        distance = super().nearest(features, references)
        return None if distance is None else 50 * len(self.layers) * distance

    def map_of(self, scores: Scores, size: tuple[int, int]) -> Tensor:
        """Returns the sum of the layers' scores, smoothed on the patch grid, then upsampled."""
        return upsample(blur(scores.patches.sum(1), *_BLURS[self.domain]), size, align_corners=True)

    def components_of(self, scores: Scores, anomaly_map: Tensor) -> Tensor:
        """Returns the map's maximum, as range and minimum, and for industrial images the image's likeness (B, 2 or 3).

        The likeness is weighted so that a cosine counts as much as in the map.
        """
        assert scores.image is not None
        low, high = anomaly_map.amin((1, 2)), anomaly_map.amax((1, 2))
        parts = torch.stack([high - low, low], dim=1)
        return parts if self.domain == "medical" else torch.cat([parts, 100 * len(self.layers) * scores.image], dim=1)

    @property
    def tags(self) -> Tags:
        """Transductive with ``as_published``."""
        return Tags(transductive="scores" if self.as_published else "")

    def score_set(self, features: Features | None, predictions: Prediction | None, size: tuple[int, int]) -> Prediction:
        """Rescales pixels and likenesses over all images of a category, as the published evaluation does."""
        assert predictions is not None
        parts = predictions.score_components
        assert parts is not None
        lowest, peak = parts[:, 1].min(), parts[:, 0] + parts[:, 1]
        score = (peak - lowest) / (peak.max() - lowest).clamp(min=1e-12)
        if self.domain == "industrial":
            score = (score + zero_to_one(parts[:, 2])) / 2
        return predictions._replace(image_score=score)

    # -- training ------------------------------------------------------------------------------------------

    @property
    def side(self) -> str:
        """The side that the current epoch trains, text or image."""
        return self.stage or self.stages[self.current_epoch >= self.text_epochs]

    def _local_values(self, number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if number < self.local_from:
            return attend(q, k, v)
        if self.local_attention == "patches":
            return attend(v, v, v)
        across = v.transpose(0, 2)  # places, heads, images
        return attend(across, across, across).transpose(0, 1)

    @torch.no_grad()
    def encode_for_loss(self, images: Tensor) -> Features:
        """Of the text side: patches of a CLIP with value-value attention, each with the image's embedding added."""
        if self.side == "image":
            with torch.enable_grad():
                return self.encode(images)
        tower = self.backbone.image
        x = tower.embed(images)
        layers = self.layers if self.text_layers == "all" else self.layers[-1:]
        states = tower.run(x, layers=layers, attention=self._local_values, need_last=False).hidden_states
        whole = normalize(tower.encode_tokens(x))[:, None]
        patches = [normalize(tower.project(states[layer][:, 1:])) + whole for layer in layers]
        grid = tower.grid(*images.shape[-2:])
        return Features(levels=tuple(level.unflatten(1, grid) for level in patches))

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns focal and Dice losses of the maps, and a term of what the epoch trains.

        Of the text side, how far both vectors are from orthogonal; of the image side, the cross-entropy of the image.
        Anomalous images without a mask do not train the map.
        """
        known = known_masks(batch)
        if self.side == "text":
            text = self.texts(batch["class_name"])
            toward = 100 * (text[:, 1] - text[:, 0])
            margins = torch.stack([torch.einsum("bhwd,bd->bhw", level, toward) for level in features.levels], dim=1)
            terms = {"orthogonal": 0.1 * (text[:, 0] * text[:, 1]).sum(1).mean().square()}
        else:
            text = self.fixed_texts(batch["class_name"])
            margins, cosines = self.margins(features, text), self.image_cosines(features, text)
            terms = {"image": F.cross_entropy(cosines, batch["label"])}  # of cosines: there is no temperature
        mask = batch["mask"][known]
        if not len(mask):
            return {**terms, **dict.fromkeys(("focal", "dice", "dice_normal"), 0 * margins.sum())}
        ups = [upsample(one, (mask.shape[-2], mask.shape[-1]), align_corners=True) for one in margins[known].unbind(1)]
        return {**terms, **map_losses([((-margin).sigmoid(), margin.sigmoid()) for margin in ups], mask)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with the betas of GANs; the text side and the image side have learning rates of their own.

        The side that an epoch does not train gets no gradient, and is left as it is.
        """
        image = [p for part in (self.image_adapters, self.heads, self.image_head) for p in part.parameters()]
        return torch.optim.Adam(
            [{"params": self.text_parameters(), "lr": self.text_lr}, {"params": image, "lr": self.lr}],
            betas=(0.5, 0.999),
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Halves the image side's learning rate at its steps."""
        steps = self.trainer.global_step - self.text_epochs * int(self.trainer.num_training_batches)
        optimizer.param_groups[1]["lr"] = self.lr / 2 ** bisect_right(_HALVED, steps)
