"""Tools for authors of methods: a tiny CLIP, and the checks that every method must pass.

The tiny CLIP has random weights and needs no download, so a plug-in's tests run offline in seconds::

    from vlad.testing import check_method, tiny_clip
    from my_package import MyMethod

    def test_my_method(tmp_path):
        check_method(MyMethod, backbone=tiny_clip(tmp_path / "clip"), image_size=64, layers=[2, 4])
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlad.clip.backbone import random_clip, save_local
from vlad.errors import MethodError
from vlad.methods.base import Method
from vlad.types import Batch, Prediction, map_tensors, take_rows

__all__ = ["TINY_CLIP", "check_method", "iter_checks", "random_batch", "tiny_clip"]

TINY_CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 48, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
"""Configuration of the tiny CLIP: 64 px, patch 16, 4 blocks, joint dimension 32."""


def tiny_clip(folder: str | Path, seed: int = 0) -> str:
    """Writes a tiny CLIP with random weights; its scores are meaningless.

    Args:
        folder: Output folder.
        seed: Seed of the weights.

    Returns:
        The backbone name, ``local-dir:folder``.
    """
    return save_local(random_clip(TINY_CLIP, seed), TINY_CLIP, folder)


def random_batch(size: int = 3, image_size: int = 64, seed: int = 0) -> Batch:
    """Returns a batch of noise images; every second image has one defect."""
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
        index=torch.arange(size),
    )


def _close(a: Tensor, b: Tensor, tolerance: float, what: str) -> None:
    deviation = float((a - b).abs().max() / b.abs().max().clamp(min=1e-6))
    assert deviation <= tolerance, f"{what}: relative deviation {deviation:.1e} is above {tolerance:.0e}"


def _side(method: Method) -> int:
    return method.requirements.preprocess.size


def _batch(method: Method, size: int = 3, seed: int = 0) -> Batch:
    return random_batch(size, _side(method), seed)


def _score(method: Method, batch: Batch) -> Prediction:
    with torch.no_grad():
        if method.eval().tags.transductive == "features":  # the batch is the set
            side = _side(method)
            return method.score_set(method.encode(batch["image"]), None, (side, side))
        return method.eval().score(batch["image"], batch["class_name"])


def check_contract(method: Method) -> None:
    """Checks that every stage has maps (B, S, S) and scores (B,), float32 and finite."""
    batch, side = _batch(method), _side(method)
    prediction = _score(method, batch)
    for stage, one in {"": prediction, **(prediction.stages or {})}.items():
        for name, shape in (
            ("unsmoothed_map", (3, side, side)),
            ("anomaly_map", (3, side, side)),
            ("image_score", (3,)),
        ):
            value = getattr(one, name)
            assert value.shape == shape, f"{stage} {name} has shape {tuple(value.shape)}, expected {shape}"
            assert value.dtype == torch.float32, f"{stage} {name} is {value.dtype}, expected float32"
            assert value.isfinite().all(), f"{stage} {name} is not finite"


def check_features(method: Method) -> None:
    """Checks that features have the batch dimension first and equal those of each image alone."""
    batch = _batch(method)
    with torch.no_grad():
        features = method.eval().encode(batch["image"])
        alone = method.encode(batch["image"][1:2])

    def first(tensor: Tensor) -> Tensor:
        assert tensor.shape[0] == 3, f"a feature has shape {tuple(tensor.shape)}, expected the batch first"
        return tensor

    map_tensors(first, features)

    def close(a: Tensor, b: Tensor) -> Tensor:
        _close(a, b, 1e-4, "features alone and in a batch")
        return a

    map_tensors(close, alone, take_rows(features, slice(1, 2)))


def check_batch_independence(method: Method) -> None:
    """Checks that a score does not depend on the batch; skipped for methods that score whole sets."""
    if method.tags.transductive == "features":
        return
    batch = _batch(method)
    together = _score(method, batch)
    for i in range(3):
        with torch.no_grad():
            alone = method.score(batch["image"][i : i + 1], batch["class_name"][i : i + 1])
        _close(alone.anomaly_map[0], together.anomaly_map[i], 1e-4, "anomaly_map alone and in a batch")
        _close(alone.image_score[0], together.image_score[i], 1e-4, "image_score alone and in a batch")


def check_deterministic(method: Method) -> None:
    """Checks that scoring is repeatable and draws no random numbers."""
    batch = _batch(method)
    _score(method, batch)  # texts are encoded once
    state = torch.get_rng_state()
    first, second = _score(method, batch), _score(method, batch)
    assert torch.equal(first.anomaly_map, second.anomaly_map), "two runs differ"
    assert torch.equal(torch.get_rng_state(), state), "scoring draws random numbers"


def _arguments(method: Method) -> dict[str, Any]:
    """Returns the constructor arguments as in a checkpoint; an encoder object is passed again."""
    arguments = json.loads(json.dumps(dict(method.hparams)))
    if str(arguments.get("backbone")).startswith("object:"):
        arguments["backbone"] = method.backbone
    return arguments


def check_plain_hyperparameters(method: Method) -> None:
    """Checks that hyper-parameters are plain JSON values that rebuild the method, so no checkpoint needs unpickling."""
    arguments = _arguments(method)
    objects = [key for key, value in arguments.items() if str(value).startswith("object:")]
    assert not objects, (
        f"{', '.join(objects)} is no plain JSON value nor a dataclass of them: a checkpoint cannot hold it"
    )
    again = type(method)(**arguments)
    assert dict(again.hparams) == dict(method.hparams), "hyper-parameters change when the method is built from them"


def check_frozen_backbone(method: Method) -> None:
    """Checks that the encoder stays frozen, and that every trainable parameter gets a gradient."""
    if method.backbone is None:
        return
    assert not any(p.requires_grad for p in method.backbone.parameters()), "the backbone is not frozen"
    assert not any(module.training for module in method.train().backbone.modules()), "the backbone left eval mode"
    if not method.trains:
        return
    before = copy.deepcopy(method.backbone.state_dict())
    configured = method.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    batch = _batch(method, 4)
    if method.supervision == "one-class":
        batch["mask"], batch["label"] = torch.zeros_like(batch["mask"]), torch.zeros_like(batch["label"])
    batch = method.prepare(batch)
    several: Any = method  # a training may have stages, one after another
    for stage in several.stages if hasattr(method, "stage") else ("",):
        several.stage = stage
        total = torch.stack(list(method.loss(method.encode_for_loss(batch["image"]), batch).values())).sum()
        total.backward()
    silent = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent, f"no gradient reaches {silent}"
    optimizer.step()
    after = method.backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before), "a step changed the backbone"


def check_no_label_leak(method: Method) -> None:
    """Checks that prediction works without labels and masks and equals the test result."""
    batch = _batch(method)
    bare: Batch = {"image": batch["image"], "class_name": batch["class_name"]}
    if method.tags.transductive == "features":
        return
    try:
        with torch.no_grad():
            predicted, tested = method.eval().predict_step(bare, 0), method.test_step(batch, 0)
    except KeyError as error:
        raise AssertionError(f"prediction reads {error} of the batch, which is not known there") from error
    assert isinstance(predicted, Prediction), f"predict_step returns a {type(predicted).__name__}, not a Prediction"
    assert isinstance(tested, Prediction), f"test_step returns a {type(tested).__name__}, not a Prediction"
    _close(predicted.anomaly_map, tested.anomaly_map, 1e-6, "anomaly_map of predict and test")
    _close(predicted.image_score, tested.image_score, 1e-6, "image_score of predict and test")


def _round_trip(method: Method) -> Method:
    """Returns the method restored from a checkpoint of this one."""
    checkpoint: dict[str, Any] = {"state_dict": dict(method.state_dict()), "hyper_parameters": dict(method.hparams)}
    method.on_save_checkpoint(checkpoint)
    heavy = [key for key in checkpoint["state_dict"] if key.startswith("backbone.")]
    assert not heavy, f"the checkpoint holds the backbone ({len(heavy)} tensors)"
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(0)
    checkpoint = torch.load(buffer, weights_only=True)
    twin = type(method)(**_arguments(method))
    twin.on_load_checkpoint(checkpoint)
    twin.load_state_dict(checkpoint["state_dict"])
    twin.allow_untrained = method.allow_untrained
    return twin


def check_small_checkpoint(method: Method) -> None:
    """Checks that a checkpoint excludes the frozen encoder and restores the same predictions."""
    twin, batch = _round_trip(method), _batch(method)
    _close(_score(twin, batch).anomaly_map, _score(method, batch).anomaly_map, 1e-6, "after a round trip")


def check_references(method: Method) -> None:
    """Checks that references change the scores, are restored from a checkpoint, and keep images independent.

    Skipped if the tag ``takes_references`` is false.
    """
    if not method.tags.takes_references:
        return
    before = None if method.tags.needs_references else _score(method, _batch(method))
    method.eval().fit_references([_batch(method, 2, seed=1)])
    batch = _batch(method)
    prediction = _score(method, batch)
    assert before is None or not torch.equal(before.anomaly_map, prediction.anomaly_map), "references change nothing"
    twin = _round_trip(method)
    assert method.fitted, "it was fitted and does not say so"
    lost = not twin.fitted or twin.memory.categories != method.memory.categories
    assert not lost, "the checkpoint lost the references"
    _close(_score(twin, batch).anomaly_map, prediction.anomaly_map, 1e-6, "restored and fitted")
    check_batch_independence(method)
    if not method.memory.categories:  # it keeps something else than patch tokens
        return
    reference, other = _batch(method, 2, seed=1), _batch(method, 2, seed=2)
    near, far = (method.memory_distance(one["image"]).mean() for one in (reference, other))
    bound = 1e-3 if method.memory.limit is None else 0.5 * far  # a coreset holds only neighbours of some patches
    assert near < bound <= far, f"a reference is {near:.1e} away from itself, another image {far:.1e}"


def check_refuses_untrained(method: Method) -> None:
    """Checks that a method raises an error if it lacks required training or references."""
    method = type(method)(**_arguments(method))
    if not (method.trains or method.tags.needs_references):
        return
    try:
        _score(method, _batch(method))
    except MethodError:
        return
    raise AssertionError("it scores although it was neither trained nor fitted")


def check_export(method: Method) -> None:
    """Checks that ``torch.export`` gives the same prediction; skipped if the tag ``no_export`` gives a reason."""
    if method.tags.no_export:
        return
    batch = _batch(method, 2)
    method.eval()
    arguments = (batch["image"], method.texts(batch["class_name"]))
    if method.memory.categories:
        arguments = (*arguments, method.memory.levels_of(method.memory.categories[0]))  # type: ignore[assignment]
    with torch.no_grad():
        expected = method(*arguments)
        try:
            program = torch.export.export(_Forward(method), arguments, strict=False)
        except Exception as error:  # torch.export raises dozens of kinds
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise AssertionError(f"torch.export fails ({cause}); say why in the tag no_export") from error
        exported = program.module()(*arguments)
    _close(exported[0], expected.anomaly_map, 1e-4, "exported anomaly_map")
    _close(exported[1], expected.image_score, 1e-4, "exported image_score")


class _Forward(torch.nn.Module):
    """Only the forward of a method: a LightningModule has a trainer, which cannot be exported."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor, text: Any, references: Any = None) -> tuple[Tensor, Tensor]:
        prediction = self.method(images, text, references)
        return prediction.anomaly_map, prediction.image_score


