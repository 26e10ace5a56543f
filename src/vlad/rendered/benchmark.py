"""The procedural benchmark as two data sets: which images there are, and their files in MVTec AD's layout."""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from vlad.files import cache_folder, output_errors, read_plain, scratch_folder, write_json
from vlad.rendered.defects import DEFECTS, LESIONS
from vlad.rendered.parts import SHAPES, TEXTURES
from vlad.rendered.scene import Look, render
from vlad.rendered.tissue import TISSUES

__all__ = [
    "AUXILIARY",
    "DIGESTS",
    "SIZE",
    "TEST",
    "UNSEEN_DEFECT",
    "VERSION",
    "auxiliary_looks",
    "is_intact",
    "render_dataset",
]

VERSION = 1
"""Changes whenever an image does: figures of different versions are not comparable."""

SIZE = 128
"""Side of the images in pixels."""

DIGESTS = "digests.json"
"""Name of the file that holds the SHA-256 of every image of a rendered data set."""

UNSEEN_DEFECT = "thread"
"""The defect that no auxiliary image shows."""


def _parts(*looks: str) -> dict[str, Look]:
    """Categories from words such as "teal striped gear"."""
    split = (look.split() for look in looks)
    return {f"{texture}_{shape}": Look(shape, texture, color) for color, texture, shape in split}


TEST: dict[str, Look] = _parts(
    "teal striped gear",
    "blue woven ring",
    "white speckled pill",
    "orange grained bar",
    "green dotted plate",
    "grey brushed nut",
    "purple checked star",
    "red ribbed bracket",
    "yellow marbled crescent",
    "brown woven surface",
) | {"mucosa": Look("mucosa"), "thorax": Look("thorax")}
"""Test categories. Their pairs of shape and texture, and their tissues, are in no auxiliary image."""

AUXILIARY: dict[str, Look] = _parts(
    "grey striped disc",
    "white woven bar",
    "red speckled gear",
    "blue grained plate",
    "yellow dotted ring",
    "brown brushed cross",
    "green checked pill",
    "orange ribbed nut",
    "teal marbled surface",
    "purple plain star",
    "red striped triangle",
    "orange woven disc",
    "grey speckled surface",
    "brown grained bracket",
    "teal dotted crescent",
    "blue plain gear",
) | {name: Look(name) for name in ("head_scan", "skin", "ultrasound", "retina")}
"""Auxiliary categories."""


def auxiliary_looks() -> list[Look]:
    """Returns every pair of shape and texture, without a colour, that is in no test category."""
    held_out = {(look.shape, look.texture) for look in TEST.values()}
    pairs = [Look(shape, texture) for shape in SHAPES for texture in TEXTURES]
    return [look for look in pairs if (look.shape, look.texture) not in held_out]


def _samples(name: str) -> Iterator[tuple[str, str, str, int, Look]]:
    """Yields category, split, defect_type, number and look of every image of a data set."""
    auxiliary = name == "synthetic_aux"
    for category, look in (AUXILIARY if auxiliary else TEST).items():
        kinds = list(LESIONS if look.shape in TISSUES else DEFECTS)
        if auxiliary:
            kinds = [kind for kind in kinds if kind != UNSEEN_DEFECT]
        counts = {("train", "good"): 32, ("test", "good"): 24}
        counts |= {("test", kind): 8 if look.shape in TISSUES else 3 if auxiliary else 2 for kind in kinds}
        for (split, defect_type), count in counts.items():
            for number in range(count):
                yield category, split, defect_type, number, look


def render_dataset(name: str, cache: Path | None = None) -> Path:
    """Returns the folder of a rendered data set, rendering it first where it is not there, or not as it was rendered.

    Args:
        name: ``"synthetic"`` (test categories) or ``"synthetic_aux"`` (auxiliary ones).
        cache: Folder for rendered data sets; by default ``VLAD_CACHE``, or ``~/.cache/vlad``.

    Returns:
        A folder in MVTec AD's layout; it appears whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    cache = cache or cache_folder()
    target = cache / f"{name}-v{VERSION}"
    if target in _intact or is_intact(target):
        _intact.add(target)
        return target
    samples = list(_samples(name))
    why = "; what is there was damaged or changed" if target.is_dir() else ""
    print(f"rendering {len(samples)} images into {target} (once, some seconds){why}", file=sys.stderr, flush=True)
    with scratch_folder(target) as partial, output_errors(target):
        write_json(partial / DIGESTS, _write(name, samples, partial))
        partial.chmod(0o755)
        _put(partial, target)
    _intact.add(target)
    return target


_intact: set[Path] = set()  # looked at by this process


def is_intact(folder: Path) -> bool:
    """Whether a rendered data set holds the files that were rendered, and no others, byte for byte."""
    try:
        digests = json.loads(read_plain(folder / DIGESTS))
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - {DIGESTS}
        return found == set(digests) and all(_digest(folder / file) == digests[file] for file in digests)
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _digest(file: Path) -> str:
    return hashlib.sha256(read_plain(file)).hexdigest()


def _put(partial: Path, target: Path) -> None:
    """Renames a rendered folder to its place; one that another process has put there meanwhile stays."""
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        if not is_intact(target):
            with scratch_folder(target) as old:
                target.rename(old)
                partial.rename(target)


def _write(name: str, samples: list[tuple[str, str, str, int, Look]], folder: Path) -> dict[str, str]:
    """Renders images and masks into a folder; returns the digest of each file."""
    from PIL import Image

    for category, split, defect_type, number, look in samples:
        seed = zlib.crc32(f"{name}/{category}/{split}/{defect_type}".encode())
        rendered = render(look, "" if defect_type == "good" else defect_type, seed=(VERSION, seed, number), size=SIZE)
        place = folder / category / split / defect_type
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rendered.image).save(place / f"{number:03}.png", compress_level=1)
        if defect_type != "good":
            place = folder / category / "ground_truth" / defect_type
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rendered.mask).save(place / f"{number:03}_mask.png")
    files = sorted(path for path in folder.rglob("*.png"))
    return {file.relative_to(folder).as_posix(): _digest(file) for file in files}
