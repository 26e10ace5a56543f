"""vlad: vision-language anomaly detection.

Zero- and few-shot anomaly detectors on CLIP and DINOv2. Importing this package does not import torch; torch is imported
only when a name that needs it is used.

Examples:
    >>> import vlad
    >>> "sdp" in vlad.list_methods()
    True
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlad.registry import list_methods

# Idle OpenMP threads sleep instead of spinning: this halves the run time on a busy machine and costs nothing on an idle
# one. torch reads the variable on first import; a value set by the user takes precedence.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = [
    "AnomalyDataModule",
    "Detector",
    "Features",
    "Method",
    "Prediction",
    "Result",
    "Results",
    "Scores",
    "Tags",
    "__version__",
    "get_method",
    "list_methods",
    "load",
]

if TYPE_CHECKING:
    from vlad.datamodules import AnomalyDataModule
    from vlad.detector import Detector, Result, Results
    from vlad.loading import load
    from vlad.methods.base import Method
    from vlad.registry import get_method
    from vlad.types import Features, Prediction, Scores, Tags

# Public name -> module that defines it, imported on first use (PEP 562).
_LAZY = {
    "AnomalyDataModule": "vlad.datamodules",
    "Detector": "vlad.detector",
    "Method": "vlad.methods.base",
    "Result": "vlad.detector",
    "Results": "vlad.detector",
    "Features": "vlad.types",
    "Prediction": "vlad.types",
    "Scores": "vlad.types",
    "Tags": "vlad.types",
    "get_method": "vlad.registry",
    "load": "vlad.loading",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vlad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
