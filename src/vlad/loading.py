"""A ready method from Python, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.errors import WeightsError
from vlad.registry import get_method

if TYPE_CHECKING:
    from vlad.methods.base import Method

__all__ = ["load", "restore"]

_FILES = {".ckpt", ".pth", ".pt", ".safetensors"}


def load(name: str | Path, *, allow_untrained: bool = False, **overrides: Any) -> Method:
    """Builds a method, or restores a trained one, ready to score.

    Args:
        name: A registered method name, a class path, a run folder, or a checkpoint file of vlad's.
        allow_untrained: Whether a method that has to be trained may be built without weights, for experiments.
        **overrides: Constructor arguments of the method; they take precedence over what a run saved.

    Returns:
        The method in evaluation mode, on the CPU.

    Raises:
        RegistryError: No such method.
        WeightsError: The run folder holds nothing to load, or does not fit.
        MethodError: An argument that the method does not have, or an untrained method.

    Examples:
        >>> import vlad
        >>> vlad.load("sdp_pluss")
        Traceback (most recent call last):
            ...
        vlad.errors.RegistryError: no method is named 'sdp_pluss'; did you mean sdp_plus or sdp?
    """
    from vlad.methods.arguments import check_known

    path = Path(name)
    if path.suffix in _FILES or path.is_dir():
        return restore(path, overrides, allow_untrained=allow_untrained).eval()
    cls = get_method(str(name))
    check_known(cls, overrides)
    method = cls(**overrides)
    method.allow_untrained = allow_untrained
    if method.trains:
        method.refuse_unfit()
    return method.eval()


def restore(path: str | Path, overrides: Mapping[str, Any] | None = None, *, allow_untrained: bool = False) -> Method:
    """Restores the method of a run folder or checkpoint, ready to score.

    Args:
        path: A checkpoint file, or the folder of a fit, test or predict run.
        overrides: Constructor arguments that take precedence over the saved ones.
        allow_untrained: Whether the method may be untrained, for experiments.

    Raises:
        WeightsError: Nothing to restore, or an untrained method.
        MethodError: An argument that the method does not have.
    """
    from vlad.checkpoint import hyperparameters, read_checkpoint
    from vlad.methods.arguments import check_known

    path, overrides = Path(path), dict(overrides or {})
    if path.is_dir() and not any(path.glob("checkpoints/*.ckpt")):
        return _from_config(path, overrides, allow_untrained)
    checkpoint = read_checkpoint(path)
    cls = get_method(checkpoint["vlad"]["class_path"])
    arguments = {**hyperparameters(checkpoint), **overrides}
    if str(arguments.get("backbone")).startswith("object:"):
        raise WeightsError(
            f"{path} was made with a ready encoder object; give it again: vlad.load(…, backbone=encoder)"
        )
    check_known(cls, arguments)
    method = cls(**arguments)
    method.on_load_checkpoint(checkpoint)
    method.load_state_dict(checkpoint["state_dict"])
    return _trained(method, path, allow_untrained)


def _trained(method: Method, path: Path, allow_untrained: bool) -> Method:
    """Refuses a method that was saved untrained."""
    method.allow_untrained = allow_untrained
    if method.trains and not method.origin and not allow_untrained:
        raise WeightsError(
            f"{path} is of an untrained {type(method).__name__}: it holds nothing trained; give the folder of the fit "
            "run"
        )
    return method


def _from_config(folder: Path, overrides: dict[str, Any], allow_untrained: bool) -> Method:
    """Builds the method of a run that has no checkpoint of its own, from the config that it saved."""
    import yaml

    from vlad.methods.arguments import check_known

    for file in sorted(folder.glob("*.yaml")):
        config = yaml.safe_load(file.read_text()) or {}
        model = config.get("model")
        if not (isinstance(model, dict) and "class_path" in model):
            continue
        if (folder / "references.csv").is_file():
            raise WeightsError(
                f"{folder} used reference images and did not save what was fitted on them: run it with "
                "--references.save true, or fit again: method.fit_references(datamodule.reference_dataloader())"
            )
        if config.get("ckpt_path"):
            return restore(config["ckpt_path"], overrides, allow_untrained=allow_untrained)
        cls = get_method(model["class_path"])
        arguments = {**model.get("init_args", {}), **overrides}
        check_known(cls, arguments)
        return _trained(cls(**arguments), folder, allow_untrained)
    raise WeightsError(f"{folder} is no run folder: it holds neither checkpoints/*.ckpt nor a config with a model")
