"""Run folders: their names, who makes them and when, the ``latest`` pointer, and the loggers that write into them.

Nothing heavy is imported before a name that needs it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "RunLogger",
    "SaveConfig",
    "TensorBoard",
    "WandB",
    "checkpoint_of",
    "data_name",
    "resolve_run",
    "run_folder",
]

if TYPE_CHECKING:
    from vlad.runs.folder import SaveConfig, run_folder
    from vlad.runs.logger import RunLogger
    from vlad.runs.loggers import TensorBoard, WandB
    from vlad.runs.pointers import checkpoint_of, data_name, resolve_run

_LAZY = {
    "RunLogger": "vlad.runs.logger",
    "SaveConfig": "vlad.runs.folder",
    "run_folder": "vlad.runs.folder",
    "TensorBoard": "vlad.runs.loggers",
    "WandB": "vlad.runs.loggers",
    "checkpoint_of": "vlad.runs.pointers",
    "data_name": "vlad.runs.pointers",
    "resolve_run": "vlad.runs.pointers",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vlad.runs' has no attribute {name!r}")
