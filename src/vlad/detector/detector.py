"""A detector scores files, folders, PIL images and arrays with a method, its references and its decision."""

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
    """A method that is ready to score images, as returned by :func:`vlad.load`.

    The scores of a file are identical to those of ``vlad predict`` with the same batch size. Scoring draws no random
    numbers, writes no files, and is thread-safe.

    Attributes:
        method: The method, in evaluation mode; to work with tensors, use ``detector.method.score(…)``.
        class_name: Default class name of the images; None: ``object``, or the class name in a table.
        references: Records of the reference images: one mapping each with ``dataset``, ``category``,
            ``image_id``, ``path`` and ``sha256``.
        reading: Intensity range of images with more than 8 bits, and the largest number of pixels.

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
        """Creates a detector for a method.

        Args:
            method: The method, trained and fitted if it needs to be.
            decision: A decision, its file, or a number: the smallest score that is anomalous; None for none.
            class_name: Default class name of the images.
            run: The run folder or checkpoint that the method was loaded from.
            reading: Intensity range of images with more than 8 bits, and the largest number of pixels.

        Raises:
            DataError: The class name is invalid.
            DecisionError: The decision cannot be read, or was made with other scores.
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
        """The decision that classifies scores (:class:`vlad.decision.Decision`), or None.

        Accepts a decision, its file or a number. Assigning a decision that was made with other scores raises an error.
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
        """Raises an error if the decision was made with other scores."""
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
        """Returns the data options that scores depend on besides the method: how images are read."""
        from vlad.datamodules import AnomalyDataModule

        values = self.reading.intensity_range
        return AnomalyDataModule(intensity_range=None if values is None else list(values)).scoring_options

    def to(self, device: str | torch.device) -> Detector:
        """Moves the method to a device, such as ``cuda`` or ``cpu``; returns the detector.

        Raises:
            MethodError: The device is not available.
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
        """Fits the method on normal images, as ``--references`` does; replaces earlier references.

        Args:
            images: Normal images of one class, as :meth:`predict` takes them, or a list in a file (``.txt``, or
                ``.csv`` with ``image_path``); or a mapping from class names to these.
            class_name: Their class name; by default the detector's.
            shots: Number of images drawn per class; None uses all.
            seed: Seed of the draw.
            batch_size: Number of images per batch.

        Returns:
            The detector.

        Raises:
            MethodError: The method does not support references.
            DataError: No image is found, an image cannot be read, or some are in folders of anomalies.
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
            images: Path of a file, a folder (searched with its sub-folders), a glob pattern or a table; a PIL image; a
                uint8 array (H, W), (H, W, 3) in RGB order or (H, W, 4) in RGBA order; or a list or generator of these.
            class_name: Class name for the prompts: one string, or one per image; by default the detector's. If it has
                none, that of a table, or ``object``.
            batch_size: Number of images, or tiles of one image, per batch; another size may change the last bits of a
                score.
            num_workers: Number of processes that read files, for folders on a fast device; 0 reads in this process.

        Returns:
            A :class:`vlad.Result` for one image: a PIL image, an array, or the path of a file with one image. Otherwise
            :class:`vlad.Results`, in order, even for a list or folder of one. All maps stay in memory at the method's
            size: for very many images use :meth:`stream`.

        Raises:
            DataError: The type is wrong, nothing is found, or a single image cannot be read. Among several images, an
                unreadable one gives a result with an ``error``.
            MethodError: The method is untrained, lacks references, or can only score whole test sets.
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
        """Scores images and yields each result as soon as its batch is scored, in constant memory.

        A generator may be endless; with ``batch_size=1`` a result is yielded after every image.

        Args:
            images: As for :meth:`predict`.
            class_name: As for :meth:`predict`.
            batch_size: As for :meth:`predict`.
            num_workers: As for :meth:`predict`.

        Returns:
            An iterator of results in the order of the images; an unreadable image has an ``error``.

        Raises:
            DataError: As for :meth:`predict`.
            MethodError: As for :meth:`predict`.
        """
        return self._results(images, class_name, batch_size, num_workers, {})

    def _results(
        self, images: Any, class_name: Any, batch_size: int, num_workers: int, ignored: dict[str, list[str]]
    ) -> Iterator[Result]:
        """Checks the inputs and returns an iterator that scores them."""
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
        """Calibrates a decision on normal images, as ``vlad calibrate`` does, and uses it from then on.

        Args:
            images: Normal images as for :meth:`predict`; references and duplicates among them are left out.
            false_alarm_rate: Share of normal images that may be called anomalous.
            class_name: Their class name; by default the detector's. Images of another class get no decision.
            min_area: Smallest area of a region as a share of the image.
            batch_size: Number of images per batch.

        Returns:
            The decision; ``decision.save("decision.json")`` writes it to a file.

        Raises:
            DataError: The type is wrong, nothing is found, or images are in folders of anomalies.
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
