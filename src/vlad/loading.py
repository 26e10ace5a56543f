"""A ready detector from Python, in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlad.errors import OptionError, WeightsError
from vlad.registry import get_method, list_methods, named_method
from vlad.runs.pointers import checkpoint_of, resolve_run

if TYPE_CHECKING:
    from vlad.datamodules.decode import Reading
    from vlad.decision import Decision
    from vlad.detector import Detector
    from vlad.methods.base import Method

__all__ = ["load", "restore"]

_FILES = {".ckpt", ".pth", ".pt", ".safetensors"}


def load(
    name: str | Path,
    *,
    references: Any = None,
    decision: Decision | str | Path | float | None = None,
    class_name: str | None = None,
    device: str = "cpu",
    intensity_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
    tile: int | None = None,
    overlap: float | None = None,
    engine: Literal["openvino", "onnx", "torch"] | None = None,
    engine_precision: Literal["fp32", "bf16"] = "fp32",
    allow_untrained: bool = False,
    **overrides: Any,
) -> Detector:
    """Builds a method, or restores a trained one, as a detector that scores images.

    Args:
        name: A registered method name, a class path, a run folder, a ``latest`` file, or a checkpoint file of vlad's.
        references: Normal images that the method compares with, see :meth:`vlad.Detector.fit_references`; None leaves
            what was saved with the method.
        decision: What makes a score normal or anomalous: a decision file (``vlad calibrate``), a number, or ``none``;
            None takes the ``decision.json`` of the run folder, where there is one.
        class_name: What is in the images where ``predict`` is not told.
        device: Where it is computed, such as ``cuda``.
        intensity_range: Values that become black and white in images of more than 8 bits: (0, 4095) for 12 bits in 16.
            By default what the file says, else all of its type.
        max_pixels: Images with more pixels are refused; by default above 89 million.
        tile: Side in pixels of the tiles that an image is scored by, at its own resolution; None: as one.
        overlap: Share of a tile that its neighbours cover too; 0.25 by default.
        engine: What runs the frozen encoder, on the CPU (docs/export.md); None for torch as ever.
        engine_precision: What the engine computes in.
        allow_untrained: Whether a method that has to be trained may be built without weights, for experiments.
        **overrides: Constructor arguments of the method; they take precedence over what a run saved.

    Returns:
        A detector: ``detector.predict("photos/")``. The method itself is ``detector.method``.

    Raises:
        RegistryError: No such method.
        WeightsError: The run folder holds nothing to load, or does not fit.
        MethodError: An argument that the method does not have, an untrained method, a transductive one that is to be
            tiled, or no such device.
        DataError: References that cannot be used.
        DecisionError: A decision that cannot be read, or was made with other scores.

    Examples:
        >>> import vlad
        >>> vlad.load("sdp_pluss")
        Traceback (most recent call last):
            ...
        vlad.errors.RegistryError: no method is named 'sdp_pluss'; did you mean sdp_plus or crane_plus or sdp?
    """
    from vlad.decision import find_decision
    from vlad.detector import Detector
    from vlad.tiling import Tiling

    run = _run_of(name)
    method = _build(str(name), overrides, allow_untrained) if run is None else None
    if run is not None:
        method = restore(run, overrides, allow_untrained=allow_untrained)
        decision = find_decision(run) if decision is None else decision
    assert method is not None
    tiling = Tiling.of(tile, overlap)
    if tiling is not None:
        tiling.apply(method)
    if engine is not None:
        from vlad.engines.frozen import FrozenEngine, set_engine

        set_engine(method, FrozenEngine(engine, engine_precision))
    elif engine_precision != "fp32":
        raise OptionError("engine_precision needs an engine: engine='openvino'")
    reading = _reading(intensity_range, max_pixels)
    detector = Detector(method, class_name=class_name, run=run, reading=reading).to(device)
    if references is not None:
        detector.fit_references(references)
    detector.decision = decision
    return detector


def _run_of(name: str | Path) -> Path | None:
    """Returns the run folder or checkpoint that is meant; None for a method's name.

    Raises:
        WeightsError: A path that leads nowhere.
    """
    if isinstance(name, str) and name in list_methods():  # whatever lies in the working directory
        return None
    path = resolve_run(name)
    if path.suffix in _FILES or path.is_dir():
        return path
    if isinstance(name, Path) or "/" in name or os.sep in name:
        raise WeightsError(f"run folder or checkpoint {name} does not exist")
    return None


def _build(name: str, arguments: dict[str, Any], allow_untrained: bool) -> Method:
    """Builds a method; where no image size is given and its own does not suit the encoder, at the encoder's."""
    from vlad.encoders.facts import with_image_size
    from vlad.methods.arguments import check_known

    cls = get_method(name)
    check_known(cls, arguments)
    method = cls(**with_image_size(cls, arguments))
    method.allow_untrained = allow_untrained
    if method.trains:
        method.refuse_unfit()
    return method


def _reading(intensity_range: Any, max_pixels: int | None) -> Reading:
    from vlad.datamodules.decode import Reading

    given: dict[str, Any] = {} if max_pixels is None else {"max_pixels": max_pixels}
    if intensity_range is not None:
        if isinstance(intensity_range, str) or len(intensity_range) != 2:
            raise OptionError(f"intensity_range is two numbers, the lower one first: (0, 4095), not {intensity_range}")
        given["intensity_range"] = (float(intensity_range[0]), float(intensity_range[1]))
    return Reading(**given)


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

    path, overrides = resolve_run(path), dict(overrides or {})
    if path.is_dir() and not any(path.glob("checkpoints/*.ckpt")):
        return _from_config(path, overrides, allow_untrained)
    checkpoint = read_checkpoint(path)
    cls = named_method(checkpoint["vlad"]["class_path"], path)
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
        given = checkpoint_of(folder) or config.get("ckpt_path")
        if given:
            return restore(given, overrides, allow_untrained=allow_untrained)
        cls = named_method(model["class_path"], file)
        arguments = {**model.get("init_args", {}), **overrides}
        check_known(cls, arguments)
        return _trained(cls(**arguments), folder, allow_untrained)
    raise WeightsError(f"{folder} is not a run folder: it holds neither checkpoints/*.ckpt nor a config with a model")
