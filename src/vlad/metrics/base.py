"""What our metrics have in common beside torchmetrics' interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["ResultMetric", "check_recalls", "fpr_name", "scalars"]

Result = TypeVar("Result")


def scalars(values: Mapping[str, float], device: torch.device) -> dict[str, Tensor]:
    """Returns numbers as scalar tensors, as precise as the device allows."""
    dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS knows no float64
    return {name: torch.tensor(value, dtype=dtype, device=device) for name, value in values.items()}


def fpr_name(recall: float) -> str:
    """Returns what the false-positive rate at a recall is called.

    Examples:
        >>> fpr_name(0.95)
        'fpr_at_0.95'
    """
    return f"fpr_at_{recall:g}"


def check_recalls(recalls: Sequence[float]) -> tuple[float, ...]:
    """Returns recalls without repetitions.

    Raises:
        ValueError: One is not in (0, 1].
    """
    if not all(0 < recall <= 1 for recall in recalls):
        raise ValueError(f"recalls lie in (0, 1], got {recalls}")
    return tuple(dict.fromkeys(float(recall) for recall in recalls))


class ResultMetric(Metric, Generic[Result]):
    """A metric of several numbers in [0, 1]; ``compute`` gives them as tensors, :meth:`result` as a named tuple.

    A subclass's ``compute`` leaves the named tuple in ``_result``.
    """

    level: ClassVar[Literal["image", "pixel"]]
    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    _result: Result | None = None

    def result(self) -> Result:
        """Returns the same as plain numbers, with the threshold of F1-max and why a value is NaN."""
        self.compute()  # gathers from the other ranks; its value is cached
        assert self._result is not None
        return self._result

    def details(self) -> dict[str, float]:
        """Returns what is worth a column but no mean."""
        return {"f1_threshold": self.result().f1_threshold}  # type: ignore[attr-defined]

    def why_undefined(self) -> str:
        """Returns why a value is NaN, or ""."""
        return self.result().undefined  # type: ignore[attr-defined]

    def merge_state(self, incoming_state: Any) -> None:
        """Adds what another metric of this kind has seen; see :meth:`torchmetrics.Metric.merge_state`."""
        super().merge_state(incoming_state)
        self._update_count += getattr(incoming_state, "_update_count", 1)
        self._computed = None  # torchmetrics keeps the value from before

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plots the values, or those given; see :meth:`torchmetrics.Metric.plot`. Needs matplotlib."""
        return self._plot(val, ax)
