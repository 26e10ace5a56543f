"""CLIP-ADA, reconstructed from its abstract: a learnable prompt bound to abnormal patterns by self-supervision.

Source: Cai et al., "Anomaly Detection by Adapting a pre-trained Vision Language Model", arXiv 2403.09493. Only the
abstract is available to us; no code is public. Taken from it are: a frozen CLIP, one learnable prompt that
self-supervision ties to abnormal patterns of all categories, similarity of the prompt and the image as the map, and a
refinement of anomalous regions. Everything else is our choice, each a setting below; we claim none of the paper's
figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlad.clip.blocks import AttentionBranch
from vlad.clip.regions import crop_regions, full_boxes, paste_maps
from vlad.clip.similarity import normalize, upsample
from vlad.encoders import Encoder
from vlad.errors import MethodError
from vlad.methods.arguments import build_options
from vlad.methods.base import Method
from vlad.methods.losses import PIXEL_LOSSES, Losses, dice_loss
from vlad.methods.refinement import Head, NoRefinement, Refinement, Zoom
from vlad.pseudo_anomalies import Random, Synthesizer
from vlad.seeds import run_seed, steps_done
from vlad.types import Batch, Features, Prediction, Preprocess, Requirements, Scores, Tags, name_features

__all__ = ["CLIPADA"]


class CLIPADA(Method):
    """CLIP-ADA, reconstructed from its abstract: one prompt learned from pseudo-anomalies, maps refined by zoom.

    Trained only on normal images, of all categories together: pseudo-anomalies are painted into them, and a prompt
    without a class name is learned whose text embedding is near the painted patches. At test time the map is the
    patches' similarity to the prompt; then conspicuous regions are scored again at a larger scale.

    Paper: CLIP-ADA, arXiv 2403.09493 (a reconstruction).
    """

    epochs = 30
    supervision = "one-class"

    def __init__(
        self,
        backbone: str | Encoder = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 336,
        full_size: int = 1008,
        weights: str | None = None,
        layers: Sequence[int] | None = None,
        linear: bool = True,
        length: int = 12,
        words: str = "",
        normal_prompt: bool = False,
        scale: float = 1 / 0.07,
        bias: float = -2.0,
        synthesis: Synthesizer | None = None,
        losses: Losses | None = None,
        refinement: Refinement | None = None,
        sigma: float = 12.0,
        top: float = 0.001,
        lr: float = 1e-3,
    ) -> None:
        """Builds the method on a frozen CLIP. In brackets: the row of the decision table in docs/methods/clip_ada.md.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny`` (A1).
            pretrained: open_clip weights tag, for plain names; ``random`` for random weights.
            image_size: Side of the encoder's input in pixels: the whole image or a region (A2).
            full_size: Side S that images are given in, that regions are cropped from and that maps have, in pixels.
            weights: Trained parameters: a vlad checkpoint, or a run folder.
            layers: Layers whose tokens are compared with the prompt, from 1; by default every quarter (A4).
            linear: Whether each level has a linear map to the joint space; else the last tokens of the value-value
                attention branch are compared, through CLIP's own projection, and only the prompt is learned (A3).
            length: Learned vectors of a prompt (A5).
            words: Words after them, such as ``anomaly``.
            normal_prompt: Whether a second prompt describes normal patches (A6).
            scale: Factor of the cosines at the start; learned (A7).
            bias: Logit of a cosine of 0 at the start; learned. Not used with a normal prompt.
            synthesis: How pseudo-anomalies are made (A8).
            losses: Terms of the training loss (A10, A11).
            refinement: ``Zoom``, the default, scores regions again at a larger scale; ``Head`` is a small trained
                decoder; ``NoRefinement``; or a refinement of your own (A12).
            sigma: Standard deviation in pixels of the Gaussian over the map (A13).
            top: Share of the map's pixels whose mean is the image score; 0 for the maximum (A14).
            lr: Learning rate of AdamW (A15).
        """
        super().__init__(
            backbone=backbone, pretrained=pretrained, image_size=image_size, layers=layers or (), sigma=sigma
        )
        tower, text = self.backbone.image, self.text_tower
        if full_size < image_size:
            raise MethodError(f"full_size must be at least image_size ({image_size}), got {full_size}")
        most = text.context_length - 1 - int(text.ends(text.tokenize([words])))
        if not 1 <= length <= most:
            raise MethodError(f"length must be from 1 to {most}, got {length}")
        if not 0 <= top <= 1:
            raise MethodError("top is a share: between 0 and 1")
        quarter = max(1, tower.depth // 4)
        self.layers = (self.layers or tuple(range(quarter, tower.depth + 1, quarter))) if linear else (tower.depth,)
        self.full_size, self.linear, self.words, self.top, self.lr = full_size, linear, words, top, lr
        self.synthesis: Synthesizer = build_options(synthesis or Synthesizer(), Synthesizer)
        self.losses: Losses = build_options(losses or Losses(), Losses)
        refinement = build_options(refinement or Zoom(), Refinement)
        self.min_side = getattr(refinement, "min_side", None) or image_size / full_size
        self.how: Refinement = (
            replace(refinement, min_side=self.min_side) if isinstance(refinement, Zoom) else refinement
        )
        self._text: tuple[Any, Tensor | None] = (None, None)

        self.prompt = nn.Parameter(0.02 * torch.randn(2 if normal_prompt else 1, length, text.width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        if not normal_prompt:
            self.bias = nn.Parameter(torch.tensor(bias))
        if linear:
            self.maps = nn.ModuleList(nn.Linear(tower.width, tower.embed_dim) for _ in self.layers)
        self.refinement = self.how.build(len(self.layers))
        if weights is not None:
            self.load_weights(weights)

    @property
    def requirements(self) -> Requirements:
        """Images are given at ``full_size``: regions are cropped from them."""
        return Requirements(Preprocess(self.full_size, self.backbone.mean, self.backbone.std), self.supervision)

    @property
    def tags(self) -> Tags:
        """The prompt contains no class names; zoom's regions depend on the data."""
        zoom = "zoom chooses regions by connected components of the initial map, which depends on the data"
        return Tags(class_names=False, no_export=zoom if isinstance(self.how, Zoom) else "")

    # -- text ----------------------------------------------------------------------------------------------

    def encode_prompts(self) -> Tensor:
        """Encodes the prompts, ``[start] V_1 … V_M words [end]``, to unit vectors (1 or 2, D): abnormal, normal.

        Gradients reach the learned vectors through the frozen tower. Without gradients the vectors are cached until the
        prompts change.
        """
        if torch.is_grad_enabled():
            return self._encode_prompts()
        state = (self.prompt._version, self.prompt.device)
        if self._text[0] != state:
            self._text = (state, self._encode_prompts())
        return self._text[1]  # type: ignore[return-value]

    def _encode_prompts(self) -> Tensor:
        tower = self.text_tower
        with torch.autocast(self.device.type, enabled=False):
            ids = tower.tokenize([self.words])
            count, length = self.prompt.shape[:2]
            around = tower.embed(ids).float().expand(count, -1, -1)
            words = torch.cat([around[:, :1], self.prompt.float(), around[:, 1 : tower.context_length - length]], dim=1)
            ends = (tower.ends(ids) + length).expand(count)
            return normalize(tower.run(words, ends))

    # -- image ---------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Features:
        """Encodes whole images (B, 3, S, S), resized to ``image_size``; the images are kept for the zoom."""
        side = self.image_size
        small = images if images.shape[-2:] == (side, side) else self._crop(images, None)
        start = "" if self.linear else "vv "
        end = "" if self.linear else f" from {self._local_from}"
        names = name_features(levels=tuple(f"{start}patches {layer}{end}" for layer in self.layers))
        return self.frozen(small, self._encode_views, names)._replace(images=images)

    @property
    def _local_from(self) -> int:
        return max(1, self.backbone.depth // 4)

    def _crop(self, images: Tensor, boxes: Tensor | None) -> Tensor:
        boxes = full_boxes(images.shape[0], images.device) if boxes is None else boxes
        return crop_regions(images, boxes, self.image_size)

    def _encode_views(self, views: Tensor) -> Features:
        tower = self.backbone.image
        grid = tower.grid(views.shape[-2], views.shape[-1])
        x = tower.embed(views)
        if self.linear:
            states = tower.run(x, layers=self.layers, need_last=False).hidden_states
        else:  # value-value attention keeps a patch about itself (CLIP Surgery, AnomalyCLIP)
            branch = AttentionBranch(first=self._local_from)
            states = tower.run(x, branch=branch, branch_layers=self.layers, need_last=False).branch
        return Features(tuple(states[layer][:, 1:].unflatten(1, grid) for layer in self.layers))

    def logits(self, features: Features) -> Tensor:
        """Compares each patch with the prompt: logits per level on the patch grid (B, L, g, g), float32.

        z = e^s ⟨v, t⟩ + b; with a normal prompt e^s (⟨v, t⟩ − ⟨v, t_normal⟩).
        """
        project = self.maps if self.linear else [self.backbone.image.project]
        patches = [normalize(level(x).float()) for level, x in zip(project, features.levels, strict=True)]
        text = self.encode_prompts()
        with torch.autocast(text.device.type, enabled=False):
            toward = self.log_scale.exp() * (text[0] - text[1] if len(text) == 2 else text[0])
            return torch.stack([level @ toward for level in patches], dim=1) + getattr(self, "bias", 0.0)

    def look(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Compares regions of images with the prompt (n, L, g, g).

        Args:
            images: Images (n, 3, S, S), normalised.
            boxes: Regions (n, 4) as shares of the side: top, left, bottom, right.
        """
        with torch.no_grad():
            features = self._encode_views(self._crop(images, boxes))
        return self.logits(features)

    def compare(self, features: Features, text: Any, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Compares patches with the prompt and refines the map; class names are not used."""
        levels = self.logits(features)
        scores = Scores(levels, memory=self.nearest(features, references))
        if isinstance(self.how, NoRefinement):
            return scores
        assert features.images is not None
        initial = self.enlarge(levels, (features.images.shape[-2], features.images.shape[-1]))
        return scores._replace(refined=self.how.refine(initial, levels, features.images, self.look, self.refinement))

    @staticmethod
    def enlarge(levels: Tensor, size: tuple[int, int]) -> Tensor:
        """Upsamples the mean of the levels (B, L, g, g) to logits (B, H, W)."""
        return paste_maps(levels.mean(1), full_boxes(levels.shape[0], levels.device), size[0])[0]

    def map_of(self, scores: Scores, size: tuple[int, int]) -> Tensor:
        """Returns the abnormal probability, refined if there is a refinement."""
        return (self.enlarge(scores.patches, size) if scores.refined is None else scores.refined).sigmoid()

    def components_of(self, scores: Scores, anomaly_map: Tensor) -> Tensor:
        """Returns the mean of the map's highest pixels (B, 1)."""
        count = max(1, round(self.top * anomaly_map[0].numel()))
        return anomaly_map.flatten(1).topk(count, dim=1).values.mean(1, keepdim=True)

    def finish(self, scores: Scores, size: tuple[int, int]) -> Prediction:
        """Makes the prediction; its stage ``initial`` is the map before the refinement."""
        final = super().finish(scores, size)
        if scores.refined is None:
            return final
        return final._replace(stages={"initial": super().finish(scores._replace(refined=None), size)})

    # -- training ------------------------------------------------------------------------------------------

    def synthesize(
        self, images: Tensor, textures: Tensor | None = None, random: Random | None = None
    ) -> tuple[Tensor, Tensor]:
        """Paints pseudo-anomalies into normal images.

        Args:
            images: Normalised images (B, 3, S, S).
            textures: Textures that the data module has read (B, 3, S, S), uint8; else what ``synthesis`` names.
            random: Source of random numbers; by default :meth:`step_random`.

        Returns:
            Changed images, normalised, and masks (B, S, S), bool.
        """
        mean, std = (
            torch.tensor(v, device=images.device).view(3, 1, 1) for v in (self.backbone.mean, self.backbone.std)
        )
        random = random or self.step_random()
        changed, mask = self.synthesis((images.float() * std + mean).clamp(0, 1), random, textures)
        return (changed - mean) / std, mask

    def step_random(self) -> Random:
        """Returns the random numbers of a training step: the run's seed, the process and the step decide them."""
        step = steps_done(self.trainer) if self._trainer is not None else 0
        return Random(run_seed(), self.global_rank, step, device=self.device)

    def draw_boxes(self, mask: Tensor, random: Random) -> Tensor:
        """Draws a square around an anomalous pixel of each image (B, 4), of a side from ``min_side`` to 1."""
        size, count = mask.shape[-1], len(mask)
        pixels = mask.flatten(1) | ~mask.any((1, 2))[:, None]  # any pixel of an image without an anomalous one
        number = (random.uniform(0, 1, count) * pixels.sum(1)).long()
        place = torch.searchsorted(pixels.cumsum(1), number[:, None], right=True)[:, 0]
        middle = (torch.stack([place // size, place % size], dim=1) + 0.5) / size
        side = self.min_side + (1 - self.min_side) * random.uniform(0, 1, count, 1)
        low, high = (middle - side).clamp(min=0), torch.minimum(middle, 1 - side)
        corner = low + (high - low) * random.uniform(0, 1, count, 2)
        return torch.cat([corner, corner + side], dim=1)

    def prepare(self, batch: Batch) -> Batch:
        """Paints pseudo-anomalies; returns the whole images, then the regions around them, at ``image_size``."""
        random = self.step_random()
        images, mask = self.synthesize(batch["image"], batch.get("texture"), random)
        boxes = [full_boxes(len(images), images.device)]
        if self.losses.region_view:
            boxes.append(self.draw_boxes(mask, random))
        views = torch.cat([self._crop(images, b) for b in boxes])
        targets = torch.cat([self._crop(mask[:, None].float(), b)[:, 0] > 0.5 for b in boxes])
        whole = torch.arange(len(views), device=mask.device) < len(images)
        return {**batch, "image": views, "mask": targets, "fixed": whole & ~targets.flatten(1).any(1)}

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns pixel and Dice loss, of the whole images and of regions.

        Each is the mean over the levels' maps and the fused one (and the decoder's, with a refinement that learns).
        """
        side, target, levels = (self.image_size, self.image_size), batch["mask"], self.logits(features)
        fused = upsample(levels.mean(1), side, align_corners=False)
        maps = [*(upsample(level, side, align_corners=False) for level in levels.unbind(1)), fused]
        if isinstance(self.how, Head):
            maps.append(self.how.refine(fused, levels, batch["image"], self.look, self.refinement))
        views = {"": 1.0} | ({"region_": self.losses.region_view} if self.losses.region_view else {})
        terms: dict[str, Tensor] = {}
        for (name, weight), rows in zip(views.items(), torch.arange(len(target)).chunk(len(views)), strict=True):
            seen = [(m[rows], target[rows]) for m in maps]
            pixel = torch.stack([PIXEL_LOSSES[self.losses.pixel](m, t) for m, t in seen]).mean()
            terms[f"{name}{self.losses.pixel}"] = weight * pixel
            terms[f"{name}dice"] = weight * torch.stack([dice_loss(m.sigmoid(), t) for m, t in seen]).mean()
        return terms

    def configure_optimizers(self) -> Any:
        """AdamW, weight decay on the linear maps only; the rate falls to a fifth at 80 % and at 90 % of the steps."""
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        decayed = [p for name, p in trained.items() if name.endswith("weight")]
        others = [p for name, p in trained.items() if not name.endswith("weight")]
        groups = [{"params": decayed, "weight_decay": 1e-5}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=self.lr)
        if self._trainer is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.2 ** ((step >= 0.8 * steps) + (step >= 0.9 * steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
