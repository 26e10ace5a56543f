"""Every kind of file that vlad reads."""

from __future__ import annotations

from faults.inputs import INPUTS
from faults.kind import Kind
from faults.weights import WEIGHTS
from faults.written import WRITTEN

__all__ = ["KINDS"]

KINDS: dict[str, Kind] = {**INPUTS, **WEIGHTS, **WRITTEN}
