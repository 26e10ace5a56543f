"""The frozen pass of a method through another engine, at the place where its features would be cached."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vlad.engines.sessions import Engine, Session, engine_version, has_bf16, open_session
from vlad.errors import MethodError, OptionError, VladError
from vlad.features.cache import encoder_facts, leaves_of, rebuild
from vlad.files import cache_folder, scratch_folder, write_json
from vlad.types import Requirements, map_tensors

if TYPE_CHECKING:
    from vlad.encoders import Encoder

__all__ = ["EnginePrecision", "FrozenEngine", "set_engine"]

EnginePrecision = Literal["fp32", "bf16"]
Tree = TypeVar("Tree")

_FORMAT = 2


class FrozenEngine:
    """Runs what a method's frozen encoder computes; what follows (texts, references, maps) stays with torch.

    A graph is compiled once for each encoder, set of layers, image size, engine and precision, and kept in vlad's
    cache folder. ``torch`` compiles nothing: it is torch itself, in bfloat16 by its autocast.

    Attributes:
        name: The engine.
        precision: What it computes in.
        label: Both and the engine's version, for records.
    """

    def __init__(
        self, name: Engine, precision: EnginePrecision = "fp32", *, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        """Compiles nothing yet.

        Args:
            name: The engine.
            precision: What it computes in.
            tell: Takes a line about each graph that is compiled or found.

        Raises:
            OptionError: The engine or this CPU does not compute in that precision.
            MethodError: The engine is not installed.
        """
        if precision == "bf16" and name == "onnx":
            raise OptionError("engine onnx computes in fp32 alone: ONNX Runtime's CPU kernels have no bf16")
        if precision == "bf16" and not has_bf16():
            raise OptionError("engine precision bf16: this CPU has no bfloat16 arithmetic (AMX or AVX-512 BF16)")
        self.name, self.precision, self._tell = name, precision, tell
        version = engine_version(name)
        self.label = "torch" if (name, precision) == ("torch", "fp32") else f"{version} {precision}"
        self._sessions: dict[str, Session] = {}

    def bind(
        self, compute: Callable[[Tensor], Tree], names: Any, encoder: Encoder
    ) -> tuple[Callable[[Tensor], Tree], Any]:
        """Returns what computes the same by this engine, and names that say so; arguments as for :meth:`run`."""
        named = rebuild(names, (f"{name} by {self.label}" for name in leaves_of(names)))
        return lambda images: self.run(images, compute, names, encoder), named

    def run(self, images: Tensor, compute: Callable[[Tensor], Tree], names: Any, encoder: Encoder) -> Tree:
        """Computes what a frozen encoder makes of images.

        Args:
            images: Normalised images (B, 3, H, W), float32, on the CPU.
            compute: Makes a tree of tensors (B, …) of images.
            names: The same tree with what each tensor is; see :meth:`vlad.Method.frozen`.
            encoder: The encoder.

        Raises:
            MethodError: The images are elsewhere or in another precision, or the engine cannot express the graph.
        """
        if images.device.type != "cpu" or images.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            raise MethodError(
                f"engine {self.name} takes float32 images on the CPU: leave trainer.precision and device out"
            )
        if self.name == "torch":
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
                return map_tensors(lambda tensor: tensor.float(), compute(images))
        facts = {
            **encoder_facts(encoder, images),
            "names": list(leaves_of(names)),
            "size": list(images.shape[-2:]),
            "engine": self.label,
            "format": _FORMAT,
            "torch": torch.__version__,
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        if key not in self._sessions:
            self._sessions[key] = self._open(key, facts, images, compute, encoder)
        arrays = self._sessions[key](images.contiguous().numpy())
        with torch.inference_mode(False):  # references fitted on it are kept
            found = [torch.from_numpy(array) for array in arrays]
        tree: Tree = rebuild(names, iter(found))
        return tree

    def _open(
        self, key: str, facts: dict[str, Any], images: Tensor, compute: Callable[[Tensor], Any], encoder: Encoder
    ) -> Session:
        folder = cache_folder() / "engines" / key
        file = folder / ("frozen.onnx" if self.name == "onnx" else "frozen.xml")
        threads, size = torch.get_num_threads(), "x".join(map(str, images.shape[-2:]))
        if (folder / "facts.json").is_file():
            try:
                session = open_session(self.name, file, threads=threads)
                self._tell(f"engine: {self.label}, {size}, compiled before ({folder})")
                return session
            except VladError as error:
                print(f"note: {error}; it is compiled again", file=sys.stderr)
        from vlad.engines.convert import capture, write_graph  # which imports torch's compiler

        started = time.monotonic()
        program = capture(_Frozen(compute, encoder), images[:1].detach().clone().repeat(2, 1, 1, 1))
        with scratch_folder(folder) as partial:
            outputs = [f"output_{number}" for number in range(len(facts["names"]))]
            write_graph(self.name, program, partial / "frozen", outputs, self.precision)
            write_json(partial / "facts.json", facts)
            _replace(partial, folder)
        session = open_session(self.name, file, threads=threads)
        self._tell(f"engine: {self.label}, {size}, compiled in {time.monotonic() - started:.0f} s ({folder})")
        return session


class _Frozen(nn.Module):
    """The frozen pass as a module whose outputs are plain tensors."""

    def __init__(self, compute: Callable[[Tensor], Any], encoder: Any) -> None:
        super().__init__()
        self.compute, self.encoder = compute, encoder  # whose weights are then those of the graph
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaves_of(self.compute(images)))


def _replace(partial: Path, folder: Path) -> None:
    """Puts files in their place one by one; another process may have put the same there."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(partial.iterdir(), key=lambda file: file.name == "facts.json"):
        file.replace(folder / file.name)


class Encodes(Protocol):
    """What an engine can be given to; every :class:`vlad.Method` is one."""

    engine: FrozenEngine | None
    feature_cache: Any

    @property
    def requirements(self) -> Requirements:
        """See :class:`vlad.Method`."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    def eval(self) -> Encodes:
        """See :class:`torch.nn.Module`."""
        ...

    def encode(self, images: torch.Tensor) -> Any:
        """See :class:`vlad.Method`."""
        ...


class _AskedError(Exception):
    """A method has asked for its frozen pass."""


class _Probe:
    """Stands in for an engine and tells whether it would be asked."""

    def bind(self, *_: Any) -> Any:
        """Ends the pass."""
        raise _AskedError


def set_engine(method: Encodes, engine: FrozenEngine | None) -> None:
    """Gives a method an engine, or takes it away.

    Args:
        method: The method.
        engine: The engine; None for torch as ever.

    Raises:
        MethodError: The method has no frozen pass, such as one with learned tokens in its image tower.
    """
    method.engine = None
    if engine is None:
        return
    side = method.requirements.preprocess.size
    cache, method.feature_cache = method.feature_cache, None
    method.engine = _Probe()  # type: ignore[assignment]
    try:
        with torch.inference_mode():
            method.eval().encode(torch.zeros(1, 3, side, side, device=method.device))
    except _AskedError:
        method.engine = engine
    else:
        method.engine = None
        raise MethodError(
            f"{type(method).__name__} has no frozen pass that an engine could take over: what it has learned takes "
            "part in its image tower, or it does not encode through Method.frozen; vlad export may write all of it"
        )
    finally:
        method.feature_cache = cache
