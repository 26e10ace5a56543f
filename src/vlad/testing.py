"""For authors of methods: a tiny CLIP, and checks that every method must pass.

The tiny CLIP has random weights and needs no download, so a plug-in's tests run offline in seconds::

    from vlad.testing import check_method, tiny_clip
    from my_package import MyMethod

    def test_my_method(tmp_path):
        check_method(MyMethod, backbone=tiny_clip(tmp_path / "clip"), image_size=64, layers=[2, 4])
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlad.clip.backbone import random_clip, save_local
from vlad.methods.base import Method
from vlad.types import Batch, Prediction

__all__ = ["TINY_CLIP", "check_method", "iter_checks", "random_batch", "tiny_clip"]

TINY_CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 48, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
"""Configuration of the tiny CLIP: 64 px, patch 16, 4 blocks, joint dimension 32."""


def tiny_clip(folder: str | Path, seed: int = 0) -> str:
    """Writes a tiny CLIP with random weights; its scores mean nothing.

    Args:
        folder: Where to write it.
        seed: Seed of the weights.

    Returns:
        The backbone name, ``local-dir:folder``.
    """
    return save_local(random_clip(TINY_CLIP, seed), TINY_CLIP, folder)


def random_batch(size: int = 3, image_size: int = 64, seed: int = 0) -> Batch:
    """Makes a batch of noise with one defect in every second image."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(size, image_size, image_size, dtype=torch.bool)
    mask[1::2, 10:30, 20:40] = True
    return Batch(
        image=torch.randn(size, 3, image_size, image_size, generator=generator),
        mask=mask,
        has_mask=torch.ones(size, dtype=torch.bool),
        label=mask.flatten(1).any(1).long(),
        class_name=["bottle", "metal_nut"] * (size // 2) + ["bottle"] * (size % 2),
        dataset=["noise"] * size,
        category=["noise"] * size,
        image_id=[str(i) for i in range(size)],
        path=[f"{i}.png" for i in range(size)],
        mask_path=[""] * size,
        index=torch.arange(size),
        row_crop=[""] * size,
        frame=torch.full((size,), -1),
        reader=[""] * size,
    )


def _close(a: Tensor, b: Tensor, tolerance: float, what: str) -> None:
    deviation = float((a - b).abs().max() / b.abs().max().clamp(min=1e-6))
    assert deviation <= tolerance, f"{what}: relative deviation {deviation:.1e} is above {tolerance:.0e}"


def _score(method: Method, batch: Batch) -> Prediction:
    with torch.no_grad():
        return method.eval().score(batch["image"], batch["class_name"])


def check_contract(method: Method) -> None:
    """A prediction has maps (B, S, S) and scores (B,), float32 and finite."""
    batch = random_batch(image_size=method.image_size)
    prediction = _score(method, batch)
    side = method.image_size
    for name, shape in (
        ("unsmoothed_map", (3, side, side)),
        ("anomaly_map", (3, side, side)),
        ("image_score", (3,)),
    ):
        value = getattr(prediction, name)
        assert value.shape == shape, f"{name} has shape {tuple(value.shape)}, expected {shape}"
        assert value.dtype == torch.float32, f"{name} is {value.dtype}, expected float32"
        assert value.isfinite().all(), f"{name} is not finite"


def check_batch_independence(method: Method) -> None:
    """An image scores the same alone and among others."""
    batch = random_batch(image_size=method.image_size)
    together = _score(method, batch)
    for i in range(3):
        with torch.no_grad():
            alone = method.score(batch["image"][i : i + 1], batch["class_name"][i : i + 1])
        _close(alone.anomaly_map[0], together.anomaly_map[i], 1e-4, "anomaly_map alone and in a batch")
        _close(alone.image_score[0], together.image_score[i], 1e-4, "image_score alone and in a batch")


def check_deterministic(method: Method) -> None:
    """Scoring twice gives the same, and draws no random numbers."""
    batch = random_batch(image_size=method.image_size)
    _score(method, batch)  # texts are encoded once
    state = torch.get_rng_state()
    first, second = _score(method, batch), _score(method, batch)
    assert torch.equal(first.anomaly_map, second.anomaly_map), "two runs differ"
    assert torch.equal(torch.get_rng_state(), state), "scoring draws random numbers"


def check_plain_hyperparameters(method: Method) -> None:
    """Hyper-parameters are plain JSON values, so that checkpoints load without unpickling."""
    json.dumps(dict(method.hparams))


def check_frozen_backbone(method: Method) -> None:
    """CLIP is frozen, stays in evaluation mode, and training reaches every trained parameter and nothing else."""
    assert not any(p.requires_grad for p in method.backbone.parameters()), "the backbone is not frozen"
    assert not any(module.training for module in method.train().backbone.modules()), "the backbone left eval mode"
    if not method.trains:
        return
    before = copy.deepcopy(method.backbone.state_dict())
    configured = method.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    batch = random_batch(4, method.image_size)
    if method.learns_from == "normal":
        batch["mask"], batch["label"] = torch.zeros_like(batch["mask"]), torch.zeros_like(batch["label"])
    total = torch.stack(list(method.loss(batch).values())).sum()
    total.backward()
    silent = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent, f"no gradient reaches {silent}"
    optimizer.step()
    after = method.backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before), "a step changed the backbone"


def check_no_label_leak(method: Method) -> None:
    """A score needs neither labels nor masks: ``predict_step`` works without them and gives the same."""
    batch = random_batch(image_size=method.image_size)
    bare: Batch = {"image": batch["image"], "class_name": batch["class_name"]}
    with torch.no_grad():
        _close(
            method.predict_step(bare, 0).anomaly_map,
            _score(method, batch).anomaly_map,
            1e-6,
            "predict and test",
        )


def check_small_checkpoint(method: Method) -> None:
    """A checkpoint leaves the frozen CLIP out and loads back to the same predictions."""
    checkpoint: dict[str, Any] = {"state_dict": dict(method.state_dict())}
    method.on_save_checkpoint(checkpoint)
    heavy = [key for key in checkpoint["state_dict"] if key.startswith("backbone.")]
    assert not heavy, f"the checkpoint holds the backbone ({len(heavy)} tensors)"
    twin = type(method)(**dict(method.hparams))
    twin.on_load_checkpoint(checkpoint)
    twin.load_state_dict(checkpoint["state_dict"])
    batch = random_batch(image_size=method.image_size)
    _close(_score(twin, batch).anomaly_map, _score(method, batch).anomaly_map, 1e-6, "after a round trip")


CHECKS: tuple[Callable[[Method], None], ...] = (
    check_contract,
    check_batch_independence,
    check_deterministic,
    check_plain_hyperparameters,
    check_frozen_backbone,
    check_no_label_leak,
    check_small_checkpoint,
)


def iter_checks(cls: type[Method], **arguments: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yields the name of each check and a function that runs it on a fresh method.

    Args:
        cls: The method's class.
        **arguments: Its constructor arguments, ``backbone`` at least.
    """
    for check in CHECKS:
        yield check.__name__, lambda check=check: check(cls(**arguments))  # type: ignore[misc]


def check_method(cls: type[Method], **arguments: Any) -> None:
    """Runs every check on a method.

    Args:
        cls: The method's class.
        **arguments: Its constructor arguments, ``backbone`` at least.

    Raises:
        AssertionError: A check fails; the message names it and says what was seen.
    """
    for name, run in iter_checks(cls, **arguments):
        try:
            run()
        except AssertionError as error:
            raise AssertionError(f"{cls.__name__}: {name}: {error}") from error
