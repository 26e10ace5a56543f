"""An exported file, opened by its engine and run; of vlad it needs nothing that imports a method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlad.engines.sessions import open_session
from vlad.errors import DataError, WeightsError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FORMAT", "ExportedModel", "read_sidecar"]

FORMAT = 1
"""Version of the sidecar; changes when an older reader could misread it."""

_NEEDED = ("format", "engine", "file", "files", "precision", "input", "preprocess", "smoothing")
_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


class ExportedModel:
    """A file of ``vlad export`` and what its sidecar says; checked against its digest, and run.

    Attributes:
        facts: What the sidecar says; see ``docs/export.md``.
        file: The file of the graph.

    Examples:
        model = ExportedModel.load("out/model.json")
        anomaly_map, score = model.predict(PIL.Image.open("photo.jpg"))
    """

    def __init__(self, facts: Mapping[str, Any], folder: Path, *, threads: int = 0) -> None:
        """Checks the digests and opens the graph; see :meth:`load` for the usual way.

        Args:
            facts: What the sidecar says.
            folder: Where the files are.
            threads: Threads of the engine; 0 leaves it to the engine.

        Raises:
            WeightsError: A file is missing or another one than was exported.
            MethodError: The engine is not installed.
        """
        self.facts, self.file = dict(facts), folder / facts["file"]
        for name, digest in facts["files"].items():
            path = folder / name
            if not path.is_file():
                raise WeightsError(f"{path} is missing: it belongs to {self.file.name}; export again")
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                    raise WeightsError(f"{path} is not the file that was exported (another SHA-256); export again")
        self._run = open_session(facts["engine"], self.file, threads=threads)
        self._size = tuple(facts["input"]["shape"][2:])

    @classmethod
    def load(cls, path: str | Path, *, threads: int = 0) -> ExportedModel:
        """Opens what ``vlad export`` wrote.

        Args:
            path: The sidecar (``.json``), the file of the graph beside it, or a folder that holds one export.
            threads: Threads of the engine; 0 leaves it to the engine.

        Raises:
            WeightsError: Nothing there, no sidecar of vlad's, or a file that is another one than was exported.
            MethodError: The engine is not installed.
        """
        sidecar = _sidecar_of(Path(path))
        return cls(read_sidecar(sidecar), sidecar.parent, threads=threads)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores normalised images.

        Args:
            images: Normalised images (N, 3, H, W), float32, of the size that was exported.

        Returns:
            Maps (N, H, W) and scores (N,), float32, higher meaning more anomalous.

        Raises:
            DataError: Another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2:] != self._size or not len(images):
            size = f"{self._size[0]}, {self._size[1]}"
            raise DataError(f"{self.file.name} takes images (N, 3, {size}), not {images.shape}")
        anomaly_map, score = self._run(np.ascontiguousarray(images, np.float32))
        return anomaly_map, score

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Resizes and normalises an image as vlad does: (3, H, W), float32.

        Args:
            image: Any image of Pillow's, upright.

        Raises:
            DataError: The graph is of another aspect ratio (methods that keep it).
        """
        from PIL import Image as Images

        wanted = self.facts["preprocess"]
        height, width = self._size
        rgb = image.convert("RGB")
        if wanted["resize"] == "squash":
            fitted = rgb.resize((width, height), Images.Resampling.BICUBIC)
        else:
            short, multiple = min(rgb.size), wanted["multiple"]
            near = [wanted["size"] if side == short else int(wanted["size"] * side / short) for side in rgb.size]
            columns, rows = (side // multiple * multiple for side in near)
            if (rows, columns) != (height, width):
                raise DataError(
                    f"an image of {rgb.width} x {rgb.height} pixels comes to {columns} x {rows} and the graph is of "
                    f"{width} x {height}: export with --image-size {rows}x{columns}"
                )
            fitted = rgb.resize(near, Images.Resampling.BICUBIC).crop((0, 0, width, height))
        pixels = np.asarray(fitted, np.float32).transpose(2, 0, 1) / np.float32(255)
        mean, std = (np.array(wanted[name], np.float32)[:, None, None] for name in ("mean", "std"))
        normalised: np.ndarray = (pixels - mean) / std
        return normalised

    def predict(self, image: Image.Image) -> tuple[np.ndarray, float]:
        """Scores one image.

        Args:
            image: Any image of Pillow's, upright.

        Returns:
            The map (H, W), at the graph's size, and the score.
        """
        maps, scores = self(self.prepare(image)[None])
        return maps[0], float(scores[0])


def read_sidecar(path: Path) -> dict[str, Any]:
    """Reads what stands beside an exported file.

    Raises:
        WeightsError: It is not there, no sidecar of vlad's, or of a later vlad.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(facts, dict) or any(name not in facts for name in _NEEDED):
        raise WeightsError(f"{path} is no sidecar of vlad export")
    if facts["format"] != FORMAT:
        raise WeightsError(f"{path} is of format {facts['format']} and this vlad reads {FORMAT}: update vlad")
    names = [facts["file"], *facts["files"]]
    plain = all(isinstance(name, str) and Path(name).name == name for name in names)
    if not plain or facts["engine"] not in _SUFFIXES or facts["file"] not in facts["files"]:
        raise WeightsError(f"{path} is damaged: it names no file of an engine in its own folder; export again")
    return facts


def _sidecar_of(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.json"))
        if len(found) != 1:
            what = f"{len(found)} exports ({', '.join(file.name for file in found[:4])})" if found else "no export"
            raise WeightsError(f"folder {path} holds {what}: give the .json of one")
        return found[0]
    return path if path.suffix == ".json" else path.with_suffix(".json")
