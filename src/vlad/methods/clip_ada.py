"""CLIP-ADA, reconstructed from its abstract: a learnable prompt bound to abnormal patterns by self-supervision.

Source: Cai et al., "Anomaly Detection by Adapting a pre-trained Vision Language Model", arXiv 2403.09493. Only the
abstract is public to us and no code is. What is taken from it: a frozen CLIP, one learnable prompt that
self-supervision ties to abnormal patterns of all categories, similarity of the prompt and the image as the map, and a
refinement of anomalous regions. Everything else is a reasoned choice of ours, each a setting below; nothing here
claims the paper's figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.clip.blocks import AttentionBranch
from vlad.clip.regions import crop_regions, full_boxes, paste_maps
from vlad.clip.similarity import normalize, to_grid, upsample
from vlad.errors import MethodError, nearest
from vlad.methods.base import Method
from vlad.methods.losses import balanced_bce_loss, dice_loss, focal_loss
from vlad.methods.refinement import Head, NoRefinement, build_refinement
from vlad.pseudo_anomalies import Random, Synthesizer, texture_source
from vlad.types import Batch, Prediction, Preprocess

__all__ = ["CLIPADA"]

PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": lambda logits, target: F.binary_cross_entropy_with_logits(logits, target.float()),
    "balanced_bce": balanced_bce_loss,
    "focal": lambda logits, target: focal_loss(torch.stack([(-logits).sigmoid(), logits.sigmoid()], dim=1), target),
}


class CLIPADA(Method):
    """CLIP-ADA, reconstructed from its abstract: one prompt learned from pseudo-anomalies, maps refined by zoom.

    Trained on normal images alone, of all categories together: pseudo-anomalies are painted into them, and a prompt
    without a class name is learned whose text embedding is near the patches that were painted on. At test time the map
    is the patches' similarity to the prompt; then the regions that stand out are looked at again, closer.

    Paper: CLIP-ADA, arXiv 2403.09493 (a reconstruction).
    """

    epochs = 30
    learns_from = "normal"

    def __init__(
        self,
        backbone: str = "ViT-L-14-336",
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
        recipe: Literal["perlin", "cutpaste", "poisson", "region", "mixed"] = "perlin",
        textures: str = "procedural",
        probability: float = 1.0,
        keep_to_part: bool = False,
        pixel_loss: Literal["bce", "balanced_bce", "focal"] = "bce",
        region_view: float = 1.0,
        refinement: str = "zoom",
        regions: int = 3,
        threshold: float = 0.5,
        margin: float = 1.5,
        min_side: float | None = None,
        merge: Literal["mean", "fine"] = "mean",
        steps: int = 1,
        sigma: float = 12.0,
        top: float = 0.001,
        lr: float = 1e-3,
    ) -> None:
        """Builds the method on a frozen CLIP. In brackets: the row of the decision table in docs/methods/clip_ada.md.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny`` (A1).
            pretrained: open_clip weights tag, for plain names; null gives random weights.
            image_size: Side of what the tower looks at, in pixels: the whole image, or a region (A2).
            full_size: Side S that images are given in, that regions are cut from and that maps have, in pixels.
            weights: Trained parameters: one of vlad's checkpoints, or a run folder.
            layers: Blocks whose tokens are compared with the prompt, from 1; by default every quarter (A4).
            linear: Whether each level has a linear map to the joint space; else the value-value path's last tokens are
                compared, through CLIP's own projection, and the prompt is all that is learned (A3).
            length: Learned vectors of a prompt (A5).
            words: Words after them, such as ``anomaly``.
            normal_prompt: Whether a second prompt stands for what is normal (A6).
            scale: Factor of the cosines at the start; learned (A7).
            bias: Logit of a cosine of 0 at the start; learned. None is needed beside a normal prompt.
            recipe: Pseudo-anomalies: ``perlin``, ``cutpaste``, ``poisson``, ``region`` or ``mixed`` (A8).
            textures: What is blended in: ``procedural``, ``images`` (of the batch), or a folder such as DTD's.
            probability: Share of the training images that get a pseudo-anomaly.
            keep_to_part: Whether pseudo-anomalies leave a plain background alone.
            pixel_loss: Loss beside Dice: binary cross-entropy; the same with three hard negatives for each positive;
                or focal (A10).
            region_view: Weight of the loss on a square region about the pseudo-anomaly; 0 for none (A11).
            refinement: ``zoom`` looks at regions again, closer; ``head`` is a small trained decoder; ``none``; or what
                has been added to :data:`vlad.methods.refinement.REFINEMENTS` (A12).
            regions: Regions per image at most, for zoom.
            threshold: Share of the map's maximum that a region is above.
            margin: Size of a box in units of its region's.
            min_side: Smallest side of a box as a share of the image's, in training too. By default image_size /
                full_size: a region is not enlarged beyond the pixels that the image has.
            merge: ``mean`` of both looks, or the closer one alone (``fine``).
            steps: How many times zoom is applied.
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
        min_side = image_size / full_size if min_side is None else min_side
        if pixel_loss not in PIXEL_LOSSES:
            raise MethodError(f"no pixel_loss is named '{pixel_loss}'; {nearest(pixel_loss, PIXEL_LOSSES)}")
        if not (0 < min_side <= 1 and 0 < threshold < 1 and 0 <= top <= 1):
            raise MethodError("min_side, threshold and top are shares: between 0 and 1")
        quarter = max(1, tower.depth // 4)
        self.layers = (self.layers or tuple(range(quarter, tower.depth + 1, quarter))) if linear else (tower.depth,)
        self.full_size, self.linear, self.words = full_size, linear, words
        self.pixel_loss, self.region_view, self.min_side = pixel_loss, region_view, min_side
        self.textures, self.top, self.lr = textures, top, lr
        self._text: tuple[Any, Tensor | None] = (None, None)
        self._synthesizer = Synthesizer(recipe, probability, keep_to_part)

        self.prompt = nn.Parameter(0.02 * torch.randn(2 if normal_prompt else 1, length, text.width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        if not normal_prompt:
            self.bias = nn.Parameter(torch.tensor(bias))
        if linear:
            self.maps = nn.ModuleList(nn.Linear(tower.width, tower.embed_dim) for _ in self.layers)
        wishes = {"threshold": threshold, "margin": margin, "min_side": min_side, "merge": merge, "steps": steps}
        self.refinement = build_refinement(refinement, count=regions, levels=len(self.layers), **wishes)
        if weights is not None:
            self.load_weights(weights)

    @property
    def preprocess(self) -> Preprocess:
        """Images are given at ``full_size``: regions are cut from them."""
        return Preprocess(self.full_size, self.backbone.mean, self.backbone.std)

    # -- text ----------------------------------------------------------------------------------------------

    def encode_prompts(self) -> Tensor:
        """Encodes the prompts, ``[start] V_1 … V_M words [end]``, to unit vectors (1 or 2, D): abnormal, normal.

        Gradients reach the learned vectors through the frozen tower. Without gradients the vectors are kept until the
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

    def patches(self, views: Tensor) -> list[Tensor]:
        """Computes the patch embeddings of each level, unit vectors (n, N, D).

        Args:
            views: What the tower looks at, normalised (n, 3, image_size, image_size).
        """
        tower = self.backbone.image
        with torch.no_grad():
            x = tower.embed(views)
            if not self.linear:  # value-value attention keeps a patch about itself (CLIP Surgery, AnomalyCLIP)
                path = AttentionBranch(first=max(1, tower.depth // 4))
                tokens = tower.run(x, branch=path, branch_layers=self.layers, need_last=False)
                return [normalize(tower.project(tokens.branch[layer][:, 1:]).float()) for layer in self.layers]
            tokens = tower.run(x, layers=self.layers, need_last=False)
        hidden = (tokens.hidden_states[layer][:, 1:] for layer in self.layers)
        return [normalize(level(layer).float()) for level, layer in zip(self.maps, hidden, strict=True)]

    def compare(self, views: Tensor) -> Tensor:
        """Compares each patch with the prompt: logits per level on the patch grid (L, n, g, g), float32.

        z = e^s ⟨v, t⟩ + b; with a normal prompt e^s (⟨v, t⟩ − ⟨v, t_normal⟩).
        """
        patches, text = self.patches(views), self.encode_prompts()
        with torch.autocast(views.device.type, enabled=False):
            toward = self.log_scale.exp() * (text[0] - text[1] if len(text) == 2 else text[0])
            logits = torch.stack([level @ toward for level in patches])
            return to_grid(logits.flatten(0, 1)).unflatten(0, logits.shape[:2]) + getattr(self, "bias", 0.0)

    def look(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Compares regions of images with the prompt (L, n, g, g).

        Args:
            images: Images (n, 3, S, S), normalised.
            boxes: Regions (n, 4) as shares of the side: top, left, bottom, right.
        """
        return self.compare(crop_regions(images, boxes, self.image_size))

    def score(self, images: Tensor, class_names: list[str]) -> Prediction:
        """Scores images; see :meth:`vlad.Method.score`. The prompt knows no classes: their names are not used.

        The prediction's ``unrefined`` is what it was before the refinement.
        """
        boxes = full_boxes(len(images), images.device)
        levels = self.look(images, boxes)
        logits, _ = paste_maps(levels.mean(0), boxes, images.shape[-1])
        first = self.finish(logits)
        if isinstance(self.refinement, NoRefinement):
            return first
        refined = self.finish(self.refinement(logits, levels, images, self.look))
        return Prediction(refined.unsmoothed_map, refined.anomaly_map, refined.image_score, unrefined=first)

    def finish(self, logits: Tensor) -> Prediction:
        """Makes a prediction of logits (B, S, S): sigmoid, Gaussian, mean of the highest pixels."""
        unsmoothed_map = logits.sigmoid()
        anomaly_map = self.smooth(unsmoothed_map)
        count = max(1, round(self.top * anomaly_map[0].numel()))
        return Prediction(unsmoothed_map, anomaly_map, anomaly_map.flatten(1).topk(count, dim=1).values.mean(1))

    # -- training ------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Looks for the textures before training begins; a trained model does not need them."""
        super().setup(stage)
        if stage == "fit":
            self._synthesizer.textures = texture_source(self.textures)

    def synthesize(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Paints pseudo-anomalies into normal images; the run's seed, the process and the step decide which.

        Args:
            images: Normalised images (B, 3, S, S).

        Returns:
            Changed images, normalised, and masks (B, S, S), bool.
        """
        mean, std = (
            torch.tensor(v, device=images.device).view(3, 1, 1) for v in (self.backbone.mean, self.backbone.std)
        )
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx if self._trainer is not None else 0
        random = Random(torch.initial_seed(), self.global_rank, max(0, step), device=images.device)
        changed, mask = self._synthesizer((images.float() * std + mean).clamp(0, 1), random)
        return (changed - mean) / std, mask

    def draw_boxes(self, mask: Tensor) -> Tensor:
        """Draws a square about an anomalous pixel of each image (B, 4), of a side from ``min_side`` to 1."""
        size = mask.shape[-1]
        weight = torch.rand(mask.shape, device=mask.device) * (mask + 1e-3)
        place = weight.flatten(1).argmax(1)
        middle = (torch.stack([place // size, place % size], dim=1) + 0.5) / size
        side = self.min_side + (1 - self.min_side) * torch.rand(len(mask), 1, device=mask.device)
        low, high = (middle - side).clamp(min=0), torch.minimum(middle, 1 - side)
        corner = low + (high - low) * torch.rand(len(mask), 2, device=mask.device)
        return torch.cat([corner, corner + side], dim=1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Paints pseudo-anomalies and returns pixel and Dice loss, of the whole images and of regions.

        Each is the mean over the levels' maps and the fused one (and the decoder's, with ``refinement: head``).
        """
        images, mask = self.synthesize(batch["image"])
        boxes = [full_boxes(len(images), images.device)]
        if self.region_view:
            boxes.append(self.draw_boxes(mask))
        views = torch.cat([crop_regions(images, b, self.image_size) for b in boxes])
        targets = torch.cat([crop_regions(mask[:, None].float(), b, self.image_size)[:, 0] > 0.5 for b in boxes])
        levels = self.compare(views)
        maps = [upsample(level, self.image_size, align_corners=False) for level in (*levels, levels.mean(0))]
        if isinstance(self.refinement, Head):
            maps.append(self.refinement(maps[-1], levels, views))
        terms: dict[str, Tensor] = {}
        weights = (("", 1.0), ("region_", self.region_view))
        for (name, weight), rows in zip(weights, torch.arange(len(views)).split(len(images)), strict=False):
            seen = [(m[rows], targets[rows]) for m in maps]
            pixel = torch.stack([PIXEL_LOSSES[self.pixel_loss](m, t) for m, t in seen]).mean()
            terms[f"{name}{self.pixel_loss}"] = weight * pixel
            terms[f"{name}dice"] = weight * torch.stack([dice_loss(m.sigmoid(), t) for m, t in seen]).mean()
        return terms

    def configure_optimizers(self) -> Any:
        """AdamW, weight decay on the linear maps alone; the rate falls to a fifth at 80 % and at 90 % of the steps."""
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
