"""Fixtures shared by the suite: goldens on disk as CLIP folders, a tiny random CLIP, little data sets."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests_support import write_mvtec

from vlad.clip.backbone import random_clip, save_local
from vlad.testing import TINY_CLIP, tiny_clip

DATA = Path(__file__).parent / "data"


@dataclass
class Golden:
    """One published run: its CLIP as a backbone name, its settings, and its tensors."""

    backbone: str
    meta: dict
    out: dict[str, torch.Tensor]
    method: dict[str, torch.Tensor]
    deviations: dict[str, float] = field(default_factory=dict)

    def check(self, name: str, value: torch.Tensor, rtol: float = 1e-4) -> None:
        """Asserts that a value equals a golden within rtol of the golden's largest magnitude."""
        expected = self.out[name].double()
        value = value.detach().double().reshape(expected.shape)
        self.deviations[name] = float((value - expected).abs().max() / expected.abs().max())
        assert self.deviations[name] <= rtol, f"{name}: {self.deviations[name]:.2e}"


def golden(folder: Path, target: Path) -> Golden:
    """Rebuilds a golden's CLIP (its token embedding is stored sparsely) in a folder that open_clip loads."""
    meta = json.loads((folder / "meta.json").read_text())
    state = load_file(folder / "clip.safetensors")
    ids, rows = state.pop("token_embedding.ids"), state.pop("token_embedding.rows")
    config = meta["cfg"]
    config["vision_cfg"]["image_size"] = meta["image_size"]  # stored after the position resize
    words = torch.zeros(config["text_cfg"]["vocab_size"], config["text_cfg"]["width"])
    words[ids] = rows
    state["token_embedding.weight"] = words
    import open_clip

    model = open_clip.CLIP(**config)
    model.load_state_dict(state)
    backbone = save_local(model, config, target)
    outputs, method = load_file(folder / "outputs.safetensors"), load_file(folder / "method.safetensors")
    return Golden(backbone, meta, outputs, method)


@pytest.fixture(scope="session", params=["v1", "v2"])
def clip_ad(request, tmp_path_factory) -> Golden:
    """CLIP-AD's published runs: v1 with mean vectors, v2 with resized positions and DBSCAN vectors."""
    return golden(DATA / "clip_ad" / request.param, tmp_path_factory.mktemp(f"clip_ad_{request.param}"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """A tiny CLIP with random weights, as a backbone name."""
    return tiny_clip(tmp_path_factory.mktemp("tiny_clip"))


@pytest.fixture(scope="session")
def tiny_model() -> torch.nn.Module:
    """The same CLIP as an open_clip model."""
    return random_clip(TINY_CLIP).eval()


@pytest.fixture
def mvtec(tmp_path) -> Path:
    """A small data root with a tree in MVTec AD's layout."""
    write_mvtec(tmp_path / "mvtec_ad")
    return tmp_path
