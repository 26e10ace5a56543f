"""MRAD: a memory bank of labelled auxiliary images with learned projections, and prompts conditioned on it.

Source: Xu et al., "MRAD: Zero-Shot Anomaly Detection with Memory-Driven Retrieval", ICLR 2026, and its published code,
whose numbers are reproduced; where the two differ, the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.clip.blocks import AttentionBranch
from vlad.clip.numerics import Numerics
from vlad.clip.similarity import normalize, upsample
from vlad.encoders import Encoder
from vlad.errors import MethodError
from vlad.methods.learned_prompts import LearnedPrompts, deep_edit, run_sentences, write_words
from vlad.methods.losses import dice_loss, focal_loss, map_losses
from vlad.methods.mrad_memory import LabelledMemory, load_memories, parts_of
from vlad.types import Batch, Features, Scores, known_masks, name_features

__all__ = ["MRAD", "neighbourhood_mean"]


class MRAD(LearnedPrompts):
    """MRAD: a memory bank of normal and anomalous images and regions of an auxiliary dataset.

    The memory bank has one key per auxiliary image, and one each for its normal and its anomalous part. ``tf`` compares
    with it by cosine, ``ft`` with two trained projections, which give map and image score. ``clip`` uses them to split
    an image, adds the features of both parts to the learned words of AnomalyCLIP's two sentences, and uses their map.

    Paper: MRAD, ICLR 2026.
    """

    epochs = 6  # the first trains the projections, the rest the sentences; 1 for ``ft``
    numerics = Numerics(position_resize="bilinear", position_antialias=False)

    def __init__(
        self,
        backbone: str | Encoder = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 518,
        variant: Literal["clip", "ft", "tf"] = "clip",
        weights: str | None = None,
        bank: Sequence[str] | str | None = None,
        local_from: int = 2,
        length: int | None = None,
        depth: int | None = None,
        deep_length: int | None = None,
        image_weight: float = 0.7,
        sigma: float = 4.0,
        half_prompts: bool = True,
        lr: float = 4e-4,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny``.
            pretrained: open_clip weights tag, for plain names; ``random`` for random weights.
            image_size: Side S of the images in pixels; images are resized to a square.
            variant: ``clip``, ``ft``, or ``tf``, which trains nothing and needs a ``bank``.
            weights: Trained parameters: a file in the authors' format, which lacks the memory, one of vlad's
                checkpoints, or a run folder.
            bank: Whose memory is taken: a run folder or checkpoint of MRAD's, or the authors' two files, of images
                (``cache_model_*.pt``) and of patches (``cache_patch_model_*.pt``). A training builds its own.
            local_from: Block at which the local path begins.
            length: Learned words of each sentence; 12 by default. The value stored in ``weights`` takes precedence
                over the default, for this and the next two; all three for ``clip`` alone.
            depth: Blocks of the text tower that learned tokens enter; 9 by default, or all if it has fewer.
            deep_length: Tokens overwritten before each further block, from the first word on; 4 by default.
            image_weight: Weight of the image's own probability in its score; the rest is that of the map's largest
                hundredth.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            half_prompts: Round deep prompts, and their gradients, to half precision, as the published code does.
            lr: Learning rate of Adam.

        Raises:
            MethodError: A setting is out of range.
            WeightsError: ``weights`` or ``bank`` is of another kind.
        """
        super().__init__(backbone=backbone, pretrained=pretrained, image_size=image_size, sigma=sigma)
        tower, text = self.backbone.image, self.text_tower
        if not 1 <= local_from <= tower.depth:
            raise MethodError(f"local_from must be from 1 to {tower.depth}, got {local_from}")
        if not 0 <= image_weight <= 1:
            raise MethodError(f"image_weight must lie between 0 and 1, got {image_weight}")
        self.variant, self.local_from, self.image_weight, self.lr = variant, local_from, image_weight, lr
        self.layers = (tower.depth,)
        self.temperature, self.top = 0.07, 0.01
        self.stages: tuple[str, ...] = {"clip": ("ft", "clip"), "ft": ("ft",), "tf": ()}[variant]
        self.stage = ""  # which is trained; "" goes by the epoch
        joint = None if variant == "tf" else tower.embed_dim
        images, patches = LabelledMemory(tower.embed_dim, joint, 0.95), LabelledMemory(tower.width, joint, 0.8)
        self.memories: Any = nn.ModuleDict({"images": images, "patches": patches})
        if variant == "clip":
            weights = self.build_prompts(weights, length, depth, deep_length, half_prompts)
            self.normal_word, self.abnormal_word = (nn.Linear(tower.embed_dim, text.width) for _ in range(2))
        if bank is not None:
            load_memories([bank] if isinstance(bank, str) else list(bank), {"images": images, "patches": patches})
            self.hparams["bank"] = None  # a checkpoint holds the memory, and comes without the file
        if weights is not None:
            self.load_weights(weights)

    @property
    def is_empty(self) -> bool:
        """Whether the memory bank is empty."""
        return not len(self.memories["images"])

    def refuse_unfit(self) -> None:
        """Raises MethodError if the method is untrained or has no memory bank."""
        super().refuse_unfit()
        if self.is_empty and not self.allow_untrained:
            raise MethodError("MRAD has no memory: give bank (a run, a checkpoint, or the authors' two files)")

    def texts(self, class_names: Sequence[str]) -> None:
        """Returns None: sentences depend on the image, not on class names."""
        return

    # -- memory --------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Builds the memory bank from the training images, unless a checkpoint contained it.

        Raises:
            MethodError: Several processes share the images.
        """
        super().on_train_start()
        if not self.is_empty:
            return
        if self.trainer.world_size > 1:
            raise MethodError("MRAD builds its memory of all training images in one process: --trainer.devices 1")
        loader: Any = self.trainer.train_dataloader
        self.build_memory(self.transfer_batch_to_device(batch, self.device, 0) for batch in loader)

    @torch.no_grad()
    def build_memory(self, batches: Iterable[Batch]) -> None:
        """Remembers labelled images: a key of each, and keys of the normal and the anomalous part of its patches.

        Args:
            batches: Batches with ``image``, ``label`` and ``mask``; parts of anomalous images without a mask are left
                out.
        """
        images, labels, parts = [], [], []
        for batch in batches:
            features, known = self.encode(batch["image"]), known_masks(batch)
            assert features.image is not None
            images.append(normalize(features.image.float()))
            labels.append(batch["label"])
            parts.append(parts_of(neighbourhood_mean(features.levels[0].float())[known], batch["mask"][known]))
        self.memories["images"].fill(torch.cat(images), torch.cat(labels))
        self.memories["patches"].fill(*(torch.cat(column) for column in zip(*parts, strict=True)))

    # -- image ---------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Features:
        """Runs both paths: the local one's patches ahead of the projection, and the class token without ``ln_post``."""
        tower = self.backbone.image

        def run(images: Tensor) -> Features:
            branch = AttentionBranch(first=self.local_from)
            tokens = tower.run(tower.embed(images), branch=branch, branch_layers=[tower.depth], class_token_only=True)
            patches = tower.visual.ln_post(tokens.branch[tower.depth][:, 1:])
            grid = tower.grid(*images.shape[-2:])
            return Features((patches.unflatten(1, grid),), tower.project(tokens.last[:, 0], norm=False))

        patches = f"normed vv patches {tower.depth} from {self.local_from}"
        return self.frozen(images, run, name_features(levels=(patches,), image="class, projected without norm"))

    def image_text(self, joint: Tensor, abnormal: Tensor) -> Tensor:
        """Encodes both sentences with what the normal and the anomalous side of an image are like in their words.

        Args:
            joint: Patches in the joint space (B, h, w, D), unit length.
            abnormal: Probability of the patches of being anomalous (B, h, w).

        Returns:
            Unit text vectors (B, 2, D).
        """
        sides = (abnormal <= 0.5, abnormal > 0.5)
        means = [(joint * side[..., None]).sum((1, 2)) / side.sum((1, 2)).clamp(min=1)[:, None] for side in sides]
        bias = torch.stack([self.normal_word(means[0]), self.abnormal_word(means[1])], dim=1)
        tower, count = self.text_tower, joint.shape[0]
        ids, ends = self.tokenized()
        words = (self.words + bias[:, :, None]).flatten(0, 1)
        edit = deep_edit(self.deep_prompts, 2 * count, half=self.half_prompts)
        sentences = write_words(tower.embed(ids).repeat(count, 1, 1), words)
        text = run_sentences(tower, sentences, ends, edit)
        return normalize(text.float()).unflatten(0, (count, 2))

    # -- scores --------------------------------------------------------------------------------------------

    def compare(self, features: Features, text: None, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Asks the memory about patches and image; ``clip`` compares the patches with sentences told of the answer.

        Returns:
            Probabilities of the patches (B, 1, h, w) and of the image (B, 1) of being anomalous.
        """
        assert features.image is not None
        with torch.autocast(features.image.device.type, enabled=False):
            patches, joint = self.patches_of(features)
            image = self.memories["images"](normalize(features.image.float()))[:, None]
            abnormal = self.memories["patches"](patches)
            if self.variant == "clip":
                abnormal = self.text_probabilities(joint, abnormal)
        return Scores(abnormal[:, None], image, self.nearest(features, references))

    def patches_of(self, features: Features) -> tuple[Tensor, Tensor]:
        """Returns patches averaged over their neighbours, unit vectors: of the tower (B, h, w, W), and joint ones."""
        mean = neighbourhood_mean(features.levels[0].float())
        return normalize(mean), normalize(mean @ self.backbone.image.visual.proj.float())

    def text_probabilities(self, joint: Tensor, abnormal: Tensor) -> Tensor:
        """Returns the probability of patches (B, h, w) by the sentences of their image."""
        text = self.image_text(joint, abnormal)
        return torch.einsum("bhwd,bd->bhw", joint, (text[:, 1] - text[:, 0]) / self.temperature).sigmoid()

    def components_of(self, scores: Scores, anomaly_map: Tensor) -> Tensor:
        """Returns the weighted mean of the map's largest hundredth, and the image's probability (B, 2)."""
        assert scores.image is not None
        highest = anomaly_map.flatten(1).topk(max(1, int(self.top * anomaly_map[0].numel())), dim=1).values
        share = self.image_weight
        return torch.cat([(1 - share) * highest.mean(1, keepdim=True), share * scores.image], dim=1)

    # -- training ------------------------------------------------------------------------------------------

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns the losses of the projections in the first epoch, and those of the sentences in further ones.

        Anomalous images without a mask teach the image's probability alone.
        """
        assert features.image is not None
        if self.is_empty:  # nothing was built ahead, as a trainer does
            self.build_memory([batch])
        known = known_masks(batch)
        mask = batch["mask"][known]
        size = (mask.shape[-2], mask.shape[-1])
        patches, joint = self.patches_of(features)
        stage = self.stage or self.stages[-1 if self.current_epoch else 0]
        abnormal = self.memories["patches"](patches)[known]
        if stage == "clip":
            abnormal = self.text_probabilities(joint[known], abnormal.detach())
            if not len(mask):
                return {"focal": 0 * abnormal.sum()}
            maps = upsample(abnormal, size, align_corners=False)
            return map_losses([(1 - maps, maps)], mask)
        image = self.memories["images"](normalize(features.image.float()))
        # Probabilities as logits: anomalous less normal.
        logits, label = (2 * image - 1) / self.temperature, batch["label"].to(image.dtype)
        terms = {"image": F.binary_cross_entropy_with_logits(logits, label)}
        if not len(mask):
            return {**terms, "focal": 0 * abnormal.sum()}
        maps = upsample(abnormal, size, align_corners=False)
        focal = focal_loss(torch.stack([1 - maps, maps], dim=1), mask)
        return {**terms, "focal": focal, "dice": dice_loss(maps, mask)}

    def configure_optimizers(self) -> Any:
        """Adam with the betas of GANs; for ``ft`` with a cosine over its steps, as published."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self.lr, betas=(0.5, 0.999))
        if self.variant != "ft" or self._trainer is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-6)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    # -- published files -----------------------------------------------------------------------------------

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps the published names ``prompt_learner``, ``prompt_proj``, ``image_proj`` and ``patch_proj`` to ours."""
        places = {
            "image_proj": {"mlp1": "memories.images.queries", "mlp2": "memories.images.reading"},
            "patch_proj": {"fc.0": "memories.patches.queries", "fc.1": "memories.patches.reading"},
        }
        state = {}
        if self.variant == "clip":
            state = super().published_state(file)
            places["prompt_proj"] = {"mlp1": "normal_word", "mlp2": "abnormal_word"}
        for part, names in places.items():
            for theirs, own in names.items():
                state |= {f"{own}.{leaf}": file[part][f"{theirs}.{leaf}"].float() for leaf in ("weight", "bias")}
        return state


def neighbourhood_mean(patches: Tensor) -> Tensor:
    """Averages patches (B, h, w, W) over windows of 1, 3 and 5; zeros beyond the border count."""
    x = patches.permute(0, 3, 1, 2)
    pooled = [x, *(F.avg_pool2d(x, side, 1, side // 2) for side in (3, 5))]
    return (torch.stack(pooled).sum(0) / 3).permute(0, 2, 3, 1)
