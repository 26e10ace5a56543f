"""Graphs of which the encoder is computed in few bits and what follows it in float32.

Cosines, softmaxes and the Gaussian lose far more by rounding than the encoder's products do, and cost next to nothing.
So a method is traced in two parts, which are joined again under names that tell them apart.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.export import ExportedProgram

from vlad.engines.convert import to_onnx, to_openvino
from vlad.engines.mixed import attention_products, to_bf16
from vlad.engines.sessions import require
from vlad.export.graph import OUTPUTS

__all__ = ["write_bf16_openvino", "write_int8_onnx", "write_int8_openvino"]

_HEAD = "head/"

Parts = tuple[ExportedProgram, ExportedProgram]
"""Encoder and head; see :func:`vlad.export.graph.capture_parts`."""


def write_bf16_openvino(parts: Parts, path: Path) -> Path:
    """Writes an OpenVINO file whose encoder multiplies in bfloat16; see :mod:`vlad.engines.mixed`.

    Args:
        parts: The two parts.
        path: The file without its suffix.
    """
    return _save(_joined_openvino(parts), path)


def write_int8_openvino(parts: Parts, images: Sequence[np.ndarray], path: Path) -> Path:
    """Quantises the encoder's products after training, by NNCF, on the ranges that images give.

    The patch embedding and the products around attention are left out and multiply in bfloat16: 8 bits of those
    cost most of the accuracy and win little time.

    Args:
        parts: The two parts.
        images: Normalised images (3, H, W).
        path: The file without its suffix.
    """
    nncf = require("nncf")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = _joined_openvino(parts)
    quantised = nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in images]),
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(
            names=[name for name in attention_products(model) if not name.startswith(_HEAD)],
            types=["ScaledDotProductAttention", "Convolution"],
            patterns=[f"{_HEAD}.*"],
            validate=False,
        ),
    )
    return _save(quantised, path)


def write_int8_onnx(parts: Parts, path: Path) -> Path:
    """Quantises the encoder's products dynamically: weights now, activations by their range as they come.

    Args:
        parts: The two parts.
        path: The file without its suffix.
    """
    onnx, compose, quantization = require("onnx"), require("onnx.compose"), require("onnxruntime.quantization")
    names = _between(parts)
    first = to_onnx(parts[0], [f"encoder/{name}" for name in names]).model_proto
    second = compose.add_prefix(to_onnx(parts[1], OUTPUTS, names).model_proto, _HEAD, rename_outputs=False)
    between = [(f"encoder/{name}", _HEAD + name) for name in names]
    merged = compose.merge_models(first, second, io_map=between, outputs=list(OUTPUTS))
    del merged.opset_import[:]
    merged.opset_import.extend(first.opset_import)
    whole, target = path.with_name(f"{path.name}.whole.onnx"), path.with_name(f"{path.name}.onnx")
    onnx.save(merged, whole)
    logging.disable(logging.WARNING)  # it advises to run its own preprocessing, on the root logger
    try:
        quantization.quantize_dynamic(
            whole,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=[node.name for node in merged.graph.node if node.name.startswith(_HEAD)],
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
    finally:
        logging.disable(logging.NOTSET)
        whole.unlink()
    return target


def _joined_openvino(parts: Parts) -> Any:
    """Returns both parts as one model; names of the head's operations begin with ``head/``."""
    encoder, head = to_openvino(parts[0], _between(parts)), to_openvino(parts[1], OUTPUTS)
    for operation in head.get_ops():
        operation.set_friendly_name(_HEAD + operation.get_friendly_name())
    for result, parameter in zip(encoder.get_results(), head.get_parameters(), strict=True):
        parameter.output(0).replace(result.input_value(0))
    return require("openvino").Model(head.get_results(), encoder.get_parameters(), "vlad")


def _save(model: Any, path: Path) -> Path:
    """Writes a joined model, what is left of the encoder's products in bfloat16."""
    to_bf16(model, keep=lambda name: name.startswith(_HEAD))
    target = path.with_name(f"{path.name}.xml")
    require("openvino").save_model(model, target, compress_to_fp16=False)
    return target


def _between(parts: Parts) -> list[str]:
    """Returns names of the tensors that pass from one part to the other."""
    return [f"feature_{number}" for number in range(len(parts[1].graph_signature.user_inputs))]
