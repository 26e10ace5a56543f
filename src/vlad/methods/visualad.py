"""VisualAD: two learned tokens, anomalous and normal, among the patch tokens; no text.

Source: Hou et al., "VisualAD: Language-Free Zero-Shot Anomaly Detection via Vision Transformer", CVPR 2026, arXiv
2603.07952. Written from the paper's formulas and the outputs of its published code, whose numbers are reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from vlad.checkpoint import read_file
from vlad.clip.numerics import Numerics
from vlad.clip.similarity import normalize, upsample
from vlad.encoders import Encoder
from vlad.errors import MethodError, WeightsError
from vlad.methods.base import Method
from vlad.methods.losses import dice_loss, focal_loss, two_classes
from vlad.types import Batch, Features, Scores, Tags, known_masks

__all__ = ["SpatialAttention", "VisualAD"]


class VisualAD(Method):
    """VisualAD: an anomaly and a normal token run through CLIP's image tower with the patches, on a frozen CLIP.

    At each layer, both tokens are updated from the patches by attention over learned anchors (SCA), and the patches go
    through an MLP (SAF). The map is the similarity to the anomaly token minus that to the normal token.

    Paper: VisualAD, arXiv 2603.07952.
    """

    epochs = 2  # on MVTec AD; 1 on VisA
    numerics = Numerics(position_resize="bilinear", position_antialias=False)

    def __init__(
        self,
        backbone: str | Encoder = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 518,
        weights: str | None = None,
        layers: Sequence[int] | None = None,
        trained_norm: bool = False,
        anchors: int = 4,
        max_patches: int = 1536,
        dropout: float = 0.1,
        sigma: float = 4.0,
        lr: float = 1e-3,
        lr_rest: float = 1e-4,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny``.
            pretrained: open_clip weights tag, for plain names; ``random`` for random weights.
            image_size: Side S of the images in pixels; images are resized to a square.
            weights: Trained parameters: a file in the authors' format, a vlad checkpoint, or a run folder.
            layers: Blocks whose patches give maps, from 1; by default those of ``weights``, else four at equal
                distances, 6, 12, 18, 24 of 24.
            trained_norm: Whether scoring uses the last norm as it was trained. The published code trains and saves it,
                and its evaluation never loads it, but takes CLIP's own.
            anchors: Learned queries of each layer's attention.
            max_patches: Learned positions of each layer's attention, one for each patch, row by row.
            dropout: Share of the numbers dropped after each linear layer of the MLPs, in training.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            lr: Learning rate of AdamW for the two tokens.
            lr_rest: Learning rate of all other parameters.

        Raises:
            MethodError: The encoder is not a CLIP, or the image has more patches than positions.
        """
        known = read_file(weights) if weights else {}
        if layers is None and weights is not None:
            layers = known["hyper_parameters"].get("layers") if "vlad" in known else known.get("features_list")
        super().__init__(
            backbone=backbone,
            pretrained=pretrained,
            image_size=image_size,
            layers=layers or (),
            sigma=sigma,
            text=False,
        )
        if not hasattr(self.backbone, "image"):
            raise MethodError("VisualAD puts tokens into the image tower of a CLIP: give a CLIP as backbone")
        tower = self.backbone.image
        self.layers = self.layers or tuple(sorted({max(1, tower.depth * quarter // 4) for quarter in (1, 2, 3, 4)}))
        self.hparams["layers"] = list(self.layers)  # what was read off a file is known to a checkpoint
        rows, columns = tower.grid(image_size, image_size)
        if rows * columns > max_patches:
            raise MethodError(f"an image has {rows * columns} patches and max_patches is {max_patches}: raise it")
        self.trained_norm, self.lr, self.lr_rest = trained_norm, lr, lr_rest
        self.top = 0.01
        width, norm = tower.width, tower.visual.ln_post
        self.anomaly_token, self.normal_token = (nn.Parameter(0.02 * torch.randn(width)) for _ in range(2))
        self.norm_weight = nn.Parameter(norm.weight.detach().clone())
        self.norm_bias = nn.Parameter(norm.bias.detach().clone())
        names = [f"layer_{layer}" for layer in self.layers]
        self.attentions: Any = nn.ModuleDict({name: SpatialAttention(width, anchors, max_patches) for name in names})
        self.transforms: Any = nn.ModuleDict({name: _mlp(width, dropout) for name in names})
        if weights is not None:
            self.load_weights(weights)

    @property
    def tags(self) -> Tags:
        """Class names do not matter."""
        return Tags(class_names=False)

    # -- image ---------------------------------------------------------------------------------------------

    def norm(self, tokens: Tensor) -> Tensor:
        """Applies the tower's last norm: the trained one in training, and in scoring where asked for."""
        own = self.backbone.image.visual.ln_post
        trained = self.training or self.trained_norm
        weight, bias = (self.norm_weight, self.norm_bias) if trained else (own.weight, own.bias)
        return F.layer_norm(tokens, own.normalized_shape, weight, bias, own.eps)

    def encode(self, images: Tensor) -> Features:
        """Runs the tower with both tokens ahead of its own, so that all attend to each other.

        Returns:
            Patches of each layer (B, h, w, W), and as ``classes`` the anomaly and the normal token (B, W) of the last
            block; all after the last norm. Gradients reach the tokens through the frozen blocks.
        """
        tower = self.backbone.image
        visual = tower.visual
        # Both have the class token's position; the norm ahead of the blocks is token by token.
        tokens = torch.stack([self.anomaly_token, self.normal_token]) + visual.positional_embedding[0]
        with torch.no_grad():
            x = tower.embed(images)
        x = torch.cat([visual.ln_pre(tokens).to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        found = tower.run(x, layers=self.layers)
        grid, last = tower.grid(*images.shape[-2:]), self.norm(found.last[:, :2])
        patches = [self.norm(found.hidden_states[layer][:, 3:]) for layer in self.layers]
        return Features(tuple(level.unflatten(1, grid) for level in patches), classes=(last[:, 0], last[:, 1]))

    # -- scores --------------------------------------------------------------------------------------------

    def told(self, features: Features) -> list[tuple[Tensor, Tensor]]:
        """Returns the anomaly and the normal token (B, W), told of the patches of each layer."""
        pairs = zip(self.attentions.values(), features.levels, strict=True)
        return [attention(level.flatten(1, 2), features.classes) for attention, level in pairs]

    def margins(self, features: Features, told: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Returns how much nearer each patch is to the anomaly token (B, L, h, w): a difference of cosines."""
        found = []
        for transform, level, (anomaly, normal) in zip(self.transforms.values(), features.levels, told, strict=True):
            toward = normalize(anomaly.float()) - normalize(normal.float())
            found.append(torch.einsum("bhwc,bc->bhw", normalize(transform(level).float()), toward))
        return torch.stack(found, dim=1)

    def compare(self, features: Features, text: Any, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Compares patches with both tokens; there is no separate image term."""
        with torch.autocast(features.levels[0].device.type, enabled=False):
            return Scores(self.margins(features, self.told(features)), memory=self.nearest(features, references))

    def map_of(self, scores: Scores, size: tuple[int, int]) -> Tensor:
        """Returns the sum over the layers, upsampled; no temperature, no softmax."""
        return upsample(scores.patches.sum(1), size, align_corners=False)

    def components_of(self, scores: Scores, anomaly_map: Tensor) -> Tensor:
        """Returns the mean of the map's largest hundredth (B, 1)."""
        return self.highest(anomaly_map)[:, None]

    def highest(self, maps: Tensor) -> Tensor:
        """Returns the mean of the largest hundredth of the pixels of maps (B, H, W)."""
        return maps.flatten(1).topk(math.ceil(self.top * maps[0].numel()), dim=1).values.mean(1)

    # -- training ------------------------------------------------------------------------------------------

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns the image's loss, that of two tokens that are too alike, and focal and Dice losses of each layer.

        Anomalous images without a mask only train the image score.
        """
        told = self.told(features)
        size = (batch["mask"].shape[-2], batch["mask"].shape[-1])
        maps = [upsample(one, size, align_corners=False) for one in self.margins(features, told).unbind(1)]
        logits = self.highest(torch.stack(maps).sum(0))
        alike = F.cosine_similarity(*told[-1], dim=-1)
        terms = {
            "image": F.binary_cross_entropy_with_logits(logits, batch["label"].to(logits.dtype)),
            "contrast": (alike + 0.5).clamp(min=0).mean(),
        }
        known = known_masks(batch)
        mask = batch["mask"][known]
        if not len(mask):
            return terms
        focal = [focal_loss(two_classes(one[known]), mask) for one in maps]
        dice = [dice_loss(one[known].sigmoid(), mask) for one in maps]
        return {**terms, "focal": torch.stack(focal).sum(), "dice": torch.stack(dice).sum()}

    def configure_optimizers(self) -> Any:
        """AdamW, the tokens faster; their rate falls to that of the rest along a cosine over the epochs."""
        tokens = [self.anomaly_token, self.normal_token]
        rest = [p for p in self.parameters() if p.requires_grad and all(p is not token for token in tokens)]
        groups = [{"params": tokens, "lr": self.lr}, {"params": rest, "lr": self.lr_rest}]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=0.01)
        epochs = self.trainer.max_epochs if self._trainer is not None else None
        if epochs is None or epochs < 1:
            return optimizer
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=self.lr_rest)
        return {"optimizer": optimizer, "lr_scheduler": cosine}

    def configure_gradient_clipping(self, optimizer: Any, *arguments: Any, **named: Any) -> None:
        """Clips the gradients of each token by itself to length 1; then as the trainer says."""
        for token in (self.anomaly_token, self.normal_token):
            nn.utils.clip_grad_norm_([token], 1.0)
        super().configure_gradient_clipping(optimizer, *arguments, **named)

    # -- published files -----------------------------------------------------------------------------------

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps the authors' names to ours.

        Raises:
            WeightsError: Its layers' transformations are no MLPs, or it is of other layers.
        """
        settings = {name: file[name] for name in ("features_list", "image_size", "transform_type") if name in file}
        _ = [file.get(name) for name in ("epoch", "backbone", "cross_attn_config")]  # told of, and not needed
        if settings.get("transform_type", "mlp") != "mlp":
            raise WeightsError(f"the VisualAD file has transforms of the kind {settings['transform_type']}, not mlp")
        if tuple(settings.get("features_list", self.layers)) != self.layers:
            raise WeightsError(f"the VisualAD file is of layers {settings['features_list']}, not {list(self.layers)}")
        if settings.get("image_size", self.image_size) != self.image_size:
            rank_zero_warn(f"the VisualAD file was trained at {settings['image_size']} px, not {self.image_size}")
        state = {f"{name}_token": file[f"{name}_token"] for name in ("anomaly", "normal")}
        state |= {f"norm_{leaf}": file[f"ln_post_{leaf}"] for leaf in ("weight", "bias")}
        for layer, tensors in file["layer_transforms"].items():
            state |= {f"transforms.{layer}.{key.removeprefix('mlp.')}": value for key, value in tensors.items()}
        for key, value in file["cross_attn"].items():
            state[key.replace("layer_attentions.", "attentions.").replace(".gate.0.", ".gate.")] = value
        return {key: value.float() for key, value in state.items()}


class SpatialAttention(nn.Module):
    """Learned anchors that attend to a layer's patches; each token adds what its gates let through (SCA).

    Attributes:
        anchor_queries: Learned anchors (K, W).
        pos_encoding: Learned positions (1, N, W), by the raster order of the patches.
    """

    def __init__(self, width: int, anchors: int, max_patches: int) -> None:
        """Makes one layer's attention, of one head as wide as the tokens."""
        super().__init__()
        self.anchor_queries = nn.Parameter(0.02 * torch.randn(anchors, width))
        self.pos_encoding = nn.Parameter(0.02 * torch.randn(1, max_patches, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_norm, self.k_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate, self.out_proj = nn.Linear(width, anchors), nn.Linear(width, width)
        self.res_scale = nn.Parameter(torch.tensor([0.01]))

    def forward(self, patches: Tensor, tokens: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Tells tokens (B, W) of patches (B, N, W); returns as many tokens."""
        queries = self.q_norm(self.q_proj(self.anchor_queries))
        keys = self.k_norm(self.k_proj(patches + self.pos_encoding[:, : patches.shape[1]]))
        weights = (queries @ keys.transpose(1, 2) / patches.shape[-1] ** 0.5).softmax(-1)
        seen = weights @ self.v_proj(patches)  # (B, K, W), the same for all tokens
        gates = [self.gate(token).sigmoid()[:, :, None] for token in tokens]
        told = [self.out_proj((gate * seen).sum(1)) for gate in gates]
        return tuple(token + self.res_scale * more for token, more in zip(tokens, told, strict=True))


def _mlp(width: int, dropout: float) -> nn.Sequential:
    """Makes the MLP of one layer's patches, which replaces them."""
    layers = (nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width), nn.Dropout(dropout))
    for linear in (layers[0], layers[3]):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(*layers)
