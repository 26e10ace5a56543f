"""The command that makes sense after a fit: printed only where it works as it is printed."""

from __future__ import annotations

import inspect
import json
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer

from vlad.errors import VladError

__all__ = ["next_command"]

_OF_TRAINING = {"train", "val", "predict", "augment", "textures", "images_per_category", "shuffle", "seed"}
_DRAWN = {"synthetic_aux": "synthetic"}  # drawn on the spot, wherever vlad is: what is trained on, what is tested on


def next_command(folder: Path, config: Mapping[str, Any], trainer: Trainer, command: Sequence[str]) -> str | None:
    """Returns the test of what was trained, as a command line.

    Args:
        folder: The run folder of the fit.
        config: The resolved config of the fit.
        trainer: The trainer, whose data module is of the class that the command will use.
        command: The command line of the fit; a config that it names may name data to test on, too.

    Returns:
        The command; None where no test data are known, or where the command would be refused: the data are not
        there, or images of them were trained on.
    """
    data = dict(config.get("data") or {})
    datamodule: Any = getattr(trainer, "datamodule", None)
    data["test"] = data.get("test") or _test_data(command)
    if data["test"] or data.get("split_protocol"):
        if not _works(datamodule, data):
            return None
    else:
        train = data.get("train")
        name = train.get("name") if isinstance(train, Mapping) else train
        if not isinstance(name, str) or name not in _DRAWN:
            return None
        data = {"test": _DRAWN[name]}
    defaults = {name: one.default for name, one in inspect.signature(type(datamodule).__init__).parameters.items()}
    words = ["vlad", "test", "--ckpt_path", str(folder)]
    for name, value in data.items():
        if name not in _OF_TRAINING and value != defaults.get(name):
            words += [f"--data.{name}", value if isinstance(value, str) else json.dumps(_given(value))]
    return shlex.join(words)


def _test_data(command: Sequence[str]) -> Any:
    """Returns the test data in the last config of a command line that names some: ``vlad fit`` has no use for them."""
    found = None
    for word, following in zip(command, [*command[1:], ""], strict=True):
        name, equals, file = word.partition("=")
        if name not in {"--config", "-c"}:
            continue
        try:
            tree = yaml.safe_load(Path(file if equals else following).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        data = tree.get("data") if isinstance(tree, dict) else None
        found = data.get("test") or found if isinstance(data, dict) else found
    return found


def _works(datamodule: Any, data: Mapping[str, Any]) -> bool:
    """Whether a test on these data gets as far as scoring."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tried = type(datamodule)(**data).require(datamodule.requirements)
            tried.setup("test")
    except (VladError, TypeError):
        return False
    return True


def _given(value: Any) -> Any:
    """Returns a value without the fields that were not given."""
    if isinstance(value, Mapping):
        return {key: _given(one) for key, one in value.items() if one is not None}
    return [_given(one) for one in value] if isinstance(value, list | tuple) else value
