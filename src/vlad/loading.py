"""A ready method from Python, in one call."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.errors import MethodError, WeightsError, nearest
from vlad.registry import get_method

if TYPE_CHECKING:
    from vlad.methods.base import Method

__all__ = ["load"]


def load(name: str, **overrides: Any) -> Method:
    """Builds a method, or restores a trained one, ready to score.

    Args:
        name: A registered method name, a class path, a run folder, or a checkpoint file of vlad's.
        **overrides: Constructor arguments of the method; they take precedence over what a run saved.

    Returns:
        The method in evaluation mode, on the CPU.

    Raises:
        RegistryError: No such method.
        WeightsError: The run folder holds nothing to load, or does not fit.
        MethodError: An argument that the method does not have.

    Examples:
        >>> import vlad
        >>> vlad.load("sdp_pluss")
        Traceback (most recent call last):
            ...
        vlad.errors.RegistryError: no method is named 'sdp_pluss'; did you mean sdp_plus or sdp?
    """
    path = Path(name)
    if path.suffix in {".ckpt", ".pth", ".pt", ".safetensors"} or path.is_dir():
        return _restore(path, overrides).eval()
    return _build(get_method(name), overrides).eval()


def _build(cls: type[Method], arguments: dict[str, Any]) -> Method:
    known = set(inspect.signature(cls.__init__).parameters) - {"self"}
    for argument in arguments:
        if argument not in known:
            raise MethodError(f"{cls.__name__} has no argument '{argument}'; {nearest(argument, known)}")
    return cls(**arguments)


def _restore(path: Path, overrides: dict[str, Any]) -> Method:
    from vlad.weights import find_checkpoint, hyperparameters, read_file

    if path.is_dir() and not any(path.glob("checkpoints/*.ckpt")):
        return _from_config(path, overrides)
    file = find_checkpoint(path)
    checkpoint = dict(read_file(file))
    if "vlad" not in checkpoint:
        raise WeightsError(f"{file} is no vlad checkpoint; load it with vlad.load(METHOD, weights='{file}')")
    cls = get_method(checkpoint["vlad"]["class_path"])
    method = _build(cls, {**hyperparameters(checkpoint), **overrides})
    method.on_load_checkpoint(checkpoint)
    method.load_state_dict(checkpoint["state_dict"])
    return method


def _from_config(folder: Path, overrides: dict[str, Any]) -> Method:
    """Builds the training-free method of a run that saved a config but had nothing to checkpoint."""
    import yaml

    for file in sorted(folder.glob("*.yaml")):
        model = (yaml.safe_load(file.read_text()) or {}).get("model")
        if isinstance(model, dict) and "class_path" in model:
            return _build(get_method(model["class_path"]), {**model.get("init_args", {}), **overrides})
    raise WeightsError(f"{folder} is no run folder: it holds neither checkpoints/*.ckpt nor a config with a model")