CHECKS: tuple[Callable[[Method], None], ...] = (
    check_contract,
    check_features,
    check_batch_independence,
    check_deterministic,
    check_plain_hyperparameters,
    check_frozen_backbone,
    check_no_label_leak,
    check_small_checkpoint,
    check_references,
    check_refuses_untrained,
    check_export,
)


def iter_checks(cls: type[Method], **arguments: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yields the name of each check and a function that runs it on a new instance.

    Args:
        cls: The method's class.
        **arguments: Its constructor arguments, at least ``backbone``.
    """
    for check in CHECKS:
        yield check.__name__, lambda check=check: check(_ready(cls(**arguments)))  # type: ignore[misc]


def _ready(method: Method) -> Method:
    """Allows an untrained method to score, and fits references if it requires them."""
    method.allow_untrained = True
    if method.tags.needs_references:
        method.eval().fit_references([_batch(method, 2, seed=1)])
    return method


def check_method(cls: type[Method], **arguments: Any) -> None:
    """Runs every check on a method.

    Args:
        cls: The method's class.
        **arguments: Its constructor arguments, at least ``backbone``.

    Raises:
        AssertionError: A check fails; the message names the check and the observed value.
    """
    for name, run in iter_checks(cls, **arguments):
        try:
            run()
        except AssertionError as error:
            raise AssertionError(f"{cls.__name__}: {name}: {error}") from error
