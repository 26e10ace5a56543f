"""Runs the frozen forward pass of a method with another inference engine."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from vlad.errors import OptionError

__all__ = ["EncoderEngine"]


class EncoderEngine(Callback):
    """Runs the frozen encoder of a method with another engine; the rest runs in torch."""

    def __init__(
        self, name: Literal["openvino", "onnx", "torch"] | None = None, precision: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        """Chooses the engine.

        Args:
            name: ``openvino`` or ``onnx`` (ONNX Runtime), on the CPU; ``torch`` is torch itself, as by default.
            precision: Precision of the encoder; ``bf16`` with ``openvino`` or ``torch``, on a CPU that supports it.

        Raises:
            OptionError: A precision without an engine.
        """
        if name is None and precision != "fp32":
            raise OptionError("engine.precision needs an engine: --engine openvino, or torch")
        self.name, self.precision = name, precision

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sets the engine of the method.

        Raises:
            OptionError: The engine or CPU lacks the precision, or the trainer computes in another.
            MethodError: The engine is not installed, or the method's encoder is not frozen.
        """
        if self.name is None:
            return
        from vlad.engines.frozen import FrozenEngine, set_engine

        if str(trainer.precision) != "32-true":
            raise OptionError(
                f"engine.name and trainer.precision={trainer.precision} exclude each other: leave one out"
            )

        def tell(line: str) -> None:
            if trainer.is_global_zero:
                print(line, flush=True)

        method: Any = pl_module
        set_engine(method, FrozenEngine(self.name, self.precision, tell=tell))
