"""The text tower: embed, run, read at the end of text, cut exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlad.clip.blocks import TokenEdit, causal_mask, run_blocks

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer

__all__ = ["TextTower"]

Tokenizer = Callable[[Sequence[str]], Tensor]


class TextTower(nn.Module):
    """Drives the text transformer of an open_clip model.

    The mask is causal, so no token sees what stands right of it: everything right of the longest sentence's
    end is cut off, which changes nothing and costs a fifth.

    Attributes:
        width: Width W of the tokens.
        embed_dim: Dimension D of the joint space.
        context_length: Tokens of a sentence, padding included (77).
    """

    def __init__(self, transformer: TextTransformer, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.text = transformer
        self.tokenizer = tokenizer
        self.depth = len(transformer.transformer.resblocks)
        self.width = int(transformer.positional_embedding.shape[1])
        self.context_length = int(transformer.context_length)
        projection = transformer.text_projection
        self.embed_dim = int(projection.shape[1] if isinstance(projection, Tensor) else projection.out_features)

    def tokenize(self, sentences: Sequence[str]) -> Tensor:
        """Tokenises sentences to int64 ids (n, context_length) on the tower's device."""
        return self.tokenizer(list(sentences)).to(self.text.positional_embedding.device)

    def embed(self, ids: Tensor) -> Tensor:
        """Looks up the word embeddings (n, L, W) of token ids (n, L); positions are added by :meth:`run`."""
        return self.text.token_embedding(ids)

    @staticmethod
    def ends(ids: Tensor) -> Tensor:
        """Returns where each sentence ends (n,): the end-of-text token has the highest id."""
        return ids.argmax(dim=-1)

    def run(self, words: Tensor, ends: Tensor, *, before: TokenEdit | None = None) -> Tensor:
        """Encodes sentences given as word embeddings, some of which may be learned.

        Args:
            words: Word embeddings (n, L, W) without positions.
            ends: Index of each sentence's end-of-text token (n,).
            before: Edit of the tokens ahead of each block, such as
                :func:`vlad.clip.prompt_tokens.overwrite_prompts`.

        Returns:
            Sentence features (n, D), not normalised; equal to ``encode_text`` for real words.
        """
        text = self.text
        length = int(ends.max()) + 1
        x = words[:, :length]
        x = x + text.positional_embedding[:length].to(x.dtype)
        x = run_blocks(text.transformer.resblocks, x, mask=causal_mask(length, x), before=before).last
        return self.finish(x, ends)

    def finish(self, x: Tensor, ends: Tensor) -> Tensor:
        """Reads sentence features (n, D), not normalised, off the last block's tokens (n, L, W) at their ends (n,)."""
        text = self.text
        x = text.ln_final(x[torch.arange(len(x), device=x.device), ends])
        projection = text.text_projection
        return projection(x) if isinstance(projection, nn.Module) else x @ projection

    def encode(self, sentences: Sequence[str], *, chunk: int = 128) -> Tensor:
        """Encodes sentences as CLIP's ``encode_text`` does.

        Args:
            sentences: Any number of sentences.
            chunk: Sentences per run; sorted by length first, so that short ones are cut short.

        Returns:
            Sentence features (n, D), not normalised, in the order given.
        """
        ids = self.tokenize(sentences)
        ends = self.ends(ids)
        order = ends.argsort(stable=True)
        parts = [self.run(self.embed(ids[rows]), ends[rows]) for rows in order.split(chunk)]
        return torch.cat(parts)[order.argsort()]
