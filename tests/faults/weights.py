"""Checkpoints, exported weights, weights that others publish, and CLIPs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from faults.kind import Kind, require

__all__ = ["WEIGHTS", "make_checkpoint", "read_checkpoint_file"]


@cache
def _built(seed: int) -> tuple[Any, dict[str, torch.Tensor]]:
    from vlad.methods.sdp_plus import SDPPlus

    torch.manual_seed(seed)
    method = SDPPlus(backbone="vlad-tiny", image_size=64, layers=[2, 4]).eval()
    return method, {name: value.clone() for name, value in method.state_dict().items()}


def _method(seed: int = 3) -> Any:
    """Returns a method with the weights that the seed gives; the same object every time, to be quick."""
    method, state = _built(seed)
    with torch.no_grad():
        for name, value in method.named_parameters():
            if value.requires_grad:
                value.copy_(state[name])
    method.origin = "fit"
    return method


def make_checkpoint(folder: Path) -> Path:
    from tests_support import save_run

    return save_run(_method(), folder / "run") / "checkpoints" / "epoch=0.ckpt"


def _same_state(state: Any) -> None:
    good = _built(3)[1]
    for name, value in state.items():
        require(name in good, f"unknown {name}")
        require(torch.equal(value, good[name]), f"another {name}")


def read_checkpoint_file(file: Path) -> None:
    from vlad.checkpoint import read_checkpoint

    _same_state(read_checkpoint(file)["state_dict"])


def _exported(folder: Path) -> Path:
    from vlad.checkpoint import export_weights

    return export_weights(make_checkpoint(folder), folder / "exported.safetensors")


def _load_weights(file: Path) -> None:
    from vlad.checkpoint import load_weights

    method = _method(4)
    load_weights(method, file)
    for name, value in method.named_parameters():
        if value.requires_grad:
            require(bool(value.isfinite().all()), f"{name} is not finite")


def _load_own_weights(file: Path) -> None:
    from vlad.checkpoint import load_weights

    method = _method(4)
    load_weights(method, file)
    for name, value in method.named_parameters():
        require(torch.equal(value, _built(3)[1][name]), f"another {name}")


def _foreign(suffix: str) -> Callable[[Path], Path]:
    """Weights as a method's authors publish them: without a digest of ours."""

    def make(folder: Path) -> Path:
        layers = {
            name.replace("heads.", "fc."): p.detach() for name, p in _method().named_parameters() if "heads" in name
        }
        torch.save({"linear_layers": layers}, folder / f"official{suffix}")
        return folder / f"official{suffix}"

    return make


def _clip_folder(folder: Path) -> Path:
    from vlad.testing import tiny_clip

    tiny_clip(folder / "clip")
    return folder / "clip" / "open_clip_model.safetensors"


def _clip_config(folder: Path) -> Path:
    return _clip_folder(folder).with_name("open_clip_config.json")


def _read_clip(file: Path) -> None:
    """Loads a CLIP of a folder; its weights have no digest, and are whole and finite."""
    from vlad.encoders import load_encoder

    encoder = load_encoder(f"local-dir:{file.parent}")
    for name, value in encoder.state_dict().items():
        require(not value.is_floating_point() or bool(value.isfinite().all()), f"{name} is not finite")


WEIGHTS: dict[str, Kind] = {
    "checkpoint": Kind(make_checkpoint, read_checkpoint_file, digest=True, quick=False),
    "checkpoint as weights": Kind(make_checkpoint, _load_own_weights, digest=True, quick=False),
    "exported weights": Kind(_exported, _load_own_weights, digest=True, quick=False),
    "published weights": Kind(_foreign(".pth"), _load_weights, quick=False),
    "CLIP weights": Kind(_clip_folder, _read_clip, quick=False),
    "CLIP config": Kind(_clip_config, _read_clip, quick=False),
}
