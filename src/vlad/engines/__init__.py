"""Engines: ONNX Runtime, OpenVINO and torch run what torch has exported, on the CPU."""

from __future__ import annotations

from vlad.engines.sessions import Session, engine_version, has_bf16, open_session

__all__ = ["Session", "engine_version", "has_bf16", "open_session"]
