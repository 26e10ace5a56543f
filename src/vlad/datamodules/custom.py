"""Your own images: folders with or without labels and masks, tables, and plain lists for prediction."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlad.datamodules.folder import index_folder, split_masks_off
from vlad.datamodules.image_files import IMAGE_SUFFIXES, printable, survey
from vlad.datamodules.index import Found, finish
from vlad.datamodules.masks import AUTOMATIC
from vlad.datamodules.masks_of import masks_beside
from vlad.datamodules.notes import Note, say_notes
from vlad.datamodules.pages_of import pages_of
from vlad.datamodules.table_rows import index_table
from vlad.datamodules.video import VIDEO_SUFFIXES, count_frames
from vlad.datamodules.words import label_of
from vlad.errors import DataError

__all__ = ["index_folder", "index_images", "index_table", "label_of"]


def index_images(sources: str | Path | Iterable[str | Path], *, class_name: str = "object") -> Found:
    """Indexes images of which nothing is known, for prediction.

    Args:
        sources: An image, a video, a folder (searched with its subfolders, masks left out), a glob, or a list of these.
            Of a video every frame is a row, and of an image of several pages every page.
        class_name: What is in the images, for the prompts.

    Returns:
        The index, and the files that were ignored with the reason. An image's id is its path below the folder that was
        given; where two folders hold the same one, with as much of the folders' paths as tells them apart.

    Raises:
        DataError: A source does not exist, or all hold no images.
    """
    items = [sources] if isinstance(sources, str | Path) else list(sources)
    files: list[tuple[str, Path]] = []  # the folder that the id starts from, and the file below it
    ignored: dict[str, list[str]] = defaultdict(list)
    missing = []
    for source in items:
        path = Path(source).expanduser()
        named = [path] if os.path.lexists(path) else _matches(path)
        if not named:
            missing.append(str(source))
        for one in named:
            if one.is_dir():
                files += [(str(one), one / file) for file in _below(one, ignored)]
            else:
                files.append((str(one.parent), one))
    if missing:
        more = f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise DataError(f"no image, folder or pattern {printable(missing[0])}: nothing is there{more}")
    files = _once(files, ignored)
    if not files:
        raise DataError(f"{', '.join(printable(item) for item in items[:5])} holds no images{_why(ignored)}")
    rows = _rows(files, class_name)
    return Found(finish(rows), dict(ignored))


def _matches(path: Path) -> list[Path]:
    import glob

    return [Path(file) for file in sorted(glob.glob(str(path), recursive=True))]


def _why(ignored: dict[str, list[str]]) -> str:
    """Returns what there is instead of images, for an error."""
    if not any(ignored.values()):
        return f" ({', '.join(sorted(IMAGE_SUFFIXES)[:12])}, …)"
    told = [f"{len(paths)} {reason} (first: {printable(paths[0])})" for reason, paths in ignored.items()]
    return f"; ignored: {'; '.join(told)}"


def _below(folder: Path, ignored: dict[str, list[str]]) -> list[str]:
    """Returns the images below a folder, and adds to what is ignored."""
    seen = survey(folder, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    videos = {file for file in seen.files if file.lower().endswith(tuple(VIDEO_SUFFIXES))}
    images, masks, _ = split_masks_off([file for file in seen.files if file not in videos], folder)
    beside, orphans = masks_beside(images, folder)
    left = {
        **seen.ignored,
        "in a folder of masks": masks,
        "a mask beside its image": list(beside),
        "a mask by its name, without an image": orphans,
    }
    for reason, paths in left.items():
        if paths:
            ignored[reason] += [str(folder / path) for path in paths]
    out = {*masks, *beside, *orphans}
    say_notes(
        [Note("folders that links lead to twice: their images are scored twice", seen.repeated)], printable(folder)
    )
    return [file for file in seen.files if file not in out]


def _once(files: list[tuple[str, Path]], ignored: dict[str, list[str]]) -> list[tuple[str, Path]]:
    """Leaves out what was given twice: a folder and a file in it."""
    found: dict[str, tuple[str, Path]] = {}
    for base, file in files:
        place = os.path.abspath(file)
        if place in found:
            ignored["given twice"].append(str(file))
        found.setdefault(place, (base, file))
    return list(found.values())


def _rows(files: list[tuple[str, Path]], class_name: str) -> list[dict[str, Any]]:
    names = _names(files)
    rows: list[dict[str, Any]] = []
    paged: list[str] = []
    for (_, file), name in zip(files, names, strict=True):
        row = {
            "dataset": "images",
            "category": class_name,
            "class_name": class_name,
            "split": "predict",
            "label": -1,
            "defect_type": "",
            "relative": name,
            "image_path": str(file),
            "mask_path": "",
            "has_mask": False,
            "mask_threshold": AUTOMATIC,
        }
        count = pages_of(file)
        if count > 1:
            paged.append(f"{file}, {count} pages")
        elif file.suffix.lower() in VIDEO_SUFFIXES:
            try:
                count = count_frames(file)
            except DataError:
                count = 1  # a row, which fails where it is read
            else:
                rows += [{**row, "frame": frame} for frame in range(count)]
                continue
        rows += [{**row, "frame": page} for page in range(count)] if count > 1 else [row]
    say_notes([Note("images of several pages: each page is scored", paged)], "prediction")
    return rows


def _names(files: list[tuple[str, Path]]) -> list[str]:
    """Returns a name for each file: its path below its folder, and as much of the folder's as tells them apart."""
    bases = {base: Path(os.path.abspath(base)).parts[1:] for base in dict.fromkeys(base for base, _ in files)}
    relative = [file.relative_to(base).as_posix() for base, file in files]
    depth = dict.fromkeys(bases, 0)

    def name(base: str, below: str) -> str:
        above = bases[base][len(bases[base]) - depth[base] :] if depth[base] else ()
        return "/".join((*above, below))

    while True:
        users: dict[str, set[str]] = defaultdict(set)
        for (base, _), below in zip(files, relative, strict=True):
            full = name(base, below)
            users[full[: len(full) - len(Path(full).suffix)]].add(base)
        shared = {base for group in users.values() if len(group) > 1 for base in group}
        longer = {base for base in shared if depth[base] < len(bases[base])}
        if not longer:
            return [name(base, below) for (base, _), below in zip(files, relative, strict=True)]
        for base in longer:
            depth[base] += 1
