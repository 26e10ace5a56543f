"""Bfloat16 where it pays and float32 where it matters, written into an OpenVINO graph itself.

OpenVINO's own way, a hint at run time, computes all of a graph in bfloat16 but what follows the last product:
residual streams, norms, cosines and softmaxes too, which then lose far more than the products do. Here products,
attention, and what only moves their values or bends them (bias, GELU, reshapes) take bfloat16 by explicit
conversions, as torch's autocast has it; all else stays float32, and the file needs no hint but ``f32``. On a CPU
without bfloat16 OpenVINO widens such a graph again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlad.engines.sessions import require

__all__ = ["attention_products", "to_bf16"]

_PRODUCTS = {"MatMul", "ScaledDotProductAttention"}
_MOVES = {
    "Broadcast", "Concat", "Gather", "Reshape", "Slice", "Split", "Squeeze", "StridedSlice", "Transpose", "Unsqueeze",
    "VariadicSplit",
}  # fmt: skip


def to_bf16(model: Any, *, keep: Callable[[str], bool] = lambda name: False) -> None:
    """Lets the products of a model be computed in bfloat16, in place.

    Products whose inputs are quantised to 8 bits are left alone.

    Args:
        model: An ``openvino.Model`` in float32.
        keep: Whether an operation, by its name in the file, keeps float32.
    """
    low: set[str] = set()
    operations = list(model.get_ordered_ops())
    for operation in operations:
        if not keep(operation.get_friendly_name()) and _is_low(operation, low):
            low.add(operation.get_name())
    _convert(operations, low)
    model.validate_nodes_and_infer_types()


def attention_products(model: Any) -> list[str]:
    """Returns names of the products around attention: of two inputs, neither a weight, and those fed by attention.

    Their inputs have no steady range, so that 8 bits for them cost most of the accuracy.

    Args:
        model: An ``openvino.Model``.
    """
    return [
        operation.get_friendly_name()
        for operation in model.get_ordered_ops()
        if operation.get_type_name() == "MatMul"
        and (not any(map(_is_constant, operation.inputs())) or any(map(_of_attention, operation.inputs())))
    ]


def _is_low(operation: Any, low: set[str]) -> bool:
    kind = operation.get_type_name()
    values = [port for port in operation.inputs() if port.get_element_type().is_real()]
    if kind in _PRODUCTS:
        return all(_source(port).get_type_name() != "FakeQuantize" for port in values)
    varying = [port for port in values if not _is_constant(port)]
    follows = bool(varying) and all(_source(port).get_name() in low for port in varying)
    return follows and (kind in _MOVES or kind == "Gelu" or (kind == "Add" and len(varying) == 1))


def _convert(operations: list[Any], low: set[str]) -> None:
    """Puts conversions where a tensor passes from one precision to the other, one for each tensor."""
    opset = require("openvino.opset13")
    made: dict[tuple[str, int], Any] = {}
    for operation in operations:
        if operation.get_name() not in low:
            continue
        for port in operation.inputs():
            if port.get_element_type().is_real() and _source(port).get_name() not in low:
                output = port.get_source_output()
                key = _source(port).get_name(), output.get_index()
                if key not in made:
                    made[key] = _narrow(opset, output).output(0)
                port.replace_source_output(made[key])
    for operation in operations:
        for output in operation.outputs() if operation.get_name() in low else ():
            if not output.get_element_type().is_real():
                continue
            readers = [port for port in output.get_target_inputs() if port.get_node().get_name() not in low]
            wide = opset.convert(output, "f32").output(0) if readers else None
            for port in readers:
                port.replace_source_output(wide)


def _narrow(opset: Any, output: Any) -> Any:
    node = output.get_node()
    if node.get_type_name() == "Constant":  # a weight is stored in bfloat16
        return opset.constant(node.data, dtype=require("openvino").Type.bf16)
    return opset.convert(output, "bf16")


def _source(port: Any) -> Any:
    return port.get_source_output().get_node()


def _is_constant(port: Any) -> bool:
    node = _source(port)
    if node.get_type_name() in {"Convert", "FakeQuantize", "Multiply", "Subtract"}:  # a weight stored in fewer bits
        return all(map(_is_constant, node.inputs()))
    return bool(node.get_type_name() == "Constant")


def _origin(port: Any) -> Any:
    """Returns the operation that made a tensor, but for those that only moved it since."""
    node = _source(port)
    while node.get_type_name() in _MOVES:
        node = _source(node.input(0))
    return node


def _of_attention(port: Any) -> bool:
    node = _origin(port)
    if node.get_type_name() == "MatMul":  # a softmax times the values
        return any(_origin(port).get_type_name() == "Softmax" for port in node.inputs())
    return bool(node.get_type_name() == "ScaledDotProductAttention")
