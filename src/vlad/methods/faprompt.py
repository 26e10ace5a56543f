"""FAPrompt: ten abnormal sentences and a normal one, conditioned on the image, in two passes.

Source: Zhu et al., "Fine-grained Abnormality Prompt Learning for Zero-shot Anomaly Detection", ICCV 2025, arXiv
2410.10289, and its published code, whose numbers are reproduced; where code and paper differ, the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.checkpoint import hyperparameters, read_file
from vlad.clip.numerics import Numerics
from vlad.clip.similarity import normalize, restrict_patches, upsample
from vlad.encoders import Encoder
from vlad.errors import MethodError
from vlad.methods.learned_prompts import (
    LearnedText,
    check_text,
    deep_edit,
    deep_prompts,
    deep_state,
    run_sentences,
    write_words,
)
from vlad.methods.losses import map_losses
from vlad.methods.two_paths import two_paths
from vlad.published import locate
from vlad.types import Batch, Features, Scores, Tags, known_masks

__all__ = ["FAPrompt", "FineText"]

_SETTINGS = ("normal_length", "abnormal_length", "abnormal_prompts", "prior_patches", "depth", "deep_length")


class FineText(NamedTuple):
    """The text before the image's prior is added; with a leading batch dimension if there is one.

    Attributes:
        vectors: Unit vectors (2, D): the normal sentence, and the mean of the abnormal ones.
        abnormal: The abnormal sentences (K, D), not normalised.
        words: Their words (K, L, W), to which the image's prior is added.
    """

    vectors: Tensor
    abnormal: Tensor
    words: Tensor


class FAPrompt(LearnedText):
    """FAPrompt: compound abnormality prompts, and a prior from the image's own patches that is added to them.

    The normal sentence has five learned words; each of ten abnormal ones has the same five and two more. Their mean is
    the abnormal vector. In a second pass a small network turns ten patches of the image into one vector, which is
    added to those two words. Maps of both passes are averaged. Everything else of the image is as in AnomalyCLIP.

    Paper: FAPrompt, arXiv 2410.10289.
    """

    epochs = 15
    numerics = Numerics(position_resize="bilinear", position_antialias=False)

    def __init__(
        self,
        backbone: str | Encoder = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 518,
        weights: str | None = None,
        local_from: int | None = None,
        normal_length: int | None = None,
        abnormal_length: int | None = None,
        abnormal_prompts: int | None = None,
        prior_patches: int | None = None,
        depth: int | None = None,
        deep_length: int | None = None,
        prior: Literal["first", "most_anomalous"] = "first",
        temperature: float = 0.07,
        sigma: float = 10.0,
        half_prompts: bool = True,
        lr: float = 1e-3,
    ) -> None:
        """Builds the method on a frozen CLIP.

        Args:
            backbone: open_clip name, ``hf-hub:org/repo``, ``local-dir:folder`` or ``vlad-tiny``.
            pretrained: open_clip weights tag, for plain names; ``random`` for random weights.
            image_size: Side S of the images in pixels; images are resized to a square.
            weights: Trained prompts: a file in the format of the authors' code (they have published none), one of
                vlad's checkpoints, or a run folder.
            local_from: Block at which the local path begins; by default at a quarter of the depth, 6 of 24 as
                published.
            normal_length: Learned words of every sentence; 5 by default. What weights were trained with takes
                precedence over the default, for this and the next five.
            abnormal_length: Further learned words of each abnormal sentence; 2 by default.
            abnormal_prompts: Abnormal sentences K; 10 by default.
            prior_patches: Patches that the prior is computed from; 10 by default.
            depth: Blocks of the text tower that learned tokens enter; 9 by default, or all if it has fewer.
            deep_length: Tokens that are overwritten before each further block; 4 by default.
            prior: Which patches the prior is computed from. ``first``: the first ones of the top row, as in the
                published code, also in training. ``most_anomalous``: those with the highest probability in the first
                pass, the highest first, as in the paper.
            temperature: Divisor of the cosines.
            sigma: Standard deviation in pixels of the Gaussian over the map.
            half_prompts: Round deep prompts, and their gradients, to half precision, as the published code does.
            lr: Learning rate of Adam.
        """
        super().__init__(backbone=backbone, pretrained=pretrained, image_size=image_size, sigma=sigma)
        image, text = self.backbone.image, self.text_tower
        self.layers = (image.depth,)
        self.local_from = max(1, image.depth // 4) if local_from is None else local_from
        weights = weights and str(locate(weights, self.published_weights))
        known = _read_settings(read_file(weights), image.embed_dim) if weights else {}
        defaults = (5, 2, 10, 10, min(9, text.depth), min(4, normal_length or 5))
        given = (normal_length, abnormal_length, abnormal_prompts, prior_patches, depth, deep_length)
        settings = {
            name: known.get(name, default) if value is None else value
            for name, value, default in zip(_SETTINGS, given, defaults, strict=True)
        }
        self.hparams.update(settings)  # what was read off a file is known to a checkpoint, which comes without it
        self.normal_length, self.abnormal_length = settings["normal_length"], settings["abnormal_length"]
        self.abnormal_prompts, self.prior_patches = settings["abnormal_prompts"], settings["prior_patches"]
        self.depth, self.deep_length = settings["depth"], settings["deep_length"]
        self._check_settings()
        self.prior, self.temperature, self.half_prompts, self.lr = prior, temperature, half_prompts, lr
        self.normal_words = nn.Parameter(0.02 * torch.randn(self.normal_length, text.width))
        self.abnormal_words = nn.Parameter(0.02 * torch.randn(self.abnormal_prompts, self.abnormal_length, text.width))
        self.deep_prompts = deep_prompts(self.depth, self.deep_length, text.width)
        patches = self.prior_patches * image.embed_dim
        self.meta_net = nn.Sequential(
            nn.Linear(patches, patches // 16), nn.ReLU(), nn.Linear(patches // 16, text.width)
        )
        if weights is not None:
            self.load_weights(weights)

    def _check_settings(self) -> None:
        depth, grid = self.text_tower.depth, self.backbone.grid(self.image_size, self.image_size)
        if self.local_from < 1 or self.local_from > self.backbone.depth:
            raise MethodError(f"local_from must be from 1 to {self.backbone.depth}, got {self.local_from}")
        if not 1 <= self.depth <= depth:
            raise MethodError(f"depth must be from 1 to {depth}, got {self.depth}")
        words, longest = self.normal_length + self.abnormal_length, self.text_tower.context_length - 5
        if min(self.normal_length, self.abnormal_length, self.abnormal_prompts) < 1 or words > longest:
            raise MethodError(
                f"normal_length, abnormal_length and abnormal_prompts must be at least 1, and both lengths together at "
                f"most {longest}; got {self.normal_length}, {self.abnormal_length} and {self.abnormal_prompts}"
            )
        if not 1 <= self.deep_length <= self.normal_length:
            raise MethodError(
                f"deep_length must be from 1 to normal_length, which is {self.normal_length}; got {self.deep_length}"
            )
        if not 1 <= self.prior_patches <= grid[0] * grid[1]:
            raise MethodError(
                f"prior_patches must be from 1 to the {grid[0] * grid[1]} patches of an image of {self.image_size} "
                f"pixels, got {self.prior_patches}"
            )

    @property
    def tags(self) -> Tags:
        """Class names do not matter."""
        return Tags(class_names=False)

    # -- text ----------------------------------------------------------------------------------------------

    def sentences(self) -> list[str]:
        """Returns the normal and the abnormal sentence, with letters in place of learned words."""
        common, further = " ".join(["N"] * self.normal_length), " ".join(["A"] * self.abnormal_length)
        return [f"{common} object.", f"{common} {further} damaged object."]

    def _run(self, words: Tensor, ends: Sequence[int]) -> Tensor:
        edit = deep_edit(self.deep_prompts, words.shape[0], half=self.half_prompts)
        return run_sentences(self.text_tower, words, ends, edit).float()

    def _ends(self) -> tuple[int, int]:
        """Returns where the normal and an abnormal sentence end: after start, words, damaged, object and "."."""
        return 3 + self.normal_length, 4 + self.normal_length + self.abnormal_length

    def class_text(self, class_name: str) -> FineText:
        """Returns the text before images' priors are added, the same for every class."""
        tower, count = self.text_tower, self.abnormal_prompts
        ids = tower.tokenize(self.sentences())
        normal, abnormal = self._ends()
        fixed = tower.embed(ids)[:, : abnormal + 1]
        common = self.normal_words.expand(1 + count, -1, -1)
        words = write_words(fixed[[0] + [1] * count], common)
        words = torch.cat([words[:1], write_words(words[1:], self.abnormal_words, 1 + self.normal_length)])
        features = self._run(words, [normal, *[abnormal] * count])
        vectors = normalize(torch.stack([features[0], features[1:].mean(0)]))
        return FineText(vectors, features[1:], words[1:])

    def image_vectors(self, text: FineText, prior: Tensor) -> Tensor:
        """Returns the abnormal vector of each image (B, D), unit length: a mean of sentences, as in the first pass.

        Args:
            text: Output of :meth:`texts`.
            prior: Vector added to the further words of all abnormal sentences (B, W).
        """
        first, count = 1 + self.normal_length, self.abnormal_length
        moved = text.words[:, :, first : first + count] + prior[:, None, None]
        words = torch.cat([text.words[:, :, :first], moved, text.words[:, :, first + count :]], dim=2)
        features = self._run(words.flatten(0, 1), [self._ends()[1]])
        return normalize(features.unflatten(0, (words.shape[0], -1)).mean(1))

    # -- image ---------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Features:
        """Runs both paths, like AnomalyCLIP: local patches, and the class token without ``ln_post``."""
        return two_paths(self, images, self.layers, self.local_from)

    def image_prior(self, patches: Tensor, margin: Tensor) -> Tensor:
        """Returns the vector that an image adds to the abnormal words (B, W).

        Args:
            patches: Unit vectors of the patches (B, h, w, D).
            margin: Logit margins of the first pass (B, h, w).
        """
        patches, count = patches.flatten(1, 2), self.prior_patches
        if self.prior == "most_anomalous":
            chosen = margin.flatten(1).topk(count, dim=1).indices
            some = patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[-1]))
        else:
            some = patches[:, :count]
        return self.meta_net(some.flatten(1))

    def compare(self, features: Features, text: FineText, references: tuple[Tensor, ...] | None = None) -> Scores:
        """Compares patches in both passes, and the whole image in the second.

        Returns:
            Logit margins (abnormal over normal) of the patches in both passes (B, 2, h, w), and of the image (B, 1).
        """
        return self._passes(features, text)[0]._replace(memory=self.nearest(features, references))

    def _passes(self, features: Features, text: FineText) -> tuple[Scores, Tensor]:
        """Returns the scores and the prior of each image (B, W)."""
        assert features.image is not None
        normal, abnormal = text.vectors.unbind(1)
        with torch.autocast(normal.device.type, enabled=False):
            patches, image = normalize(features.levels[0].float()), normalize(features.image.float())
            first = torch.einsum("bhwd,bd->bhw", patches, (abnormal - normal) / self.temperature)
            prior = self.image_prior(patches, first)
            toward = (self.image_vectors(text, prior) - normal) / self.temperature
            second = torch.einsum("bhwd,bd->bhw", patches, toward)
            return Scores(torch.stack([first, second], dim=1), (image * toward).sum(1, keepdim=True)), prior

    def map_of(self, scores: Scores, size: tuple[int, int]) -> Tensor:
        """Returns the abnormal probability, averaged over both passes and upsampled."""
        return upsample(scores.patches.sigmoid().mean(1), size, align_corners=False)

    def components_of(self, scores: Scores, anomaly_map: Tensor) -> Tensor:
        """Returns the parts (B, 3): half of the image's probability, a third and a sixth of the passes' largest one.

        The maxima are taken over inspected patches, before upsampling.
        """
        assert scores.image is not None
        # One axis is reduced, not two: of a batch, OpenVINO 2026 gets the latter wrong where a sigmoid follows.
        inside = [restrict_patches(one, scores.roi).flatten(1) for one in scores.patches.unbind(1)]
        passes = [one.amax(1).sigmoid() for one in inside]
        return torch.stack([scores.image[:, 0].sigmoid() / 2, passes[0] / 3, passes[1] / 6], dim=1)

    # -- training ------------------------------------------------------------------------------------------

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Returns the losses of both passes' maps, of the image, of its score, of the sentences and of the prior.

        Anomalous images without a mask do not train the maps.
        """
        text, label = self.texts(batch["class_name"]), batch["label"].float()
        scores, prior = self._passes(features, text)
        assert scores.image is not None
        known = known_masks(batch)
        terms = self._map_losses(scores.patches[known], batch["mask"][known])
        cosines = normalize(text.abnormal[0]) @ normalize(text.abnormal[0]).T
        # The score is a probability, and is taken for a logit all the same, as in the published code.
        missed = F.binary_cross_entropy_with_logits(
            self.components_of(scores, scores.patches).sum(1), label, reduction="none"
        )
        return {
            **terms,
            "image": F.binary_cross_entropy_with_logits(scores.image[:, 0], label),
            "score": ((1 - torch.exp(-missed)).square() * missed).mean(),
            "orthogonal": 0.1 * cosines.triu(1).abs().sum(),
            "prior": (prior.square().mean(1) * (label == 0)).sum(),
        }

    def _map_losses(self, margins: Tensor, mask: Tensor) -> dict[str, Tensor]:
        if not len(mask):
            return dict.fromkeys(("focal", "dice", "dice_normal"), 0 * margins.sum())
        size = (mask.shape[-2], mask.shape[-1])
        passes = []
        for margin in margins.unbind(1):  # probabilities are upsampled, not logits
            maps = tuple(upsample(one.sigmoid(), size, align_corners=False) for one in (margin.neg(), margin))
            passes.append(map_losses([maps], mask))
        return {name: passes[0][name] + 0.5 * passes[1][name] for name in passes[0]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over all trained parameters, no schedule, as published."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, lr=self.lr, betas=(0.5, 0.999))

    # -- published files -----------------------------------------------------------------------------------

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps the names ``prompt_learner/*`` of the published code to ours; rejects files of another CLIP."""
        learner, tower = file["prompt_learner"], self.text_tower
        state = {
            "normal_words": learner["ctx_pos"].float().flatten(0, 2),
            "abnormal_words": learner["ctx_neg"].float().flatten(0, 1),
            **deep_state(learner),
        }
        for ours, theirs in (("0", "linear1"), ("2", "linear2")):
            for leaf in ("weight", "bias"):
                state[f"meta_net.{ours}.{leaf}"] = learner[f"patch_meta_net.{theirs}.{leaf}"].float()
        ids = tower.tokenize(self.sentences())
        check_text(type(self).__name__, learner, ids, tower.embed(ids))
        return state


def _read_settings(file: Mapping[str, Any], embed_dim: int) -> dict[str, Any]:
    """Reads the numbers of words, sentences, patches and blocks from the shapes of a published file or our own."""
    if "vlad" in file:
        saved = hyperparameters(file)
        return {key: saved[key] for key in _SETTINGS if saved.get(key) is not None}
    learner = file.get("prompt_learner")
    if not isinstance(learner, Mapping) or not {"ctx_pos", "ctx_neg", "patch_meta_net.linear1.weight"} <= set(learner):
        return {}  # loading tells what is wrong with it
    deep = list(deep_state(learner).values())
    return {
        "normal_length": learner["ctx_pos"].shape[-2],
        "abnormal_length": learner["ctx_neg"].shape[-2],
        "abnormal_prompts": learner["ctx_neg"].shape[-3],
        "prior_patches": learner["patch_meta_net.linear1.weight"].shape[1] // embed_dim,
        "depth": 1 + len(deep),
        **({"deep_length": len(deep[0])} if deep else {}),
    }
