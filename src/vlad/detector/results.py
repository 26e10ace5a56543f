"""What a detector says of images: a result for each, and all of them as a list, a table or files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from vlad.errors import DataError, OutputError
from vlad.files import write_atomic, write_json

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

    from vlad.decision import Region
    from vlad.drawing import Scale

__all__ = ["Result", "Results"]


@dataclass(eq=False)
class Result:
    """What a detector says of one image.

    Attributes:
        path: The image file, or "" for an image that was given in memory.
        image_id: Its name, unique within its category: the path below the folder that was given; of an image in
            memory its number in the list.
        category: What its decision and its references go by.
        class_name: What is in the image, as said in the prompts.
        score: The image score, float32, higher meaning more anomalous; None where the image could not be scored.
        decision: ``normal``, ``anomalous``, or "" where there is no decision for it.
        p_value: Share of normal calibration images that score at least as high; None where it is not known.
        threshold: Smallest score that is anomalous; None without a decision.
        anomalous_area: Pixels of the image in its regions; None where the decision has no threshold for pixels.
        regions: Where the map reaches the decision's pixel threshold, the highest first; boxes (x, y, w, h) are in the
            image's own pixels.
        error: Why the image could not be scored, or "".
        raw_map: The anomaly map as the method made it (h, w), float32; None where the image could not be scored.
        original_size: Height and width of the image in its own pixels, after orientation.
        seen_size: Height and width of the part of it that the map covers, from the top left.
        dataset: ``images``, or what a table says.
        source: How the image is read again, to be drawn: RGB, as it was scored.
        scale: What the colours of overlays mean: the decision's, else that of the results it is one of; None for the
            image's own.
    """

    path: str
    image_id: str
    category: str
    class_name: str
    score: float | None = None
    decision: Literal["", "normal", "anomalous"] = ""
    p_value: float | None = None
    threshold: float | None = None
    anomalous_area: int | None = None
    regions: tuple[Region, ...] = ()
    error: str = ""
    raw_map: np.ndarray | None = field(default=None, repr=False)
    original_size: tuple[int, int] = (0, 0)
    seen_size: tuple[int, int] = (0, 0)
    dataset: str = "images"
    source: Callable[[], Image.Image] | None = field(default=None, repr=False)
    scale: Scale | None = field(default=None, repr=False)

    @property
    def map(self) -> np.ndarray:
        """The anomaly map at the image's own size (H, W), float32; made anew each time it is asked for.

        Raises:
            DataError: The image could not be scored.
        """
        if self.raw_map is None:
            raise DataError(self.error or "there is no map")
        from vlad.drawing import map_of_image

        return map_of_image(self.raw_map, self.seen_size, self.original_size)

    @property
    def is_anomalous(self) -> bool | None:
        """What was decided, or None where nothing was."""
        return {"anomalous": True, "normal": False}.get(self.decision)

    def row(self) -> dict[str, Any]:
        """Returns the image's row of ``predictions.csv``: plain values, None where nothing is known."""
        found: dict[str, Any] = {"path": self.path, "image_id": self.image_id, "category": self.category}
        found |= {"class_name": self.class_name, "image_score": self.score}
        found["map_max"] = None if self.raw_map is None else float(self.raw_map.max())
        found |= {"p_value": self.p_value, "threshold": self.threshold, "decision": self.decision or None}
        found["anomalous_area"] = self.anomalous_area
        found["regions"] = None if self.anomalous_area is None else [region._asdict() for region in self.regions]
        return {**found, "error": self.error or None}

    def overlay(self, *, scale: Scale | None = None, longest: int | None = None) -> Image.Image:
        """Draws the map over the image: transparent where nothing is wrong, a contour at the decision's threshold.

        Args:
            scale: What the colours mean; by default :attr:`scale`. Without a decision, and of one image alone, nothing
                tells what is usual: its highest values are coloured, whatever they are.
            longest: Longest side of the overlay in pixels, at most; by default the image's own size.

        Returns:
            An RGB image. The file is read again for it.

        Raises:
            DataError: The image could not be scored, or cannot be read any more.
        """
        from PIL import Image

        from vlad.drawing import choose_scale
        from vlad.drawing.colors import FOUND, blend, draw_line

        if self.raw_map is None or self.source is None:
            raise DataError(self.error or f"image {self.path or self.image_id} is not kept")
        scale = scale or self.scale or choose_scale(*(np.array([value]) for value in self.range()))
        image = self.source()
        values = Image.fromarray(self.map)
        if longest is not None and max(image.size) > longest:
            size = tuple(max(1, round(side * longest / max(image.size))) for side in image.size)
            image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS, reducing_gap=2.0)
            values = values.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        shown = np.asarray(values)
        drawn = blend(np.asarray(image), shown, scale)
        if scale.contour is not None:
            draw_line(drawn, shown >= scale.contour, FOUND)
        return Image.fromarray(drawn)

    def range(self) -> tuple[float, float]:
        """Returns the maximum and the median of the map; NaN where there is none."""
        if self.raw_map is None:
            return float("nan"), float("nan")
        return float(self.raw_map.max()), float(np.median(self.raw_map))

    def save(self, path: str | Path) -> Path:
        """Writes the result; what is written goes by the ending.

        Args:
            path: ``.png``, ``.jpg``, …: the overlay. ``.npy``: the map at the image's own size. ``.json``: the row of
                ``predictions.csv``.

        Raises:
            DataError: Another ending, or an image that could not be scored.
            OutputError: The file cannot be written.
        """
        path = Path(path)
        kind = path.suffix.lower()
        if kind == ".json":
            return write_json(path, self.row())
        if kind == ".npy":
            values = self.map
            return write_atomic(path, lambda partial: _write_with(partial, lambda file: np.save(file, values)))
        if kind not in _SUFFIXES:
            raise DataError(
                f"{path}: a result is saved as an image ({', '.join(_SUFFIXES)}), its map as .npy, its row as .json"
            )
        drawn = self.overlay()
        return write_atomic(path, lambda partial: drawn.save(partial, format=_SUFFIXES[kind]))

    def __repr__(self) -> str:
        name = repr(self.path or self.image_id)
        if self.error or self.score is None:
            return f"Result({name}: {self.error})"
        decided = f", {self.decision}" if self.decision else ""
        return f"Result({name}: score {self.score:.4g}{decided}, {self.original_size[1]}x{self.original_size[0]} px)"


