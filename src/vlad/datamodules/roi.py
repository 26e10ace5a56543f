"""Regions of interest: which pixels of an image are inspected, by masks for all images, a category or one image."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlad.datamodules.decode import RowCrop, load_mask
from vlad.datamodules.image_files import list_files
from vlad.datamodules.overlap import file_digest
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["add_regions", "load_roi", "regions_digest"]

COLUMNS = ("roi_path", "ignore_path")


def add_regions(frame: pd.DataFrame, roi: str | None, ignore: str | None) -> tuple[pd.DataFrame, list[str]]:
    """Finds the masks of every row.

    Args:
        frame: An index.
        roi: A mask whose white pixels are inspected, or a folder of such masks: ``CATEGORY.png`` for a category,
            or the image's own name for one image, which takes precedence.
        ignore: The like, of pixels that are not inspected.

    Returns:
        The index with the columns ``roi_path`` and ``ignore_path`` ("" for none), and a line for each option that
        says for how many images it has no mask.

    Raises:
        DataError: There is no such file or folder, or it has a mask for no image.
    """
    told = []
    for option, column, given in (("roi", "roi_path", roi), ("ignore", "ignore_path", ignore)):
        if given is None:
            frame = frame.assign(**{column: ""})
            continue
        paths = _find(frame, Path(given), option)
        lacking = [image for image, path in zip(frame["image_path"], paths, strict=True) if not path]
        if len(lacking) == len(paths):
            raise DataError(
                f"data.{option} {given} has a mask for none of the {len(paths)} images: name them like the categories "
                f"({', '.join(dict.fromkeys(frame['category']))}) or like the images"
            )
        if lacking:
            told.append(f"data.{option} has no mask for {len(lacking)} images (first: {lacking[0]}): all is inspected")
        frame = frame.assign(**{column: paths})
    return frame, told


def _find(frame: pd.DataFrame, given: Path, option: str) -> list[str]:
    if given.is_file():
        return [str(given)] * len(frame)
    if not given.is_dir():
        raise DataError(f"data.{option} {given} does not exist: give a mask, or a folder of masks")
    masks = {str(Path(file).with_suffix("")): str(given / file) for file in list_files(given)}

    def of(category: str, image_id: str) -> str:
        names = (f"{category}/{image_id}", image_id, Path(image_id).name, category)
        return next((masks[name] for name in names if name in masks), "")

    return [of(category, name) for category, name in zip(frame["category"], frame["image_id"], strict=True)]


def load_roi(row: dict[str, str], size: tuple[int, int], crop: RowCrop) -> np.ndarray | None:
    """Returns which pixels of an image are inspected (H, W), bool; None for all.

    Args:
        row: A row with ``roi_path`` and ``ignore_path``.
        size: Width and height of the image.
        crop: Its row crop.

    Raises:
        DataError: A mask cannot be read, is of another size than the image, or leaves nothing to inspect.
    """
    inside = None
    for column in COLUMNS:
        if row.get(column):
            mask = load_mask(row[column], size, crop=crop)
            part = mask if column == "roi_path" else ~mask
            inside = part if inside is None else inside & part
    if inside is not None and not inside.any():
        given = row["roi_path"] or row["ignore_path"]
        raise DataError(f"{given} leaves no pixel of {row['image_path']} to inspect")
    return inside


def regions_digest(frame: pd.DataFrame, *, whole: bool = False) -> str:
    """Returns what tells the regions of interest of an index from others; "" where there are none.

    Args:
        frame: An index.
        whole: Whether masks of single images count too. Else they are told by the words ``per image``, so that two
            sets of images can have the same regions.
    """
    if "roi_path" not in frame:
        return ""
    used = sorted(
        {(column, *names) for column in COLUMNS for names in zip(frame["category"], frame[column], strict=True)}
    )
    used = [line for line in used if line[2]]
    if not whole and len(used) > len({line[:2] for line in used}):
        return "per image"
    lines = [f"{column} {category} {file_digest(path)}" for column, category, path in used]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] if lines else ""
