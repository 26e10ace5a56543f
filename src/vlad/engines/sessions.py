"""Files of graphs, opened and run by an engine; needs numpy, the engine, and no method of vlad."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlad.errors import MethodError, VladError

__all__ = ["Engine", "Precision", "Session", "engine_version", "has_bf16", "open_session", "require"]

Engine = Literal["onnx", "openvino", "torch"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]

Session = Callable[[np.ndarray], list[np.ndarray]]
"""Runs a graph: images (N, 3, H, W), float32, to its outputs in order; from several threads at once, where wanted."""

_MODULES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}


def require(module: str) -> Any:
    """Imports an optional package.

    Raises:
        MethodError: It is not installed; the message says how to get it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MethodError(f"{module} is not installed: pip install 'vlad[export]' ({error})") from error


def engine_version(engine: Engine) -> str:
    """Returns the name and version of an engine's package, such as ``onnxruntime 1.20.0``.

    Raises:
        MethodError: It is not installed.
    """
    require(_MODULES[engine])
    return f"{_MODULES[engine]} {metadata.version(_MODULES[engine])}"


def has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself (AMX or AVX-512 BF16; Arm's BF16); elsewhere it would be slower."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.system() == "Darwin" and platform.machine() == "arm64"
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    flags = set(next(lines, "").partition(":")[2].split())
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})


def open_session(engine: Engine, path: Path, *, threads: int = 0) -> Session:
    """Opens a file.

    Args:
        engine: What runs it.
        path: ``.onnx``, OpenVINO's ``.xml`` with its ``.bin`` beside it, or ``.pt2`` of ``torch.export``.
        threads: Threads of the engine; 0 leaves it to the engine. Torch has its own, for the whole process.

    Raises:
        MethodError: The engine is not installed, or cannot read the file.
    """
    opened = {"onnx": _onnx, "openvino": _openvino, "torch": _torch}[engine]
    module = require(_MODULES[engine])
    try:
        return opened(module, path, threads)
    except VladError:
        raise
    except Exception as error:  # each engine raises kinds of its own
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MethodError(f"{path} cannot be opened by {_MODULES[engine]}: {cause[:300]}") from error


def _onnx(ort: Any, path: Path, threads: int) -> Session:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: list(session.run(None, {name: images}))


@cache
def _core() -> Any:
    """Returns OpenVINO's core, one for the process: what it unloads may crash a process that forks later."""
    return require("openvino").Core()


def _openvino(ov: Any, path: Path, threads: int) -> Session:
    # Without the hint OpenVINO computes all of a graph in bfloat16 wherever the CPU has it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    compiled = _core().compile_model(str(path), "CPU", settings)
    requests = threading.local()  # a request runs one batch at a time

    def run(images: np.ndarray) -> list[np.ndarray]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        results = requests.own.infer([images])
        return [np.array(results[port]) for port in compiled.outputs]

    return run


def _torch(torch: Any, path: Path, threads: int) -> Session:
    from vlad.engines.pt2 import load_program

    module = load_program(path).module()

    def run(images: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [output.float().numpy() for output in module(torch.from_numpy(images))]

    return run
