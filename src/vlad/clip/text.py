"""The text tower: embeds and encodes sentences, without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad.clip.blocks import TokenEdit, causal_mask, run_blocks

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer

__all__ = ["PackedSentences", "TextTower", "pack_sentences"]

Tokenizer = Callable[[Sequence[str]], Tensor]


class PackedSentences(NamedTuple):
    """Sentences concatenated in one sequence, after the tokens that all of them start with.

    No token attends to another sentence, so every token equals that of its separate sentence. Shared tokens are run
    only once, and nothing is run beyond the end of a sentence.

    Attributes:
        tokens: Shared tokens, then each sentence's own (T, W), or (B, T, W).
        mask: Attention mask: additive (T, T), or (B, 1, T, T).
        ends: Where each sentence ends in the sequence (n,), or (B, n).
    """

    tokens: Tensor
    mask: Tensor
    ends: Tensor

    @classmethod
    def stack(cls, packs: Sequence[PackedSentences]) -> PackedSentences:
        """Stacks packs with equal numbers of sentences; shorter packs are padded with masked tokens."""
        length = max(len(pack.tokens) for pack in packs)
        tokens, masks = [], []
        for pack in packs:
            more = length - len(pack.tokens)
            tokens.append(F.pad(pack.tokens, (0, 0, 0, more)))
            mask = F.pad(pack.mask, (0, more, 0, more), value=float("-inf"))
            mask[length - more :, 0] = 0  # they see the first token, as seeing none would give NaN
            masks.append(mask)
        return cls(torch.stack(tokens), torch.stack(masks)[:, None], torch.stack([pack.ends for pack in packs]))


def pack_sentences(x: Tensor, ends: Tensor, shared: int) -> PackedSentences:
    """Packs sentences with the same first tokens.

    Args:
        x: Tokens (n, L, W) at any depth of the tower.
        ends: Index of each sentence's end-of-text token (n,).
        shared: Number of tokens that all sentences start with.
    """
    place = torch.arange(x.shape[1], device=x.device)
    own = (place >= shared) & (place <= ends[:, None])
    sentence, position = own.nonzero(as_tuple=True)
    tokens = torch.cat([x[0, :shared], x[sentence, position]])
    position = torch.cat([place[:shared], position])
    sentence = torch.cat([torch.full((shared,), -1, device=x.device), sentence])
    seen = (position[None] <= position[:, None]) & ((sentence[None] == sentence[:, None]) | (sentence[None] == -1))
    mask = torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill(~seen, float("-inf"))
    last = own.sum(1).cumsum(0) + shared - 1
    return PackedSentences(tokens, mask, torch.where(ends < shared, ends, last))


class TextTower(nn.Module):
    """Drives the text transformer of an open_clip model.

    The mask is causal, so no token attends to later ones. Tokens after the end of the longest sentence are dropped,
    which does not change the result and reduces the cost to a fifth.

    Attributes:
        width: Width W of the tokens.
        embed_dim: Dimension D of the joint space.
        context_length: Number of tokens per sentence, including padding (77).
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
            before: Edit of the tokens before each block, such as
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
        """Computes sentence features, not normalised, from the last block's tokens at the sentence ends.

        Args:
            x: Tokens (n, L, W), or of packed sentences (B, T, W).
            ends: Where sentences end (n,), or (B, n).

        Returns:
            Sentence features (n, D), or (B, n, D).
        """
        text = self.text
        rows = torch.arange(x.shape[0], device=x.device)
        x = text.ln_final(x[rows if ends.ndim == 1 else rows[:, None], ends])
        projection = text.text_projection
        return projection(x) if isinstance(projection, nn.Module) else x @ projection

    def encode(self, sentences: Sequence[str], *, chunk: int = 128) -> Tensor:
        """Encodes sentences as CLIP's ``encode_text`` does.

        Args:
            sentences: Any number of sentences.
            chunk: Sentences per run; sorted by length first to reduce padding.

        Returns:
            Sentence features (n, D), not normalised, in the order given.
        """
        ids = self.tokenize(sentences)
        ends = self.ends(ids)
        order = ends.argsort(stable=True)
        parts = [self.run(self.embed(ids[rows]), ends[rows]) for rows in order.split(chunk)]
        return torch.cat(parts)[order.argsort()]
