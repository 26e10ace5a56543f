"""What AnomalyCLIP's authors publish: files in their repository, whose names are turned into ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlad.checkpoint import hyperparameters
from vlad.errors import WeightsError
from vlad.published import InRepository

__all__ = ["PUBLISHED", "published_state", "read_settings"]


PUBLISHED = {
    name: InRepository(
        "zqhang/AnomalyCLIP",
        f"checkpoints/{folder}/epoch_15.pth",
        sha256="",
        commit="45ed4dd35c05797d854294b5e8d585c545920089",
        blob=blob,
    )
    for name, folder, blob in (
        ("mvtec", "9_12_4_multiscale_visa", "72adc786e031b49ea288ba5f815f0d38cf158708"),
        ("visa", "9_12_4_multiscale", "c90f1d9d92d158b436a8fc193f984d4cec8b1fc8"),
    )
}
"""The authors' weights by the set that they were trained on; the folders there are named after the set tested."""


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


def published_state(file: Mapping[str, Any], ids: Tensor, start: Tensor) -> dict[str, Tensor]:
    """Maps the released names ``prompt_learner/*`` to ours.

    The released file also holds projections that nothing uses (97 % of it), and CLIP's embeddings of the sentences,
    which tell for which sentences and for which CLIP the prompts were trained.

    Args:
        file: The file's content.
        ids: Token ids of our two sentences (2, 77).
        start: Embedding of the start token (2, 1, W).

    Raises:
        WeightsError: It was trained with other sentences or on another CLIP.
        KeyError: It is no file of AnomalyCLIP's.
    """
    learner = file["prompt_learner"]
    state = {"words": torch.cat([learner["ctx_pos"], learner["ctx_neg"]]).flatten(0, 1).float()}
    depth = 2
    while f"compound_prompts_text.{depth - 2}" in learner:
        state[f"deep_prompts.block_{depth}"] = learner[f"compound_prompts_text.{depth - 2}"].float()
        depth += 1
    for row, name in enumerate(("pos", "neg")):
        theirs, own = learner.get(f"tokenized_prompts_{name}"), ids[row].cpu()
        if theirs is not None and not torch.equal(theirs.flatten().long().cpu(), own):
            raise WeightsError(
                f"the AnomalyCLIP file was trained with other sentences: its tokens ({name}) are "
                f"{_spelled(theirs)}, those of '{'object' if name == 'pos' else 'damaged object'}' are {_spelled(own)}"
            )
        embedded = learner.get(f"token_prefix_{name}")
        if embedded is not None and embedded.numel() == start[row].numel():
            off = (embedded.flatten().float().cpu() - start[row].flatten().float().cpu()).abs().max()
            if float(off) > 1e-3 * float(start[row].abs().max()):  # released in single, CLIP comes in half precision
                raise WeightsError(
                    "the AnomalyCLIP file was trained on another CLIP: its embedding of the start token differs by "
                    f"{float(off):.1e}; give the backbone and pretrained that it was trained on"
                )
    return state


def _spelled(ids: Tensor) -> str:
    """Returns the tokens of a sentence that are not its learned words or padding."""
    return " ".join(str(i) for i in ids.flatten().tolist() if i not in {0, 343})
