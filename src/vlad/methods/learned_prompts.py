"""Learned text: words of a sentence and deep prompts of the text encoder, as used by several detectors.

Source: Zhou et al., AnomalyCLIP, ICLR 2024, arXiv 2310.18961, section 3.2, and the published code, on which FAPrompt's
and Crane's code is based.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlad.checkpoint import hyperparameters, read_file
from vlad.clip.blocks import TokenEdit, causal_mask, run_blocks
from vlad.clip.prompt_tokens import overwrite_prompts
from vlad.clip.similarity import normalize
from vlad.clip.text import TextTower
from vlad.errors import MethodError, WeightsError
from vlad.methods.base import Method
from vlad.published import locate
from vlad.types import Tags, map_tensors

__all__ = [
    "OBJECT",
    "STATES",
    "LearnedPrompts",
    "LearnedText",
    "check_text",
    "deep_edit",
    "deep_prompts",
    "deep_state",
    "read_settings",
    "run_sentences",
    "write_words",
]

OBJECT, STATES = "object", ("", "damaged ")
"""What stands for every class, and what is said of it when normal and when abnormal."""


# -- pieces --------------------------------------------------------------------------------------------------


def deep_prompts(depth: int, length: int, width: int) -> nn.ParameterDict:
    """Makes deep prompts ``block_2`` to ``block_depth``, (length, width) each, from N(0, 0.02)."""
    return nn.ParameterDict(
        {f"block_{block}": nn.Parameter(0.02 * torch.randn(length, width)) for block in range(2, depth + 1)}
    )


def deep_edit(prompts: nn.ParameterDict, count: int, *, half: bool) -> TokenEdit:
    """Makes the edit that overwrites words, from the first one on, with deep prompts.

    Args:
        prompts: Output of :func:`deep_prompts`.
        count: Sentences n.
        half: Whether prompts, and their gradients per sentence, are rounded to half precision.
    """
    rows = {int(name.removeprefix("block_")): prompt.expand(count, -1, -1) for name, prompt in prompts.items()}
    if half:  # after the expansion: rounded once per sentence, as are the gradients
        rows = {block: prompt.half().to(prompt.dtype) for block, prompt in rows.items()}
    return overwrite_prompts(rows)


def write_words(fixed: Tensor, words: Tensor, position: int = 1) -> Tensor:
    """Overwrites words of sentences with learned words.

    Args:
        fixed: Word embeddings of sentences (n, L, W), or (1, L, W) for the same one n times.
        words: Learned words (n, M, W).
        position: Index of the first word overwritten; 1 keeps the start token.
    """
    fixed = fixed.expand(words.shape[0], -1, -1)
    words = words.to(fixed.dtype)
    return torch.cat([fixed[:, :position], words, fixed[:, position + words.shape[1] :]], dim=1)


def run_sentences(
    tower: TextTower, words: Tensor, ends: Sequence[int] | Tensor, before: TokenEdit | None = None
) -> Tensor:
    """Encodes sentences whose length does not depend on values of tensors, so that it can be exported.

    Args:
        tower: The text tower.
        words: Word embeddings (n, L, W) without positions.
        ends: Index of each sentence's end-of-text token: n numbers, or fewer that come again and again, behind the
            largest of which words are cut off; or a tensor (n,), for words that are cut already.
        before: Edit of the tokens before each block.

    Returns:
        Sentence features (n, D), not normalised.
    """
    length = words.shape[1] if isinstance(ends, Tensor) else max(ends) + 1
    x = words[:, :length] + tower.text.positional_embedding[:length].to(words.dtype)
    x = run_blocks(tower.text.transformer.resblocks, x, mask=causal_mask(length, x), before=before).last
    if not isinstance(ends, Tensor):  # a list's length could not follow that of an exported graph's batch
        ends = torch.tensor(ends, device=x.device).repeat(x.shape[0] // len(ends))
    return tower.finish(x, ends)


class LearnedText(Method):
    """A method whose text is trained: encoded at every training step, otherwise only when a parameter changes.

    :meth:`class_text` makes the text; it gets "" if ``tags.class_names`` states that names are not used.
    """

    _text_version: tuple[tuple[int, int], ...] = ()

    def texts(self, class_names: Sequence[str]) -> Any:
        """Returns the text of each image, a tree of tensors (B, …); in training with gradients."""
        if not self.training:
            return self.fixed_texts(class_names)
        names = self._names(class_names)
        known = {name: self.class_text(name) for name in dict.fromkeys(names)}
        if len(known) == 1:
            return map_tensors(lambda text: text.expand(len(names), *text.shape), known[names[0]])
        return self.stack_texts([known[name] for name in names])

    def fixed_texts(self, class_names: Sequence[str]) -> Any:
        """Returns the text of each image without gradients, encoded again only if a parameter has changed."""
        version = tuple((p._version, p.data_ptr()) for p in self.text_parameters())
        if self._text_version != version:
            self._texts.clear()
            self._text_version = version
        return self._texts(self._names(class_names), self.device)

    def text_parameters(self) -> list[nn.Parameter]:
        """Returns what the text depends on, by default all trained parameters."""
        return [p for p in self.parameters() if p.requires_grad]

    def _names(self, class_names: Sequence[str]) -> list[str]:
        return list(class_names) if self.tags.class_names else [""] * len(class_names)


# -- two learned sentences for every object --------------------------------------------------------------------


class LearnedPrompts(LearnedText):
    """A method that learns "[words] object." and "[words] damaged object.", with deep prompts, for every class.

    Attributes:
        length: Learned words of each sentence.
        depth: Blocks of the text encoder that learned tokens enter; the first has only the words.
        deep_length: Tokens that are overwritten before each further block, from the first word on.
        half_prompts: Whether deep prompts are rounded to half precision, as the published code does.
        words: Learned words (2, length, W), of the normal and the abnormal sentence.
        deep_prompts: Deep prompts ``block_2`` to ``block_depth``.
    """

    length: int
    depth: int
    deep_length: int
    half_prompts: bool

    def build_prompts(
        self, weights: str | None, length: int | None, depth: int | None, deep_length: int | None, half_prompts: bool
    ) -> str | None:
        """Makes the learned words and prompts; what weights were trained with takes precedence over the defaults.

        Args:
            weights: The authors' file or its name, a checkpoint, a run folder, or None.
            length: Learned words; None for the file's number, else 12.
            depth: Blocks; None for the file's number, else 9 or all.
            deep_length: Tokens before further blocks; None for the file's number, else 4 or all words.
            half_prompts: As the attribute.

        Returns:
            The weights' file, or None.

        Raises:
            MethodError: A number is out of range.
        """
        tower = self.text_tower
        weights = weights and str(locate(weights, self.published_weights))
        known = read_settings(read_file(weights)) if weights else {}
        self.length = known.get("length", 12) if length is None else length
        self.depth = known.get("depth", min(9, tower.depth)) if depth is None else depth
        self.deep_length = known.get("deep_length", min(4, self.length)) if deep_length is None else deep_length
        # What was read off a file is known to a checkpoint, which comes without it.
        self.hparams.update({name: getattr(self, name) for name in ("length", "depth", "deep_length")})
        longest = tower.context_length - 5  # start, state, object, ., end
        if not 1 <= self.depth <= tower.depth:
            raise MethodError(f"depth must be from 1 to {tower.depth}, got {self.depth}")
        if not 1 <= self.deep_length <= self.length <= longest:
            raise MethodError(
                f"deep_length must be from 1 to length, and length at most {longest}; got {self.deep_length} and "
                f"{self.length}"
            )
        self.half_prompts = half_prompts
        self._tokenized: dict[int, tuple[Tensor, list[int]]] = {}
        self.words = nn.Parameter(0.02 * torch.randn(2, self.length, tower.width))
        self.deep_prompts = deep_prompts(self.depth, self.deep_length, tower.width)
        return weights

    def sentences(self, more: int = 0) -> list[str]:
        """Returns the normal and the abnormal sentence, with an X where a word is learned or, ``more``, put in."""
        words = " ".join(["X"] * (self.length + more))
        return [f"{words} {state}{OBJECT}." for state in STATES]

    def tokenized(self, more: int = 0) -> tuple[Tensor, list[int]]:
        """Returns the ids of the sentences (2, context_length) and where they end; looked up once, and so exported."""
        found = self._tokenized.get(more)
        if found is None:
            with torch.inference_mode(False):  # what is remembered must serve training too
                ids = self.text_tower.tokenize(self.sentences(more))
            found = ids, self.text_tower.ends(ids).tolist()
            if not torch.compiler.is_compiling():  # a tracer's tensors have no values
                self._tokenized[more] = found
        return found[0].to(self.device), found[1]

    def encode_text(self) -> Tensor:
        """Encodes the two sentences: unit vectors (2, D), normal and abnormal."""
        tower = self.text_tower
        ids = tower.tokenize(self.sentences())
        words = write_words(tower.embed(ids), self.words)
        edit = deep_edit(self.deep_prompts, 2, half=self.half_prompts)
        return normalize(tower.run(words, tower.ends(ids), before=edit).float())

    def class_text(self, class_name: str) -> Tensor:
        """Returns the two text vectors (2, D), the same for every class."""
        return self.encode_text()

    @property
    def tags(self) -> Tags:
        """Class names do not matter."""
        return Tags(class_names=False)

    def published_state(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps the released names ``prompt_learner/*`` to ours; rejects what was trained on another CLIP."""
        learner, tower = file["prompt_learner"], self.text_tower
        state = {"words": torch.cat([learner["ctx_pos"], learner["ctx_neg"]]).flatten(0, 1).float()}
        ids = tower.tokenize(self.sentences())
        check_text(type(self).__name__, learner, ids, tower.embed(ids))
        return {**state, **deep_state(learner)}


