"""From a torch module to a file that an engine opens, its batch left open."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vlad.engines.mixed import to_bf16
from vlad.engines.sessions import Engine, Precision, require
from vlad.errors import MethodError

__all__ = ["capture", "to_onnx", "to_openvino", "write_graph"]

_BATCH = 4096  # the most images at once that a graph is promised to take
_NAMES = {"onnx": "ONNX", "openvino": "OpenVINO", "torch": "torch"}


def capture(module: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> ExportedProgram:
    """Traces a module of one argument, its batch left open.

    It is run once ahead, so that what methods remember (positions, texts) is there as numbers.

    Args:
        module: From images (N, 3, H, W), or a tuple of tensors (N, …), to such a tuple; in evaluation mode.
        inputs: An example of its argument, N being two or more.

    Raises:
        MethodError: It cannot be traced; the message holds torch's reason.
    """
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        module(inputs)
        batch = {0: Dim("batch", min=1, max=_BATCH)}
        shapes = batch if isinstance(inputs, Tensor) else tuple(batch for _ in inputs)
        try:
            return torch.export.export(module, (inputs,), strict=False, dynamic_shapes=(shapes,))
        except Exception as error:  # torch.export raises dozens of kinds
            raise MethodError(f"torch.export cannot trace it: {_first_line(error)}") from error


def to_onnx(program: ExportedProgram, outputs: Sequence[str], inputs: Sequence[str] = ("image",)) -> Any:
    """Returns a program as ``torch.onnx.ONNXProgram``.

    Raises:
        MethodError: ONNX lacks something.
    """
    require("onnxscript")
    require("onnx")
    try:
        with _quiet():
            return torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=list(inputs), output_names=list(outputs)
            )
    except Exception as error:
        raise MethodError(f"ONNX cannot express it: {_operations(error)}") from error


def to_openvino(program: ExportedProgram, outputs: Sequence[str]) -> Any:
    """Returns a program as ``openvino.Model``; an only input is called ``image``.

    Raises:
        MethodError: OpenVINO lacks something.
    """
    ov = require("openvino")
    try:
        with _quiet():
            model = ov.convert_model(program)
    except Exception as error:
        raise MethodError(f"OpenVINO cannot express it: {_operations(error)}") from error
    ports = [*zip(model.outputs, outputs, strict=True), *zip(model.inputs[:1], ["image"], strict=True)]
    for port, name in ports if len(model.inputs) == 1 else ports[:-1]:
        port.get_tensor().set_names({name})
    return model


def write_graph(
    engine: Engine, program: ExportedProgram, path: Path, outputs: Sequence[str], precision: Precision = "fp32"
) -> Path:
    """Writes a program; its weights in half precision with ``fp16``, its products in bfloat16 with OpenVINO's ``bf16``.

    Args:
        engine: What is going to run it.
        program: What :func:`capture` returned.
        path: The file without its suffix.
        outputs: Names of the outputs.
        precision: Not ``int8``: see :mod:`vlad.export.low`.

    Returns:
        The file that is opened; others may lie beside it under its name.
    """
    if engine == "torch":
        target = path.with_name(f"{path.name}.pt2")
        with _quiet():
            torch.export.save(_without_unused(program), target)
    elif engine == "onnx":
        target = path.with_name(f"{path.name}.onnx")
        to_onnx(program, outputs).save(target)
        if precision == "fp16":
            _halve(target)
    else:
        target = path.with_name(f"{path.name}.xml")
        model = to_openvino(program, outputs)
        if precision == "bf16":
            to_bf16(model)
        require("openvino").save_model(model, target, compress_to_fp16=precision == "fp16")
    return target


def _without_unused(program: ExportedProgram) -> ExportedProgram:
    """Drops the weights that a graph does not read, such as a text tower's; ONNX and OpenVINO do so by themselves."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in list(program.graph_signature.input_specs):
        node = nodes[spec.arg.name]
        if spec.target is not None and not node.users and spec.target in program.state_dict:
            program.graph.erase_node(node)
            program.graph_signature.input_specs.remove(spec)
            del program.state_dict[spec.target]
    program.graph_module.recompile()
    return program


def _halve(file: Path) -> None:
    """Stores the large weights of an ONNX file in half precision; ONNX Runtime widens them once, when it opens it."""
    onnx, helper, arrays = require("onnx"), require("onnx.helper"), require("onnx.numpy_helper")
    model = onnx.load(file)
    casts = []
    for weight in list(model.graph.initializer):
        values = arrays.to_array(weight)
        if values.dtype != "float32" or values.size < 1024 or abs(values).max() > 65504:
            continue
        model.graph.initializer.remove(weight)
        model.graph.initializer.append(arrays.from_array(values.astype("float16"), f"{weight.name}.half"))
        casts.append(helper.make_node("Cast", [f"{weight.name}.half"], [weight.name], to=onnx.TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    onnx.save(model, file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporters' progress and advice to developers off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _operations(error: Exception) -> str:
    """Returns which operations an exporter has no rule for, else the first line of what it says."""
    texts, cause = [], error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__  # type: ignore[assignment]
    text = "\n".join(texts)
    found = re.findall(
        r"(?:No ONNX function found for <OpOverload\(op='|conversion rule found for operations: )([\w., ]+)", text
    )
    names = sorted({name.strip() for part in found for name in part.split(",")})
    return f"it has no {', '.join(names)}" if names else _first_line(error)
