"""AdaCLIP: learnable prompts in both towers, some fixed and some made from each image.

Source: Cao et al., "AdaCLIP: Adapting CLIP with Hybrid Learnable Prompts for Zero-Shot Anomaly Detection", ECCV
2024, arXiv 2407.15795, and its published code, whose numbers are reproduced; where code and paper differ, the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.clip.blocks import TokenEdit, causal_mask, run_blocks
from vlad.clip.numerics import Numerics
from vlad.clip.prompt_tokens import append_prompts, overwrite_prompts
from vlad.clip.similarity import normalize, to_grid, upsample
from vlad.clip.text import PackedSentences, pack_sentences
from vlad.errors import MethodError
from vlad.methods.adaclip_published import published_state, read_settings
from vlad.methods.base import Method
from vlad.methods.fusion import Clustering, fuse
from vlad.methods.losses import dice_loss, focal_loss
from vlad.prompts import load_prompts
from vlad.types import Batch, Prediction, known_masks
from vlad.weights import Published, locate, read_file

__all__ = ["AdaCLIP"]

PromptType = Literal["SD", "S", "D", "none"]
Branch = Literal["VL", "V", "L"]


class AdaCLIP(Method):
    """AdaCLIP: static and dynamic prompts in CLIP's image and text tower, hybrid semantic fusion.

    Static prompts (S) are learned per block; dynamic ones (D) are linear maps of the image's own CLIP embedding. In
    the image tower (branch V) they are tokens beside the patches; in the text tower (branch L) they take the place
    of the first words. Any batch size gives what single images give, in every combination.

    Paper: AdaCLIP, arXiv 2407.15795.
    """

    epochs = 5
    numerics = Numerics(activation="gelu", position_antialias=False)  # how the released prompts were trained
    published_weights = {  # noqa: RUF012 - never edited
        name: Published("Caoyunkang/AdaCLIP", f"weights/pretrained_{name}.pth", sha256, "space")
        for name, sha256 in {
            "mvtec_colondb": "be51a42c052bd4cf060e54f503a1f5d0b2a3b899bc8dc2e243042f18b215427e",
            "visa_clinicdb": "3deabbbaf1e412cfdfcb42923a500b986f4b9ee96ccbc7a735d89dbc87df44c8",
            "all": "33e8d3db1cb4aab030866b8b70a46e10aa27ebf2c23b5463cb07f2574addd98c",
        }.items()
    }

    def __init__(
        self,
        backbone: str = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 518,
        weights: str | None = None,
        prompt_type: PromptType | None = None,
        branch: Branch | None = None,
        depth: int | None = None,
        length: int | None = None,
        fusion: bool = True,
        clusters: int = 20,
        clustering: Clustering = "fixed",
        sigma: float = 4.0,
        dice: Literal["image", "row"] = "image",
        half_prompts: bool = False,
        lr: float = 0.01,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny``.
            pretrained: open_clip weights tag, for plain names; null gives random weights.
            image_size: Side S of the images in pixels; they are squashed to a square.
            weights: Trained prompts and layers: the authors' by name (``mvtec_colondb`` for tests on other sets,
                ``visa_clinicdb`` for MVTec AD and ColonDB, ``all`` for your own images, not for benchmarks) or as a
                file, one of vlad's checkpoints, or a run folder.
            prompt_type: Static and dynamic prompts (``SD``, the default), one of them, or ``none``. What weights
                were trained with takes precedence over the default, for this and the next three.
            branch: Towers with prompts: image and text (``VL``, the default), ``V`` or ``L``.
            depth: Blocks J whose prompts are renewed; 4 by default. The text tower's first block has none.
            length: Prompt tokens M; 5 by default.
            fusion: Whether the image score sees the fused abnormal patches; without, the image embedding alone.
            clusters: Groups K of the fusion; the 5 K most abnormal patches take part.
            clustering: ``fixed`` depends on the image alone; ``sklearn`` draws as published.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            dice: ``image``: one Dice coefficient per image. ``row``: one per row of pixels, as the published
                training computes it by a slip at its batch size of one.
            half_prompts: Round prompts to half precision, as the published code does.
            lr: Learning rate of AdamW.
        """
        super().__init__(backbone=backbone, pretrained=pretrained, image_size=image_size, sigma=sigma)
        image, text = self.backbone.image, self.text_tower
        if image.depth < 4:
            raise MethodError(f"AdaCLIP reads four blocks; this CLIP has {image.depth}")
        self.layers = tuple(image.depth // 4 * k for k in (1, 2, 3, 4))
        weights = weights and str(locate(weights, self.published_weights))
        known = read_settings(read_file(weights), weights) if weights else {}
        self.prompt_type: PromptType = prompt_type or known.get("prompt_type", "SD")
        self.branch: Branch = branch or known.get("branch", "VL")
        self.depth: int = known.get("depth", 4) if depth is None else depth
        self.length: int = known.get("length", 5) if length is None else length
        # What was read off a file is known to a checkpoint, which comes without it.
        self.hparams.update({name: getattr(self, name) for name in ("prompt_type", "branch", "depth", "length")})
        deepest = min(tower.depth for tower, letter in ((image, "V"), (text, "L")) if letter in self.branch)
        if not 1 <= self.depth <= deepest:
            raise MethodError(f"depth must be from 1 to {deepest}, got {self.depth}")
        if self.length < 1 or clusters < 1:
            raise MethodError(f"length and clusters must be at least 1, got {self.length} and {clusters}")
        self.fusion, self.clusters, self.clustering = fusion, clusters, clustering
        self.dice, self.half_prompts, self.lr = dice, half_prompts, lr
        self.prompts = load_prompts("adaclip")
        self._first: dict[str, PackedSentences] = {}
        self._plain: dict[int, Tensor] = {}
        self._static_text: tuple[tuple[int, ...], dict[str, Tensor]] = ((), {})

        size = image.embed_dim
        self.patch_heads = nn.ModuleList(nn.Linear(image.width, size) for _ in self.layers)
        self.class_head = nn.Linear(size, size)
        visual = range(1, self.depth + 1) if "V" in self.branch else ()
        textual = range(2, self.depth + 1) if "L" in self.branch else ()  # the published first one is never used
        if "S" in self.prompt_type:
            self.visual_static = _prompts(visual, self.length, image.width)
            self.text_static = _prompts(textual, self.length, text.width)
        if "D" in self.prompt_type and visual:
            self.visual_dynamic = nn.Linear(size, self.length * image.width)
        if "D" in self.prompt_type and textual:
            self.text_dynamic = nn.Linear(size, self.length * text.width)
        self._blocks = {"visual": tuple(visual), "text": tuple(textual)}
        if weights is not None:
            self.load_weights(weights)

    # -- prompts -------------------------------------------------------------------------------------------

    def branch_prompts(self, tower: Literal["visual", "text"], feature: Tensor | None) -> dict[int, Tensor]:
        """Returns the prompts of a tower: block number → (M, W), or (B, M, W) where they depend on the image.

        Args:
            tower: Which tower.
            feature: The images' own CLIP embeddings (B, D), for dynamic prompts.
        """
        prompts: dict[int, Tensor] = {}
        for block in self._blocks[tower] if self.prompt_type != "none" else ():
            parts = []
            if "S" in self.prompt_type:
                parts.append(getattr(self, f"{tower}_static")[f"block_{block}"])
            if "D" in self.prompt_type:
                assert feature is not None
                parts.append(getattr(self, f"{tower}_dynamic")(feature).unflatten(1, (self.length, -1)))
            prompt = torch.stack(torch.broadcast_tensors(*parts)).sum(0)
            prompts[block] = prompt.half().to(prompt.dtype) if self.half_prompts else prompt
        return prompts

    @torch.no_grad()
    def image_feature(self, images: Tensor, x: Tensor) -> Tensor:
        """Computes the images' ordinary CLIP embeddings (B, D), not normalised.

        In training they are kept by the images' content: they are the same in every epoch.

        Args:
            images: Normalised images (B, 3, S, S).
            x: The same, embedded as tokens (B, 1 + n, W).
        """
        tower = self.backbone.image
        if not self.training:
            return tower.encode_tokens(x)
        keys = [hash(image.float().cpu().numpy().tobytes()) for image in images]
        new = [row for row, key in enumerate(keys) if key not in self._plain]
        if len(self._plain) + len(new) > 100_000:
            self._plain.clear()
            new = list(range(len(keys)))
        if new:
            for row, feature in zip(new, tower.encode_tokens(x[new]), strict=True):
                self._plain[keys[row]] = feature.float().cpu()
        return torch.stack([self._plain[key] for key in keys]).to(images.device)

    # -- towers --------------------------------------------------------------------------------------------

    def encode_image(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Runs the image tower with its prompts.

        Args:
            images: Normalised images (B, 3, S, S).

        Returns:
            Tokens of the four layers (B, 1 + n, W), class token first; the image embedding (B, D); and the ordinary
            CLIP embedding (B, D) that dynamic prompts are made of, None where there are none.
        """
        tower = self.backbone.image
        dynamic = "D" in self.prompt_type
        if not self._blocks["visual"] or self.prompt_type == "none":
            with torch.no_grad():  # nothing learned in here: one ordinary pass gives both embeddings
                tokens = tower.run(tower.embed(images), layers=self.layers)
                pooled = tower.project(tokens.last[:, 0])
            return [tokens.hidden_states[layer] for layer in self.layers], pooled, pooled if dynamic else None
        x = tower.embed(images)
        feature = self.image_feature(images, x) if dynamic else None
        count = x.shape[1]
        edit = append_prompts(self.branch_prompts("visual", feature), count)
        tokens = tower.run(x, layers=self.layers, before=edit)
        return (
            [tokens.hidden_states[layer][:, :count] for layer in self.layers],
            tower.project(tokens.last[:, 0]),
            feature,
        )

    def encode_text(self, class_names: Sequence[str], feature: Tensor | None) -> Tensor:
        """Encodes each image's sentences, prompts in place: unit vectors (B, 2, D), normal and abnormal.

        Args:
            class_names: What is in each image.
            feature: The images' ordinary CLIP embeddings (B, D), for dynamic prompts.
        """
        if not self._blocks["text"] or self.prompt_type == "none":
            return self.texts(class_names)
        prompts = self.branch_prompts("text", feature)
        if "D" in self.prompt_type:
            return self._prompted_text(class_names, prompts)
        if self.training:
            different = list(dict.fromkeys(class_names))
            found = dict(zip(different, self._prompted_text(different, prompts), strict=True))
        else:  # static prompts: a class's vectors stay what they are until the prompts change
            version = tuple(prompt._version for prompt in self.text_static.values())
            if self._static_text[0] != version:
                self._static_text = (version, {})
            found = self._static_text[1]
            if new := [name for name in dict.fromkeys(class_names) if name not in found]:
                found.update(zip(new, self._prompted_text(new, prompts), strict=True))
        return torch.stack([found[name].to(self.device) for name in class_names])

    def _prompted_text(self, class_names: Sequence[str], prompts: dict[int, Tensor]) -> Tensor:
        """Runs the text tower from its second block on; before that nothing is learned, and classes are kept."""
        tower = self.text_tower
        packed = PackedSentences.stack([self._start(name) for name in class_names])
        edit = overwrite_prompts(prompts)
        shifted: TokenEdit = lambda number, x: edit(number + 1, x)  # noqa: E731
        x = run_blocks(tower.text.transformer.resblocks[1:], packed.tokens, mask=packed.mask, before=shifted).last
        sentences = normalize(tower.finish(x, packed.ends).float())
        normal = len(self.prompts.normal) * len(self.prompts.templates)
        return normalize(torch.stack([sentences[:, :normal].mean(1), sentences[:, normal:].mean(1)], dim=1))

    @torch.no_grad()
    def _start(self, class_name: str) -> PackedSentences:
        """Returns a class's sentences after the first block.

        From the second block on they share the start token and, once the prompts have taken their place, the words
        after it.
        """
        if class_name not in self._first:
            tower = self.text_tower
            ids = tower.tokenize(self._sentences(class_name))
            ends = tower.ends(ids)
            length = int(ends.max()) + 1
            with torch.autocast(self.device.type, enabled=False):
                x = tower.embed(ids[:, :length]) + tower.text.positional_embedding[:length]
                x = run_blocks(tower.text.transformer.resblocks[:1], x, mask=causal_mask(length, x)).last
            self._first[class_name] = pack_sentences(x, ends, 1 + self.length)
        return PackedSentences(*(part.to(self.device) for part in self._first[class_name]))

    def _sentences(self, class_name: str) -> list[str]:
        normal, abnormal = self.prompts.sentences(class_name.replace("-", " "))
        return [*normal, *abnormal]

    def class_text(self, class_name: str) -> Tensor:
        """Returns a class's two text vectors (2, D) without prompts, unit length: normal, abnormal."""
        rows = normalize(self.text_tower.encode(self._sentences(class_name)).float())
        normal = len(self.prompts.normal) * len(self.prompts.templates)
        return normalize(torch.stack([rows[:normal].mean(0), rows[normal:].mean(0)]))

    # -- scores --------------------------------------------------------------------------------------------

    def compare(
        self, images: Tensor, class_names: Sequence[str], *, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compares an image's patches and its whole with its sentences.

        Args:
            images: Normalised images (B, 3, S, S).
            class_names: What is in each image.
            labels: Groups of the fusion's patches, in place of clustering.

        Returns:
            Logit margins (abnormal over normal) of the patches per layer (4, B, n), and of the images (B,).
        """
        tokens, pooled, feature = self.encode_image(images)
        text = self.encode_text(class_names, feature)
        toward = 100 * (text[:, 1] - text[:, 0]).float()
        heads = zip(self.patch_heads, tokens, strict=True)
        patches = torch.stack([normalize(head(layer[:, 1:]).float()) for head, layer in heads])
        with torch.autocast(images.device.type, enabled=False):
            margins = torch.einsum("lbnd,bd->lbn", patches, toward)
            whole = normalize(self.class_head(pooled.float()))
            if self.fusion:
                fused = fuse(patches, margins.mean(0), self.clusters, clustering=self.clustering, labels=labels)
                whole = normalize(0.2 * fused + 0.8 * whole)
            return margins, (whole * toward).sum(1)

    def score(self, images: Tensor, class_names: list[str]) -> Prediction:
        """Scores images; see :meth:`vlad.Method.score`."""
        margins, whole = self.compare(images, class_names)
        # The mean of upsampled logits is the upsampled mean; a softmax over two is the sigmoid of their difference.
        unsmoothed_map = upsample(to_grid(margins.mean(0)), images.shape[-1], align_corners=True).sigmoid()
        return Prediction(unsmoothed_map, self.smooth(unsmoothed_map), whole.sigmoid())

    # -- training ------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the focal loss of the images, and focal and Dice losses of the maps summed over the layers.

        Anomalous images without a mask teach the image score alone; published code counts all their pixels as normal.
        """
        margins, whole = self.compare(batch["image"], batch["class_name"])
        known = known_masks(batch)
        return self.losses(margins[:, known], whole, batch["mask"][known], batch["label"])

    def losses(self, margins: Tensor, whole: Tensor, mask: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Computes the terms of the loss.

        Args:
            margins: Logit margins of the patches per layer (4, M, n), of the images whose masks are known.
            whole: Logit margins of the images (B,).
            mask: True where anomalous (M, S, S).
            label: 1 for anomalous images (B,).
        """
        if not len(mask):
            nothing = 0 * margins.sum()
            return {
                "image": focal_loss(_both(whole), label),
                **dict.fromkeys(("focal", "dice", "dice_normal"), nothing),
            }
        rows = (lambda x: x.flatten(0, 1).unsqueeze(1)) if self.dice == "row" else (lambda x: x)
        terms: dict[str, list[Tensor]] = {"focal": [], "dice": [], "dice_normal": []}
        for margin in margins:
            probabilities = _both(upsample(to_grid(margin), mask.shape[-1], align_corners=True))
            terms["focal"].append(focal_loss(probabilities, mask))
            terms["dice"].append(dice_loss(rows(probabilities[:, 1]), rows(mask)))
            terms["dice_normal"].append(dice_loss(rows(probabilities[:, 0]), rows(~mask.bool())))
        summed = {name: torch.stack(values).sum() for name, values in terms.items()}
        return {"image": focal_loss(_both(whole), label), **summed}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over prompts and layers, no schedule, as published."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.lr, betas=(0.5, 0.999), weight_decay=0.01)

    # -- published files -----------------------------------------------------------------------------------

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps the published names ``clip_model.*`` to ours; every key must have its place."""
        return published_state(file, self.prompt_type, self._blocks, self.length, len(self.layers))


def _both(margin: Tensor) -> Tensor:
    """Returns the probabilities of normal and abnormal (B, 2, …) from logit margins (B, …)."""
    return torch.stack([F.sigmoid(-margin), F.sigmoid(margin)], dim=1)


def _prompts(blocks: Sequence[int], length: int, width: int) -> nn.ParameterDict:
    return nn.ParameterDict({f"block_{block}": nn.Parameter(0.02 * torch.randn(length, width)) for block in blocks})
