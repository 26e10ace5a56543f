"""The files of Bayes-PFL's published code: names, shared modules that stand in them more than once, stages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlad.checkpoint import hyperparameters
from vlad.errors import WeightsError

__all__ = ["published_state", "read_settings", "stage_of"]

_PARTS = {
    "context_encoder": "context_encoder",
    "state_encoder": "state_encoder",
    "PFL_context": "context_flow",
    "PFL_normal": "normal_flow",
    "PFL_abnormal": "abnormal_flow",
    "fuse": "fuse",
    "RCA": "look",
    "class_mapping": "class_mapping",
    "image_mapping": "image_mapping",
}
_LEAVES = (  # what a part is called inside, theirs → ours
    ("weight_mean.module", "mean"),
    ("weight_log_variance.module", "log_variance"),
    ("amor_", ""),
    ("fuse_modules", "mix"),
    ("compress", "weigh"),
    ("post_process", "out"),
    ("q_proj_pre", "query"),
    ("linear_proj", "project"),
)
_UNUSED = re.compile(r"decoder\.|p_mu\.")
_AGAIN = re.compile(r"PFL_(context|normal|abnormal)\.encoder\.(.*)")


def read_settings(file: Mapping[str, Any]) -> dict[str, int]:
    """Reads the numbers of prompts, words and flows off the shapes of a published file, or off our own."""
    names = ("prompts", "context_length", "state_length", "flows")
    if "vlad" in file:
        saved = hyperparameters(file)
        return {key: saved[key] for key in names if saved.get(key) is not None}
    model = file.get("MyModel")
    wanted = ("prompt_context", "prompt_state_normal", "PFL_normal.amor_b")
    if not isinstance(model, Mapping) or not set(wanted) <= set(model):
        return {}  # loading tells what is wrong with it
    context, state, flows = (model[name].shape for name in wanted)
    return dict(zip(names, (context[0], context[1], state[1], flows[1]), strict=True))


def stage_of(path: str | Path) -> int:
    """Returns the stage of a file, as the published test script tells it: 1 for ``epoch_post_*_1.pth``, else 2."""
    name = Path(path).stem
    return 1 if "epoch_post" in name and name.endswith("1") else 2


def published_state(file: Mapping[str, Any]) -> dict[str, Tensor]:
    """Maps the published names ``MyModel/*`` to ours; decoders, which are never trained, are passed over.

    Raises:
        WeightsError: Two copies of a shared module differ.
        KeyError: It is no file of Bayes-PFL's.
    """
    model, state = file["MyModel"], {}
    for key, value in model.items():
        if _UNUSED.search(key):
            continue
        if copy := _AGAIN.fullmatch(key):
            shared = f"{'context' if copy[1] == 'context' else 'state'}_encoder.{copy[2]}"
            if not torch.equal(value, model[shared]):
                raise WeightsError(f"the Bayes-PFL file holds {shared} twice, with other values as {key}")
            continue
        part, _, rest = key.partition(".")
        for theirs, ours in _LEAVES:
            rest = rest.replace(theirs, ours, 1)
        value = value.float()
        if part in {"PFL_normal", "PFL_abnormal"}:  # these hold axes of length 1
            value = value.reshape(value.shape[1], -1) if rest in {"u", "w"} else value.flatten()
        name = f"{_PARTS[part]}.{rest}" if rest else key
        state[name] = value[..., 0] if name == "look.query.weight" else value
    return state
