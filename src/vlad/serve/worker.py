"""One thread around a detector: what arrives at the same time is scored in one batch."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from vlad.errors import MethodError, VladError

if TYPE_CHECKING:
    from vlad.detector import Detector, Result
    from vlad.detector.inputs import InMemory

__all__ = ["Busy", "Closed", "Worker"]

_NAMES = 256  # class names whose text is kept: clients choose them, and the memory must not grow with their number


class Busy(Exception):
    """The queue is full.

    Attributes:
        seconds: After so many a place is expected to be free, at least 1.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full: try again in {seconds} s")
        self.seconds = seconds


class Closed(Exception):
    """The service is stopping and takes nothing new."""


class _Job(NamedTuple):
    image: InMemory
    class_name: str
    answer: Future[Result]


class Worker:
    """Scores images one batch after another, in a thread of its own.

    A batch begins with the image that has waited longest, and waits for others ``max_wait`` seconds at most. What a
    batch cannot be scored for, such as a class without references, is told to the image at fault alone.

    Attributes:
        detector: What scores.
        pending: Images that were let in and have no answer yet.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        max_batch: int = 8,
        max_wait: float = 0.005,
        max_queue: int = 64,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        """Starts the thread.

        Args:
            detector: What scores; one that is transductive, untrained or lacks references is refused.
            max_batch: Images of a batch, at most.
            max_wait: Seconds that the first image of a batch waits for others.
            max_queue: Images that are let in and have no answer yet, at most.
            on_batch: Is told the size of each batch and the seconds that it took.

        Raises:
            MethodError: The method cannot score image by image.
        """
        refuse_unservable(detector)
        self.detector = detector
        self.pending = 0
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._on_batch = on_batch
        self._jobs: deque[_Job] = deque()
        self._change = threading.Condition()
        self._stopping = self._closing = False
        self._seconds = 0.1  # that an image takes, as last measured
        self._names: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="vlad-serve", daemon=True)
        self._thread.start()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Takes a place in the queue: from before an image is read until it is answered.

        Raises:
            Busy: There is none.
            Closed: The service is stopping.
        """
        with self._change:
            if self._stopping:
                raise Closed
            if self.pending >= self._max_queue:
                raise Busy(min(60, max(1, math.ceil(self.pending * self._seconds))))
            self.pending += 1
        try:
            yield
        finally:
            with self._change:
                self.pending -= 1

    def submit(self, image: InMemory, class_name: str | None = None) -> Future[Result]:
        """Puts an image into the queue; who does so has a place, or bounds by itself how many of its wait.

        Args:
            image: An array as of :func:`vlad.serve.uploads.decode`, or a PIL image.
            class_name: What is in it; by default the detector's, else ``object``.

        Returns:
            What will be its result, or a :class:`vlad.errors.VladError` that tells why there is none.

        Raises:
            Closed: The service has stopped.
        """
        job = _Job(image, class_name or self.detector.class_name or "object", Future())
        with self._change:
            if not self._thread.is_alive():
                raise Closed
            self._jobs.append(job)
            self._change.notify_all()
        return job.answer

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._jobs)

    @property
    def alive(self) -> bool:
        """Whether it takes images."""
        return self._thread.is_alive() and not self._stopping

    @property
    def full(self) -> bool:
        """Whether there is no place."""
        return self.pending >= self._max_queue

    def stop_taking(self) -> None:
        """Gives no places any more; what has one is still scored, and no batch waits for others."""
        with self._change:
            self._stopping = True
            self._change.notify_all()

    def close(self) -> None:
        """Scores what is in the queue, then ends the thread."""
        with self._change:
            self._stopping = self._closing = True
            self._change.notify_all()
        self._thread.join()

    # -- in the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while batch := self._take():
            start = time.perf_counter()
            self._score(batch)
            seconds = time.perf_counter() - start
            self._seconds += 0.2 * (seconds / len(batch) - self._seconds)
            if self._on_batch is not None:
                self._on_batch(len(batch), seconds)
            del batch  # its images are not kept while the next are waited for

    def _take(self) -> list[_Job]:
        """Waits for a batch; none where the end has come."""
        with self._change:
            while not self._jobs:
                if self._closing:
                    return []
                self._change.wait()
            until = time.monotonic() + self._max_wait
            while len(self._jobs) < self._max_batch and not self._stopping:
                left = until - time.monotonic()
                if left <= 0 or not self._change.wait(left):
                    break
            batch = [self._jobs.popleft() for _ in range(min(len(self._jobs), self._max_batch))]
        # a client that has gone, and gave its image up, is not waited for
        return [job for job in batch if job.answer.set_running_or_notify_cancel()] or self._take()

    def _score(self, batch: list[_Job]) -> None:
        self._forget_names(batch)
        try:
            results = list(
                self.detector.stream(
                    [job.image for job in batch],
                    class_name=[job.class_name for job in batch],
                    batch_size=len(batch),
                )
            )
        except VladError as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for job in batch:
                self._score([job])
            return
        except BaseException as error:  # a defect must not end the service: who waits is told
            for job in batch:
                job.answer.set_exception(error)
            return
        for job, result in zip(batch, results, strict=True):
            job.answer.set_result(result)

    def _forget_names(self, batch: list[_Job]) -> None:
        self._names |= {job.class_name for job in batch}
        if len(self._names) > _NAMES:
            self.detector.method._texts.clear()
            self._names.clear()


def refuse_unservable(detector: Detector) -> None:
    """Refuses a detector whose method cannot score one image after another.

    Raises:
        MethodError: It is transductive, untrained, or lacks references.
    """
    method = detector.method
    method.refuse_unfit()
    if method.tags.transductive:
        raise MethodError(
            f"{type(method).__name__} as configured scores a whole test set at once (transductive); a service scores "
            "image by image: run vlad test, or choose a setting that is not transductive"
        )
