"""Results of a detector: one per image, and all of them as a list, a table or files."""

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
    """Result of a detector for one image.

    Attributes:
        path: The image file, or "" for an image that was given in memory.
        image_id: Identifier, unique within the category: the path relative to the given folder; for an image in
            memory, its position in the list.
        category: Category that selects the decision and the references.
        class_name: Class name of the image in the prompts.
        score: Image score, float32; higher means more anomalous. None if the image could not be scored.
        decision: ``normal``, ``anomalous``, or "" if there is no decision.
        p_value: Share of normal calibration images that score at least as high; None if unknown.
        threshold: Smallest score that is anomalous; None without a decision.
        anomalous_area: Number of image pixels in the regions; None if the decision has no pixel threshold.
        regions: Regions where the map reaches the pixel threshold, highest score first; boxes (x, y, w, h) are in the
            image's original pixels.
        error: Why the image could not be scored, or "".
        raw_map: Anomaly map at the method's size (h, w), float32; None if the image could not be scored.
        original_size: Height and width of the image in pixels, after EXIF orientation.
        seen_size: Height and width of the part that the map covers, from the top left.
        dataset: ``images``, or the dataset given in a table.
        source: Function that reads the image again for drawing: RGB, as it was scored.
        scale: Colour scale of overlays: the decision's, otherwise that of all results of the call; None for the
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
        """The anomaly map at the image's original size (H, W), float32; computed on each access.

        Raises:
            DataError: The image could not be scored.
        """
        if self.raw_map is None:
            raise DataError(self.error or "there is no map")
        from vlad.drawing import map_of_image

        return map_of_image(self.raw_map, self.seen_size, self.original_size)

    @property
    def is_anomalous(self) -> bool | None:
        """Whether the decision is anomalous; None without a decision."""
        return {"anomalous": True, "normal": False}.get(self.decision)

    def row(self) -> dict[str, Any]:
        """Returns the image's row of ``predictions.csv``: plain values, None if unknown."""
        found: dict[str, Any] = {"path": self.path, "image_id": self.image_id, "category": self.category}
        found |= {"class_name": self.class_name, "image_score": self.score}
        found["map_max"] = None if self.raw_map is None else float(self.raw_map.max())
        found |= {"p_value": self.p_value, "threshold": self.threshold, "decision": self.decision or None}
        found["anomalous_area"] = self.anomalous_area
        found["regions"] = None if self.anomalous_area is None else [region._asdict() for region in self.regions]
        return {**found, "error": self.error or None}

    def overlay(self, *, scale: Scale | None = None, longest: int | None = None) -> Image.Image:
        """Draws the map over the image: transparent where scores are normal, with a contour at the pixel threshold.

        Args:
            scale: Colour scale; by default :attr:`scale`. For a single image without a decision, the scale comes from
                that image alone, so its highest values are always coloured.
            longest: Upper limit of the overlay's longer side in pixels; by default the image's original size.

        Returns:
            An RGB image. The file is read again.

        Raises:
            DataError: The image could not be scored, or can no longer be read.
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
        """Returns the maximum and the median of the map; NaN without a map."""
        if self.raw_map is None:
            return float("nan"), float("nan")
        return float(self.raw_map.max()), float(np.median(self.raw_map))

    def save(self, path: str | Path) -> Path:
        """Writes the result in the format of the suffix.

        Args:
            path: ``.png``, ``.jpg``, …: the overlay. ``.npy``: the map at the image's original size. ``.json``: the
                row of ``predictions.csv``.

        Raises:
            DataError: The suffix is unknown, or the image could not be scored.
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
        ignored: Files in the given folders that are not images: reason → paths.

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
        """Creates a list of results.

        Args:
            results: The results.
            ignored: Files that are not images: reason → paths.
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

        The overlays share one colour scale and are at most 1024 px long; :meth:`Result.save` writes one at the image's
        original size. The images are read again.

        Args:
            folder: Output folder, created if missing; earlier results in it are overwritten.
            overlays: Whether to write overlays.
            maps: Whether to write the maps at the images' original size, under ``maps/`` as .npy.

        Returns:
            The folder.

        Raises:
            OutputError: The folder cannot be written, or is a run of ``vlad predict``.
            DataError: An image can no longer be read.
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
