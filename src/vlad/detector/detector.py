"""A detector: a method with what belongs to it, which scores files, folders, PIL images and arrays."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from PIL import Image

from vlad.datamodules.decode import Reading
from vlad.detector.images import GivenImages
from vlad.detector.inputs import Found, as_class_names, find, is_path
from vlad.detector.references import find_references, fit, recorded, rotated_copies
from vlad.detector.results import Result, Results
from vlad.detector.scorer import score_batch, set_scales
from vlad.errors import DataError, MethodError
from vlad.tiling import requirements_of
from vlad.types import Preprocess

if TYPE_CHECKING:
    import pandas as pd

    from vlad.decision import Decision
    from vlad.methods.base import Method

__all__ = ["Detector"]

Path = str | os.PathLike[str]


class Detector:
    """A method, ready to score images: what :func:`vlad.load` returns.

    A file gets the same numbers, to the last bit, as from ``vlad predict`` with the same batch size. Scoring draws no
    random numbers, writes no files, and may be done in several threads at once.

    Attributes:
        method: The method, in evaluation mode, for those who want tensors: ``detector.method.score(…)``.
        class_name: What is in the images where ``predict`` is not told; None: ``object``, or what a table says.
        references: What is known of the reference images: one mapping each with ``dataset``, ``category``,
            ``image_id``, ``path`` and ``sha256``.
        reading: What is black and white in images of more than 8 bits, and how many pixels are too many.

    Examples:
        >>> import vlad
        >>> detector = vlad.load("sdp", backbone="vlad-tiny", pretrained=None, image_size=96)
        >>> detector
        Detector(SDP on vlad-tiny, 96 px, zero-shot, no decision, cpu)
        >>> detector.predict(np.zeros((40, 60, 3), np.uint8), class_name="bolt").map.shape
        (40, 60)
    """

    def __init__(
        self,
        method: Method,
        *,
        decision: Decision | Path | float | None = None,
        class_name: str | None = None,
        run: Path | None = None,
        reading: Reading | None = None,
    ) -> None:
        """Takes a method.

        Args:
            method: The method, trained and fitted as far as it has to be.
            decision: A decision, its file, or a number from which on a score is anomalous; None for none.
            class_name: What is in the images where ``predict`` is not told.
            run: The run folder or checkpoint that the method comes from.
            reading: What is black and white in images of more than 8 bits, and how many pixels are too many.

        Raises:
            DataError: A wrong class name.
            DecisionError: A decision that cannot be read, or was made with other scores.
        """
        name = as_class_names(class_name)
        if not (name is None or isinstance(name, str)):
            raise DataError(f"class_name of a detector is one string, not {type(class_name).__name__}")
        self.method = method.eval()
        self.class_name = name
        self.reading = reading or Reading()
        self._run = None if run is None else os.fspath(run)
        self.references = recorded(self._run) if method.fitted else []
        self._reference_frame: pd.DataFrame | None = None
        self._known: dict[bytes, str] = {}
        self._decision: Decision | None = None
        self._checked = True
        self.decision = decision

    # -- what belongs to it --------------------------------------------------------------------------------

    @property
    def preprocess(self) -> Preprocess:
        """How an image is resized and normalised for the method."""
        return requirements_of(self.method).preprocess

    @property
    def decision(self) -> Any:
        """What makes a score normal or anomalous (:class:`vlad.decision.Decision`), or None.

        A decision, its file or a number may be assigned; one that was made with other scores is refused.
        """
        return self._decision

    @decision.setter
    def decision(self, given: Decision | Path | float | None) -> None:
        from vlad.decision import Decision

        before, self._checked = self._decision, False
        value: Any = os.fspath(given) if isinstance(given, os.PathLike) else given
        self._decision = value if isinstance(value, Decision) else Decision.read(value)
        try:
            self._check()
        except Exception:
            self._decision = before
            raise

    def _check(self) -> None:
        """Refuses a decision that was made with other scores."""
        from vlad.decision.records import check_decision

        if self._decision is not None and not self._checked:
            check_decision(
                self._decision,
                self.method,
                data=self.data_options(),
                references=self._reference_frame,
                run=self._run,
            )
        self._checked = True

    def data_options(self) -> dict[str, Any]:
        """Returns what scores depend on beside the method: how images are read, as the data module tells it."""
        from vlad.datamodules import AnomalyDataModule

        values = self.reading.intensity_range
        return AnomalyDataModule(intensity_range=None if values is None else list(values)).scoring_options

    def to(self, device: str | torch.device) -> Detector:
        """Moves the method to a device, such as ``cuda`` or ``cpu``; returns the detector.

        Raises:
            MethodError: There is no such device.
        """
        try:
            self.method.to(torch.device(device))
        except (RuntimeError, AssertionError, NotImplementedError, ValueError, TypeError) as error:
            there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
            cause = str(error).splitlines()[0].partition(". ")[0].partition(" device type")[0]
            raise MethodError(f"device '{device}' cannot be used, there is {there} ({cause})") from error
        return self

    def fit_references(
        self,
        images: Any,
        *,
        class_name: str | None = None,
        shots: int | None = None,
        seed: int = 0,
        batch_size: int = 8,
    ) -> Detector:
        """Fits the method on normal images, as ``--references`` does; what it was fitted on before is forgotten.

        Args:
            images: Normal images of one class, as :meth:`predict` takes them, or a list in a file (``.txt``, or
                ``.csv`` with ``image_path``); or a mapping from class names to such.
            class_name: What is in them; by default the detector's.
            shots: So many per class are drawn; None takes all.
            seed: Seed of the draw.
            batch_size: Images of a batch.

        Returns:
            The detector.

        Raises:
            MethodError: The method takes no references.
            DataError: Nothing is there, an image cannot be read, or some are in folders of anomalies.
        """
        name = class_name if isinstance(images, Mapping) else class_name or self.class_name
        found = find_references(images, name, shots, seed)
        self.references, self._known, self._reference_frame = [], {}, None  # what was fitted before is lost either way
        copies = rotated_copies(found, self.method.requirements.reference_rotations)
        self.references, self._known = fit(self.method, GivenImages(copies, self.preprocess, self.reading), batch_size)
        self._run, self._checked = None, False
        in_files = all(pixels is None for pixels in found.in_memory)
        self._reference_frame = found.frame if in_files else None
        return self

    # -- scoring -------------------------------------------------------------------------------------------

    @overload
    def predict(
        self,
        images: Image.Image | np.ndarray,
        *,
        class_name: str | Iterable[str] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> Result: ...

    @overload
    def predict(
        self,
        images: Any,
        *,
        class_name: str | Iterable[str] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> Any: ...

    def predict(
        self,
        images: Any,
        *,
        class_name: str | Iterable[str] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> Result | Results:
        """Scores images.

        Args:
            images: A path of a file, a folder (searched with its sub-folders), a pattern or a table; a PIL image; a
                uint8 array (H, W), (H, W, 3) in the order RGB or (H, W, 4) in the order RGBA; or a list or generator
                of these.
            class_name: What is in the images, for the prompts: one string, or one per image; by default the
                detector's, else ``object``, else what a table says.
            batch_size: Images, or tiles of one, that are scored together; another number may change the last bits of a
                score.
            num_workers: Processes that read files, for folders on a fast device; 0 reads them in this one.

        Returns:
            A :class:`vlad.Result` of one image: a PIL image, an array, or the path of a file that holds one. Else
            :class:`vlad.Results`, in order, also of a list or folder of one. Their maps are kept at the method's
            size: of very many images use :meth:`stream`.

        Raises:
            DataError: A wrong type, nothing there, or the one image cannot be read. Among several, an image that
                cannot be read is a result with an ``error``.
            MethodError: The method is untrained, lacks references, or scores whole test sets alone.
        """
        ignored: dict[str, list[str]] = {}
        results = list(self._results(images, class_name, batch_size, num_workers, ignored))
        in_memory = isinstance(images, Image.Image | np.ndarray)
        if in_memory or (
            len(results) == 1 and is_path(images) and os.path.lexists(images) and not os.path.isdir(images)
        ):
            if results[0].error:
                raise DataError(results[0].error)
            return results[0]
        set_scales(results)
        return Results(results, ignored)

    def stream(
        self,
        images: Any,
        *,
        class_name: str | Iterable[str] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> Iterator[Result]:
        """Scores images and yields each result as soon as its batch is scored: memory does not grow with their number.

        A generator may be without an end; ``batch_size=1`` answers after every image.

        Args:
            images: As for :meth:`predict`.
            class_name: As for :meth:`predict`.
            batch_size: As for :meth:`predict`.
            num_workers: As for :meth:`predict`.

        Returns:
            An iterator of results in the order of the images; what cannot be read has an ``error``.

        Raises:
            DataError: As for :meth:`predict`.
            MethodError: As for :meth:`predict`.
        """
        return self._results(images, class_name, batch_size, num_workers, {})

    def _results(
        self, images: Any, class_name: Any, batch_size: int, num_workers: int, ignored: dict[str, list[str]]
    ) -> Iterator[Result]:
        """Checks what is given, and returns an iterator that scores it."""
        _check_count("batch_size is a number of images", batch_size, least=1)
        _check_count("num_workers is a number of processes", num_workers, least=0)
        names = as_class_names(class_name if class_name is not None else self.class_name)
        self._check()
        self.method.refuse_unfit()
        parts = find(images, names, size=batch_size)
        if not isinstance(images, Iterator):  # what is wrong is told now, and not where the first result is taken
            parts = itertools.chain([next(parts)], parts)
        return self._score(parts, batch_size, num_workers, ignored, self._decision)

    def _score(
        self,
        parts: Iterable[Found],
        batch_size: int,
        num_workers: int,
        ignored: dict[str, list[str]],
        decision: Decision | None,
    ) -> Iterator[Result]:
        told: set[str] = set()
        self.method.on_predict_start()
        try:
            for found in parts:
                for reason, files in found.ignored.items():
                    ignored.setdefault(reason, []).extend(files)
                dataset = GivenImages(found, self.preprocess, self.reading)
                for batch in dataset.batches(batch_size, num_workers):
                    yield from score_batch(self.method, decision, dataset, batch, self._known, told)
        finally:
            self.method.teardown("predict")

    def calibrate(
        self,
        images: Any,
        *,
        false_alarm_rate: float = 0.05,
        class_name: str | None = None,
        min_area: float = 0.0,
        batch_size: int = 8,
    ) -> Decision:
        """Finds from normal images which scores are anomalous, as ``vlad calibrate`` does, and decides so from now on.

        Args:
            images: Normal images as :meth:`predict` takes them; references and copies among them are left out.
            false_alarm_rate: Share of normal images that may be called anomalous.
            class_name: What is in them; by default the detector's. Images of another class get no decision.
            min_area: Smallest area of a region as a share of the image.
            batch_size: Images that are scored together.

        Returns:
            The decision; ``decision.save("decision.json")`` keeps it.

        Raises:
            DataError: A wrong type, nothing there, or images in folders of anomalies.
            DecisionError: Too few images for the rate.
            MethodError: As for :meth:`predict`.
        """
        from vlad.decision.make import Wish
        from vlad.detector.calibration import choose, find_normal, make

        Wish(rate=false_alarm_rate, min_area=min_area).check()
        _check_count("batch_size is a number of images", batch_size, least=1)
        self.method.refuse_unfit()
        name = as_class_names(class_name if class_name is not None else self.class_name)
        if not (name is None or isinstance(name, str)):
            raise DataError("class_name of calibration images is one string: calibrate on one class at a time")
        chosen, found = choose(find_normal(images, name), self.method, self.references, self._run)
        results = self._score([found], batch_size, 0, {}, None)
        decision = make(
            self.method,
            chosen,
            results,
            rate=false_alarm_rate,
            min_area=min_area,
            data=self.data_options(),
            references=self._reference_frame,
            run=self._run,
        )
        self.decision = decision
        return decision

    # -- as text -------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        method = self.method
        encoder = "" if method.backbone is None else f" on {method.backbone.name}"
        names = ", ".join(name.partition("/")[2] for name in method.memory.categories)
        fitted = f"references of {names}" if names else "references" if method.fitted else "zero-shot"
        decision = f"{self._decision.kind} decision" if self._decision else "no decision"
        size = f"{self.preprocess.size} px" + (f" of tiles of {method.tiling.tile} px" if method.tiling else "")
        name = f"{type(method).__name__}{encoder}"
        return f"Detector({name}, {size}, {fitted}, {decision}, {method.device})"

    def __getattr__(self, name: str) -> Any:
        from vlad.methods.base import Method

        if not name.startswith("_") and hasattr(Method, name):
            raise AttributeError(f"a Detector has no {name!r}, its method has: detector.method.{name}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _check_count(what: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{what}, {least} or more, not {value!r}")