_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}


def _write_with(path: Path, write: Callable[[Any], object]) -> None:
    with path.open("wb") as file:
        write(file)


class Results(Sequence[Result]):
    """Results in the order of the images, as a list.

    Attributes:
        ignored: What was found in given folders and is no image: reason → paths.

    Examples:
        >>> results = Results([Result("a.png", "a", "nut", "nut", 0.5), Result("b.png", "b", "nut", "nut", error="no")])
        >>> results
        Results(2 images: 1 scored, 1 failed)
        >>> [result.path for result in results.failed]
        ['b.png']
        >>> results.to_dataframe()["image_score"].tolist()
        [0.5, nan]
    """

    def __init__(self, results: Sequence[Result], ignored: Mapping[str, list[str]] | None = None) -> None:
        """Takes results.

        Args:
            results: The results.
            ignored: What is no image: reason → paths.
        """
        self._results = list(results)
        self.ignored = dict(ignored or {})

    @property
    def failed(self) -> list[Result]:
        """The results of images that could not be scored."""
        return [result for result in self if result.error]

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> Result: ...

    @overload
    def __getitem__(self, index: slice) -> Results: ...

    def __getitem__(self, index: int | slice) -> Result | Results:
        if isinstance(index, slice):
            return Results(self._results[index], self.ignored)
        return self._results[index]

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    def __repr__(self) -> str:
        failed = len(self.failed)
        parts = [f"{len(self) - failed} scored"]
        parts += [
            f"{count} {word}"
            for word, count in (
                ("failed", failed),
                ("files ignored", sum(map(len, self.ignored.values()))),
                *((word, sum(result.decision == word for result in self)) for word in ("anomalous", "normal")),
            )
            if count
        ]
        return f"Results({len(self)} image{'s'[: len(self) != 1]}: {', '.join(parts)})"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the table: the columns of ``predictions.csv``, numbers as numbers, regions as JSON text."""
        import pandas as pd

        from vlad.store import COLUMNS

        rows = [result.row() for result in self]
        for row in rows:
            row["regions"] = None if row["regions"] is None else json.dumps(row["regions"])
            row |= {name: row[name] or "" for name in ("decision", "error")}
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        numbers = ["image_score", "map_max", "p_value", "threshold"]
        table[numbers] = table[numbers].astype(float)
        table["anomalous_area"] = table["anomalous_area"].astype("Int64")
        return table

    def save(self, folder: str | Path, *, overlays: bool = True, maps: bool = False) -> Path:
        """Writes ``predictions.csv``, an overlay of each image under ``overlays/``, and maps on request.

        The overlays have the colours of one scale and are at most 1024 px long; :meth:`Result.save` writes one at the
        image's own size. Images are read again for them.

        Args:
            folder: Folder, made if missing; earlier results in it are overwritten.
            overlays: Whether overlays are written.
            maps: Whether the maps at the images' own size are written, under ``maps/`` as .npy.

        Returns:
            The folder.

        Raises:
            OutputError: The folder cannot be written, or is a run of ``vlad predict``.
            DataError: An image cannot be read any more.
        """
        from vlad.drawing.png import write_png
        from vlad.names import output_names
        from vlad.store import COLUMNS, table_line
        from vlad.table import write_table

        folder = Path(folder)
        if (folder / "parts").exists():
            raise OutputError(f"{folder} is a run of vlad predict, which this would overwrite: choose another folder")

        write_table(folder / "predictions.csv", COLUMNS, (table_line(result.row()) for result in self))
        names = output_names((result.dataset, result.category, result.image_id) for result in self)
        for result, name in zip(self, names, strict=True):
            if result.error:
                continue
            if overlays:
                write_png(folder / "overlays" / f"{name}.png", result.overlay(longest=1024))
            if maps:
                result.save(folder / "maps" / f"{name}.npy")
        return folder
