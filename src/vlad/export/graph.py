"""What is exported of a method: encode, compare and finish in one module, text and references as tensors in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlad.engines.convert import capture
from vlad.errors import MethodError
from vlad.features.cache import leaves_of
from vlad.types import map_tensors

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from vlad.methods.base import Method
    from vlad.types import Features

__all__ = ["OUTPUTS", "ScoringGraph", "capture_parts", "checked_graph", "refusal", "with_help"]

OUTPUTS = ("map", "score")
"""Names of a graph's outputs."""

# Class path -> what helps where the graph of a method cannot be expressed; the reason itself comes of trying.
_HELP = {
    "vlad.methods.anomalydino.AnomalyDINO": "--model.mask none leaves the foreground mask out",
    "vlad.methods.clip_ada.CLIPADA": "--model.refinement vlad.methods.refinement.NoRefinement leaves the zoom out",
}


class ScoringGraph(nn.Module):
    """A method as a function of images alone.

    Attributes:
        method: The method.
        text: The text of one class, a tree of tensors (1, …), or None.
        references: Patch tokens of one category's references, per level (N, D), or None.
    """

    def __init__(self, method: Method, class_name: str, category: str | None, *, bf16: bool = False) -> None:
        """Takes the text of a class and the references of a category.

        Args:
            method: The method, trained and fitted, in evaluation mode.
            class_name: What is in the images.
            category: Whose references, ``dataset/category``; None without.
            bf16: Whether the encoder computes under the CPU's autocast to bfloat16; what follows keeps float32.
        """
        super().__init__()
        self.method, self.bf16 = method, bf16
        self.text: Any = method.texts([class_name])
        self.references = None if category is None else method.memory.levels_of(category)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores normalised images (N, 3, H, W): maps (N, H, W) and scores (N,), float32."""
        text = map_tensors(lambda tensor: tensor.expand(images.shape[0], *tensor.shape[1:]), self.text)
        if self.bf16:  # inside of the graph: torch.export leaves out what is switched on around it
            with torch.autocast("cpu", torch.bfloat16):
                encoded = self.method.encode(images)
            features = map_tensors(lambda tensor: tensor.float(), encoded)
            scores = self.method.compare(features, text, self.references)
            prediction = self.method.finish(scores, (images.shape[-2], images.shape[-1]))
        else:
            prediction = self.method(images, text, self.references)
        return prediction.anomaly_map.float(), prediction.image_score.float()


class EncodeGraph(nn.Module):
    """The encoder alone: from images to some leaves of its features."""

    def __init__(self, graph: ScoringGraph, used: Sequence[int]) -> None:
        super().__init__()
        self.method, self.used = graph.method, used

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encodes normalised images (N, 3, H, W)."""
        leaves = list(leaves_of(self.method.encode(images)))
        return tuple(leaves[number] for number in self.used)


class HeadGraph(nn.Module):
    """What follows the encoder: from some leaves of features to map and score."""

    def __init__(self, graph: ScoringGraph, features: Features, size: tuple[int, int], used: Sequence[int]) -> None:
        super().__init__()
        self.scoring, self.size, self.used = graph, size, used
        self.features = map_tensors(lambda leaf: leaf[:1], features)  # what is not used stands there all the same

    def forward(self, leaves: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Compares features and makes maps (N, H, W) and scores (N,)."""
        graph, given = self.scoring, dict(zip(self.used, leaves, strict=True))
        chosen = iter([given.get(number, kept) for number, kept in enumerate(leaves_of(self.features))])
        features: Any = map_tensors(lambda _: next(chosen), self.features)
        text = map_tensors(lambda tensor: tensor.expand(leaves[0].shape[0], *tensor.shape[1:]), graph.text)
        prediction = graph.method.finish(graph.method.compare(features, text, graph.references), self.size)
        return prediction.anomaly_map.float(), prediction.image_score.float()


def capture_parts(graph: ScoringGraph, images: Tensor) -> tuple[ExportedProgram, ExportedProgram]:
    """Traces a method in two: what may be computed in few bits, and what must not.

    Returns:
        The encoder, and the head, which takes the encoder's outputs in their order.
    """
    with torch.inference_mode(False), torch.no_grad():
        features = graph.method.encode(images)
    leaves, size = tuple(leaves_of(features)), (images.shape[-2], images.shape[-1])
    whole = capture(HeadGraph(graph, features, size, range(len(leaves))).eval(), leaves)
    places = {node.name: node for node in whole.graph.nodes if node.op == "placeholder"}
    used = [
        number
        for number, name in enumerate(whole.graph_signature.user_inputs)
        if any("sym_size" not in str(user.target) for user in places[str(name)].users)  # more than its batch is read
    ]
    head = capture(HeadGraph(graph, features, size, used).eval(), tuple(leaves[number] for number in used))
    return capture(EncodeGraph(graph, used).eval(), images), head


def refusal(method: Method) -> str:
    """Returns why a method is not exported by what it says of itself; "" where it may be tried."""
    from vlad.checkpoint import class_path_of

    name, tags = type(method).__name__, method.tags
    if tags.transductive == "features":
        reason = f"{name} scores the images of a whole test set by each other (transductive): no graph of one image"
    elif tags.transductive:
        reason = (
            f"{name} as configured rescales image scores over a whole test set (transductive): choose a setting that "
            "is not, such as --model.as_published false"
        )
    else:
        reason = tags.no_export and f"{name} is not exported: {tags.no_export}"
    return reason and with_help(reason, class_path_of(type(method)))


def with_help(reason: str, class_path: str) -> str:
    """Adds to a reason what helps, where that is known."""
    return f"{reason}; {_HELP[class_path]}" if class_path in _HELP else reason


def checked_graph(method: Method, class_name: str, category: str | None, *, bf16: bool = False) -> ScoringGraph:
    """Returns the graph of a method that is fit to score; arguments as for :class:`ScoringGraph`.

    Raises:
        MethodError: It is untrained, lacks references, or is of a kind that cannot be exported.
    """
    reason = refusal(method)
    if reason:
        raise MethodError(reason)
    method.refuse_unfit()
    with torch.inference_mode(False), torch.no_grad():
        return ScoringGraph(method.eval(), class_name, category, bf16=bf16)
