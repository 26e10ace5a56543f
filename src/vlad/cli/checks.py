"""Checks of options before anything heavy is loaded, each told in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vlad.cli.messages import first_sentence
from vlad.decision import find_decision
from vlad.encoders.facts import refuse_image_size
from vlad.errors import BackboneError, OptionError

__all__ = ["check_options", "check_trainer", "has_ddp", "tell_limits", "trainer_errors"]

# option -> the least value that means something, and whether that value itself does
_LEAST: dict[str, tuple[float, bool]] = {
    "data.batch_size": (1, True),
    "data.num_workers": (0, True),
    "data.shots": (0, True),
    "data.images_per_category": (0, False),
    "data.max_pixels": (1, True),
    "heatmaps.height": (1, True),
    "features.budget": (0, False),
    "model.image_size": (1, True),
    "model.full_size": (1, True),
    "model.sigma": (0, True),
    "model.lr": (0, False),
    "model.eps": (0, False),
    "model.min_samples": (1, True),
    "model.length": (1, True),
    "model.depth": (1, True),
    "trainer.max_epochs": (-1, True),
    "trainer.num_nodes": (1, True),
}
_LATER = {"best", "hpc", "registry"}  # names of checkpoints that Lightning finds after a fit


def check_options(verb: str, config: Namespace) -> None:
    """Refuses values that mean nothing, before a weight is read or an image is looked for.

    Args:
        verb: The verb.
        config: Its parsed options.

    Raises:
        OptionError: A value that means nothing.
    """
    model = config.model.get("init_args") or Namespace()
    for option, (least, itself) in _LEAST.items():
        section, _, name = option.partition(".")
        value = model.get(name) if section == "model" else config.get(option)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not (value >= least if itself else value > least):
            raise OptionError(f"{option} must be {'at least' if itself else 'above'} {least}, not {value}")
    layers = model.get("layers")
    if isinstance(layers, list) and any(isinstance(layer, int) and layer < 1 for layer in layers):
        raise OptionError(f"model.layers are numbered from 1, got {layers}")
    image_size = model.get("image_size")
    if isinstance(image_size, int):
        try:
            refuse_image_size(model.get("backbone"), image_size)
        except BackboneError as error:
            raise OptionError(f"model.{error}") from error
    checkpoint = config.get("ckpt_path")
    undecided = config.get("decisions.decision") in {None, "none"} and find_decision(checkpoint) is None
    if config.get("fail_on_anomaly") and undecided:
        raise OptionError("--fail-on-anomaly needs a decision: give --decision FILE (vlad calibrate) or a number")
    if checkpoint == "best" or (checkpoint in _LATER and verb != "fit"):
        raise OptionError(f"--ckpt_path {checkpoint} means something only after a fit; give a run folder or a file")


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuses devices that are not there, unknown strategies and whatever else Lightning's trainer does not take.

    Args:
        settings: The options of ``trainer``.

    Raises:
        OptionError: What Lightning says of them, in one line.
    """
    given = {key: value for key, value in settings.items() if isinstance(value, bool | int | float | str | list)}
    left_out = ("logger", "callbacks", "profiler", "plugins", "default_root_dir")
    plain: dict[str, Any] = {key: value for key, value in given.items() if key not in left_out}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    with trainer_errors(plain):
        Trainer(**{**plain, **quiet})


class trainer_errors:
    """Turns what Lightning says of the trainer's options into one line.

    Raises:
        OptionError: For a setting that Lightning refuses.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Keeps the settings, to name the one at fault."""
        self.settings = settings

    def __enter__(self) -> None:
        """Starts to watch."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Turns the error."""
        refused = MisconfigurationException | ValueError | TypeError | ModuleNotFoundError | RuntimeError
        if isinstance(error, refused):
            raise OptionError(self._line(error)) from error

    def _line(self, error: BaseException) -> str:
        text = first_sentence(error)
        words = ("accelerator", "strategy", "devices", "precision", "num_nodes", "fast_dev_run", "max_epochs")
        named = [name for name in words if name in self.settings and _stands_out(name, self.settings[name], text)]
        shown = ", ".join(f"trainer.{name} {self.settings[name]}" for name in named)
        return f"{shown}: {text}" if shown else f"trainer: {text}"


def _stands_out(name: str, value: Any, text: str) -> bool:
    return value not in (None, "auto", 1) and (name in text or str(value) in text)


def tell_limits(verb: str, config: Namespace) -> str:
    """Returns one line that says that nothing, or only a part, is evaluated; "" where all is."""
    trainer = config.trainer
    trial = trainer.get("fast_dev_run")
    if trial:
        batches = 1 if trial is True else trial
        return (
            f"fast_dev_run: a trial of {batches} batch{'es' if batches != 1 else ''}; nothing is evaluated or written"
        )
    if verb == "fit":
        return ""
    name = f"limit_{'val' if verb == 'validate' else verb}_batches"
    limit = trainer.get(name)
    if limit is None or (isinstance(limit, float) and limit >= 1):
        return ""
    if limit == 0:
        return f"{name} is 0: nothing is evaluated"
    part = f"{limit:.0%} of the batches" if isinstance(limit, float) else f"the first {limit} batches"
    return f"{name}: only {part} are evaluated"


def has_ddp(settings: Mapping[str, Any]) -> bool:
    """Returns whether a training is shared by several processes in Lightning's usual way.

    Args:
        settings: The trainer's.

    Examples:
        >>> common = {"accelerator": "cpu", "strategy": "auto", "num_nodes": 1}
        >>> [has_ddp({**common, "devices": devices}) for devices in (1, "2", "0,1", [0], "auto")]
        [False, True, True, False, False]
    """
    devices = settings["devices"]
    if devices in ("auto", -1, "-1"):
        count = torch.cuda.device_count() if settings["accelerator"] in {"auto", "gpu", "cuda"} else 1
    elif isinstance(devices, int) or (isinstance(devices, str) and devices.isdecimal()):
        count = int(devices)
    else:
        count = len(devices.split(",")) if isinstance(devices, str) and "," in devices else len(devices)
    return settings["strategy"] in {"auto", "ddp"} and count * settings["num_nodes"] > 1