# -- the authors' files ----------------------------------------------------------------------------------------


def read_settings(file: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the number of words, of blocks and of deep tokens off the shapes of a released file, or off our own."""
    if "vlad" in file:
        saved = hyperparameters(file)
        return {key: saved[key] for key in ("length", "depth", "deep_length") if saved.get(key) is not None}
    learner = file.get("prompt_learner")
    if not isinstance(learner, Mapping) or "ctx_pos" not in learner:
        return {}  # loading tells what is wrong with it
    found: dict[str, Any] = {"length": learner["ctx_pos"].shape[-2], "depth": 1}
    while (prompt := learner.get(f"compound_prompts_text.{found['depth'] - 1}")) is not None:
        found["depth"] += 1
        found["deep_length"] = len(prompt)
    return found


def deep_state(learner: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps the released deep prompts ``compound_prompts_text.0`` on to ours, ``deep_prompts.block_2`` on."""
    state: dict[str, Tensor] = {}
    while (prompt := learner.get(f"compound_prompts_text.{len(state)}")) is not None:
        state[f"deep_prompts.block_{len(state) + 2}"] = prompt.float()
    return state


def check_text(method: str, learner: Mapping[str, Tensor], ids: Tensor, embedded: Tensor) -> None:
    """Rejects released prompts of other sentences or of another CLIP, based on the file's contents.

    Args:
        method: The method's name, for messages.
        learner: The file's tensors: ``tokenized_prompts_pos``, ``token_prefix_pos``, ``token_suffix_pos``, the same
            with ``_neg``, of which any may be missing.
        ids: Token ids of our two sentences (2, 77).
        embedded: Their word embeddings (2, 77, W).

    Raises:
        WeightsError: It was trained with other sentences or on another CLIP.
    """
    for row, name in enumerate(("pos", "neg")):
        theirs, own = learner.get(f"tokenized_prompts_{name}"), ids[row].cpu()
        if theirs is not None and not all(torch.equal(one.long().cpu(), own) for one in theirs.flatten(0, -2)):
            raise WeightsError(
                f"the {method} file was trained with other sentences: its tokens ({name}) are {_spelled(theirs)}, "
                f"those of '{STATES[row]}{OBJECT}' are {_spelled(own)}"
            )
        for part, place, what in (("prefix", 0, "the start token"), ("suffix", -1, "the words")):
            saved = learner.get(f"token_{part}_{name}")
            if saved is None or saved.shape[-1] != embedded.shape[-1]:
                continue
            saved = saved.flatten(0, -3)[0].float().cpu()
            known = (embedded[row, : len(saved)] if place == 0 else embedded[row, -len(saved) :]).float().cpu()
            off = float((saved - known).abs().max())
            if off > 1e-3 * float(known.abs().max()):  # released in single, CLIP comes in half precision
                raise WeightsError(
                    f"the {method} file was trained on another CLIP: its embedding of {what} differs by {off:.1e}; "
                    "give the backbone and pretrained that it was trained on"
                )


def _spelled(ids: Tensor) -> str:
    """Returns the tokens of a sentence that are not its learned words or padding."""
    return " ".join(str(i) for i in ids.flatten().tolist() if i not in {0, 343})
