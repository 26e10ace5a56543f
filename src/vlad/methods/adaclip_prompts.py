"""AdaCLIP's hybrid prompts: static ones learned per block, dynamic ones made from each image, in both towers.

Source: Cao et al., AdaCLIP, ECCV 2024, arXiv 2407.15795, section 3.2, and its published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from vlad.clip.blocks import TokenEdit, causal_mask, run_blocks
from vlad.clip.image import ImageTower
from vlad.clip.prompt_tokens import overwrite_prompts
from vlad.clip.similarity import normalize
from vlad.clip.text import PackedSentences, TextTower, pack_sentences
from vlad.methods.base import Method
from vlad.methods.texts import TextCache
from vlad.prompts import load_prompts

__all__ = ["Branch", "HybridPrompts", "PromptType"]

PromptType = Literal["SD", "S", "D", "none"]
Branch = Literal["VL", "V", "L"]


class HybridPrompts(Method):
    """A method with AdaCLIP's prompts, and the text side, which is made of nothing else.

    Attributes:
        prompt_type: Static and dynamic prompts (``SD``), one of them, or ``none``.
        branch: Towers with prompts: image and text (``VL``), ``V`` or ``L``.
        depth: Blocks J whose prompts are renewed; the text tower's first block has none.
        length: Prompt tokens M.
        half_prompts: Whether prompts are rounded to half precision, as the published code does.
    """

    prompt_type: PromptType
    branch: Branch
    depth: int
    length: int
    half_prompts: bool

    def build_prompts(self, image: ImageTower, text: TextTower) -> None:
        """Makes the trained parameters for the two towers."""
        self.prompts = load_prompts("adaclip")
        self._static = TextCache(self._static_vectors)
        self._static_version: tuple[tuple[int, int], ...] = ()
        size = image.embed_dim
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

    def _prompted(self, tower: Literal["visual", "text"]) -> bool:
        """Returns whether there are prompts in a tower."""
        return bool(self._blocks[tower]) and self.prompt_type != "none"

    def branch_prompts(self, tower: Literal["visual", "text"], feature: Tensor | None) -> dict[int, Tensor]:
        """Returns the prompts of a tower: block number → (M, W), or (B, M, W) where they depend on the image.

        Args:
            tower: Which tower.
            feature: The images' own CLIP embeddings (B, D), for dynamic prompts.
        """
        prompts: dict[int, Tensor] = {}
        for block in self._blocks[tower] if self._prompted(tower) else ():
            parts = []
            if "S" in self.prompt_type:
                parts.append(getattr(self, f"{tower}_static")[f"block_{block}"])
            if "D" in self.prompt_type:
                assert feature is not None
                parts.append(getattr(self, f"{tower}_dynamic")(feature).unflatten(1, (self.length, -1)))
            prompt = torch.stack(torch.broadcast_tensors(*parts)).sum(0)
            prompts[block] = prompt.half().to(prompt.dtype) if self.half_prompts else prompt
        return prompts

    def class_text(self, class_name: str) -> Tensor | PackedSentences:
        """Returns a class's two text vectors (2, D), unit length, normal and abnormal; or, with prompts, its sentences.

        With prompts in the text tower these are the tokens after the first block: up to there nothing is learned. From
        the second block on sentences share the start token and, once the prompts have taken their place, the words
        after it.
        """
        tower = self.text_tower
        normal, abnormal = self.prompts.sentences(class_name.replace("-", " "))
        if not self._prompted("text"):
            rows = normalize(tower.encode([*normal, *abnormal]).float())
            return normalize(torch.stack([rows[: len(normal)].mean(0), rows[len(normal) :].mean(0)]))
        ids = tower.tokenize([*normal, *abnormal])
        ends = tower.ends(ids)
        length = int(ends.max()) + 1
        x = tower.embed(ids[:, :length]) + tower.text.positional_embedding[:length]
        x = run_blocks(tower.text.transformer.resblocks[:1], x, mask=causal_mask(length, x)).last
        return pack_sentences(x, ends, 1 + self.length)

    def stack_texts(self, texts: Sequence[Any]) -> Tensor | PackedSentences:
        """Joins the texts of single images; packed sentences are filled up to one length."""
        return PackedSentences.stack(texts) if isinstance(texts[0], PackedSentences) else torch.stack(list(texts))

    def texts(self, class_names: Sequence[str]) -> Tensor | PackedSentences:
        """Returns the text of each image; with static prompts alone its vectors, kept until the prompts change."""
        if not self._prompted("text") or "D" in self.prompt_type:
            return super().texts(class_names)
        if self.training:
            different = list(dict.fromkeys(class_names))
            vectors = self.encode_text(super().texts(different), None)
            return vectors[[different.index(name) for name in class_names]]
        version = tuple((prompt._version, prompt.data_ptr()) for prompt in self.text_static.values())
        if self._static_version != version:
            self._static.clear()
            self._static_version = version
        return self._static(class_names, self.device)

    def _static_vectors(self, class_name: str) -> Tensor:
        packed = cast("PackedSentences", super().texts([class_name]))
        return self.encode_text(packed, None)[0]

    def encode_text(self, text: Tensor | PackedSentences, feature: Tensor | None) -> Tensor:
        """Runs the text tower with its prompts from the second block on: unit vectors (B, 2, D), normal and abnormal.

        Args:
            text: Output of :meth:`texts`; vectors are returned as they are.
            feature: The images' ordinary CLIP embeddings (B, D), for dynamic prompts.
        """
        if isinstance(text, Tensor):
            return text
        tower = self.text_tower
        edit = overwrite_prompts(self.branch_prompts("text", feature))
        shifted: TokenEdit = lambda number, x: edit(number + 1, x)  # noqa: E731
        x = run_blocks(tower.text.transformer.resblocks[1:], text.tokens, mask=text.mask, before=shifted).last
        sentences = normalize(tower.finish(x, text.ends).float())
        normal = len(self.prompts.normal) * len(self.prompts.templates)
        return normalize(torch.stack([sentences[:, :normal].mean(1), sentences[:, normal:].mean(1)], dim=1))


def _prompts(blocks: Sequence[int], length: int, width: int) -> nn.ParameterDict:
    return nn.ParameterDict({f"block_{block}": nn.Parameter(0.02 * torch.randn(length, width)) for block in blocks})
