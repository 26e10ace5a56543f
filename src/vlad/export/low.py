"""Graphs of which the encoder is computed in few bits and what follows it in float32.

Cosines, softmaxes and the Gaussian lose far more by rounding than the encoder's products do, and cost next to nothing.
So a method is traced in two parts, which are joined again under names that tell them apart.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.export import ExportedProgram

from vlad.engines.convert import to_onnx, to_openvino
from vlad.engines.sessions import require
from vlad.export.graph import OUTPUTS

__all__ = ["write_bf16", "write_int8_onnx", "write_int8_openvino"]

_HEAD = "head/"

Parts = tuple[ExportedProgram, ExportedProgram]
"""Encoder and head; see :func:`vlad.export.graph.capture_parts`."""


def write_bf16(parts: Parts, path: Path) -> Path:
    """Writes an OpenVINO file whose head keeps float32 where the rest is bfloat16; its weights are in half precision.

    Args:
        parts: The two parts.
        path: The file without its suffix.
    """
    target = path.with_name(f"{path.name}.xml")
    require("openvino").save_model(_joined_openvino(parts), target, compress_to_fp16=True)
    tree = ET.parse(target)
    for layer in tree.getroot().iter("layer"):
        if layer.get("name", "").startswith(_HEAD):
            info = layer.find("rt_info")
            if info is None:
                info = ET.Element("rt_info")
                layer.insert(0 if layer.find("data") is None else 1, info)
            ET.SubElement(info, "attribute", name="precise", version="0")
    tree.write(target)
    return target


def write_int8_openvino(parts: Parts, images: Sequence[np.ndarray], path: Path) -> Path:
    """Quantises the encoder's products after training, by NNCF, on the ranges that images give.

    Args:
        parts: The two parts.
        images: Normalised images (3, H, W).
        path: The file without its suffix.
    """
    nncf = require("nncf")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    quantised = nncf.quantize(
        _joined_openvino(parts),
        nncf.Dataset([image[None] for image in images]),
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(patterns=[f"{_HEAD}.*"]),
    )
    target = path.with_name(f"{path.name}.xml")
    require("openvino").save_model(quantised, target, compress_to_fp16=False)
    return target


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


def _between(parts: Parts) -> list[str]:
    """Returns names of the tensors that pass from one part to the other."""
    return [f"feature_{number}" for number in range(len(parts[1].graph_signature.user_inputs))]
