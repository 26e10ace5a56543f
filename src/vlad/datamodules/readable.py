"""Whether the files of a run can be read, asked ahead of it: all that are bad are named at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.datamodules.decode import Reading, inspect_image
from vlad.datamodules.image_files import printable
from vlad.datamodules.masks_of import split_masks
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_files"]

_SHOWN = 50


def check_files(frames: Sequence[pd.DataFrame], reading: Reading) -> None:
    """Looks at the header and the end of every image and mask of some indices; no pixel is decoded.

    Args:
        frames: The indices.
        reading: How many pixels an image may have.

    Raises:
        DataError: Some cannot be read, or masks and their images differ in size; every one is named.
    """
    columns = ["image_path", "mask_path", "frame", "reader"]
    parts = [frame[columns] for frame in frames]
    rows = {tuple(row.values()): row for part in parts for row in part.to_dict("records")}
    with ThreadPoolExecutor(4) as pool:  # files are waited for
        problems = pool.map(lambda row: _problem(row, reading), rows.values())
        found = list(dict.fromkeys(problem for problem in problems if problem))
    if found:
        more = [f"… and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        what = "file cannot" if len(found) == 1 else "files cannot"
        raise DataError("\n  ".join([f"{len(found)} {what} be used:", *found[:_SHOWN], *more]))


def _problem(row: dict[str, Any], reading: Reading) -> str:
    """Returns what is wrong with an image or its mask, or ""."""
    image, frame = row["image_path"], int(row["frame"])
    facts = inspect_image(image, frame=frame, reader=row["reader"], reading=reading)
    if facts.problem:
        return f"{printable(image)}: {facts.problem}"
    for mask in split_masks(row["mask_path"]):
        if Path(mask).is_dir():  # its masks are united when they are read
            continue
        about = inspect_image(mask, frame=frame, reading=reading)
        if about.problem:
            return f"{printable(mask)}: {about.problem}"
        if facts.size != about.size:
            sizes = [f"{width}x{height}" for width, height in (about.size, facts.size)]
            return f"mask {printable(mask)} is {sizes[0]} pixels, its image {printable(image)} {sizes[1]}"
    return ""
