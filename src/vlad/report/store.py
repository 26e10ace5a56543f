"""Where the thumbnails of a report wait until it is written: on disk, found again after a kill."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from vlad.journal import Journal, join_journals, open_line
from vlad.report.media import Media

__all__ = ["Kept", "MediaStore", "media_key"]

_HIGHEST = 1000


class Kept(NamedTuple):
    """What is kept of an image.

    Attributes:
        media: Its thumbnails.
        panel: The name of its heat map, below the folder of heat maps and without suffix; "" for none.
        maximum: Of its map, or None where that is not finite.
        level: The map's median, or None.
    """

    media: Media
    panel: str
    maximum: float | None
    level: float | None


def media_key(category: str, image_id: str, path: str) -> str:
    """Returns what an image's thumbnails are found by."""
    return "\0".join((category, image_id, path)).encode(errors="backslashreplace").decode()


class MediaStore:
    """Thumbnails of a run, in ``parts/report-RANK.jsonl``; of a prediction, which may go on, in ``report.jsonl``.

    The first ``limit`` images of each process are kept, and of the others those that score among the highest thousand
    so far: memory does not grow with the data set.
    """

    def __init__(self, folder: Path, *, rank: int = 0, limit: int = 10_000) -> None:
        """Makes nothing yet.

        Args:
            folder: The run folder.
            rank: Which of the processes this one is.
            limit: Images that are kept whatever their score.
        """
        self.parts, self.limit = folder / "parts", limit
        self._journal = Journal(self.parts / f"report-{rank}.jsonl")
        self._count = 0
        self._highest: list[float] = []

    def wants(self, score: float) -> bool:
        """Returns whether the thumbnails of the next image, which has this score, are to be kept."""
        self._count += 1
        if len(self._highest) < _HIGHEST:
            heapq.heappush(self._highest, score)
        elif score > self._highest[0]:
            heapq.heapreplace(self._highest, score)
        else:
            return self._count <= self.limit
        return True

    def add(self, kept: Iterable[tuple[str, Kept]]) -> None:
        """Writes thumbnails; they are on disk when this returns."""
        self._journal.append(
            {"key": key, "media": one.media, "panel": one.panel, "max": one.maximum, "level": one.level}
            for key, one in kept
        )

    def close(self) -> None:
        """Closes this process's file."""
        self._journal.close()

    def clear(self) -> None:
        """Deletes what all processes have kept."""
        for path in self.parts.glob("report*.jsonl"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # others' parts stay
            self.parts.rmdir()

    # -- at the end, in one process ----------------------------------------------------------------------------

    def join(self) -> None:
        """Joins the files of all processes to one, where an image has one line: the newest."""
        parts, whole = sorted(self.parts.glob("report-*.jsonl")), self.parts / "report.jsonl"
        if parts:
            join_journals([*parts, whole], whole, "key")
        for part in parts:
            part.unlink(missing_ok=True)

    def places(self) -> dict[str, int]:
        """Returns where the thumbnails of each image are, after :meth:`join`."""
        found: dict[str, int] = {}
        offset = 0
        with suppress(FileNotFoundError), (self.parts / "report.jsonl").open("rb") as file:
            for line in file:
                row = open_line(line)
                if row is not None:
                    found[row["key"]] = offset
                offset += len(line)
        return found

    def read(self, places: Iterable[int | None]) -> Iterable[Kept | None]:
        """Yields what is kept at each place; None for None."""
        with ExitStack() as stack:
            file: Any = None
            for place in places:
                if place is None:
                    yield None
                    continue
                file = file or stack.enter_context((self.parts / "report.jsonl").open("rb"))
                file.seek(place)
                row = open_line(file.readline()) or {}
                image, values, low, step, mask, seen = row["media"]
                media = Media(image, values, low, step, mask, (seen[0], seen[1]))
                yield Kept(media, row["panel"], row["max"], row["level"])
