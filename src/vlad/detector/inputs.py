"""Inputs of a detector: paths, PIL images, arrays, or collections of these. Errors name every wrong type."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Found", "InMemory", "as_class_names", "as_in_memory", "find", "is_path"]

InMemory = Image.Image | np.ndarray
"""An image in memory: a PIL image, or a uint8 array (H, W), (H, W, 3) in the order RGB, (H, W, 4) in the order RGBA."""


class Found(NamedTuple):
    """Images, each with a row in an index.

    Attributes:
        frame: The index, as of :mod:`vlad.datamodules.index`; ``image_path`` is "" for an image in memory.
        in_memory: Images in memory, by row; None if the row is a file.
        ignored: Files in the given folders that are not images: reason → paths.
    """

    frame: pd.DataFrame
    in_memory: list[InMemory | None]
    ignored: dict[str, list[str]]


def is_path(item: Any) -> bool:
    """Whether a value is a path."""
    return isinstance(item, str | os.PathLike)


def _is_tensor(item: Any) -> bool:
    return type(item).__module__.partition(".")[0] == "torch" and hasattr(item, "dtype") and hasattr(item, "shape")


def as_in_memory(item: Any) -> InMemory:
    """Converts an in-memory image.

    Raises:
        DataError: The value is not an image, or its range is ambiguous; the message says how to fix it.
    """
    if isinstance(item, np.ndarray):
        fault = _fault_of_array(item)
    elif isinstance(item, Image.Image):
        fault = "" if item.width and item.height else "a PIL image without pixels"
    elif _is_tensor(item):
        fault = _fault_of_tensor(item)
    else:
        fault = _fault(item)
    if fault:
        raise DataError(fault)
    pixels: InMemory = item
    return pixels


def _fault_of_array(array: np.ndarray) -> str:
    """Returns why an array is not an image, and the fix; "" if it is one."""
    shape = tuple(array.shape)
    what = f"an array {shape} of {array.dtype}"
    whole = "(array * 255).round().astype('uint8') for values in [0, 1]"
    channels = shape[2] if array.ndim == 3 else 0
    fault = ""
    if array.ndim == 4:
        fault = "is several images: give a list, list(array)"
    elif channels and channels not in {1, 3, 4} and shape[0] in {1, 3, 4}:
        fault = "has its channels first: give array.transpose(1, 2, 0)"
    elif channels == 1:
        fault = "has one channel: give array[..., 0]"
    elif array.ndim != 2 and channels not in {3, 4}:
        fault = "is no image: give (H, W), (H, W, 3) in the order RGB or (H, W, 4) in the order RGBA"
    elif not array.size:
        fault = "has no pixels"
    elif array.dtype == np.bool_:
        fault = "is a mask: give array.astype('uint8') * 255"
    elif np.issubdtype(array.dtype, np.floating):
        fault = f"does not say its range: give uint8, {whole}; what is normalised already goes to detector.method.score"
    elif array.dtype != np.uint8:
        fault = "does not say its range: give uint8, (array >> 8).astype('uint8') for full 16 bit"
    return fault and f"{what} {fault}"


def _fault_of_tensor(tensor: Any) -> str:
    """Returns why a tensor is rejected, and the fix."""
    shape = tuple(tensor.shape)
    what = f"a tensor {shape} of {str(tensor.dtype).removeprefix('torch.')} is not taken"
    if str(tensor.dtype) != "torch.uint8":
        return (
            f"{what}: normalised images (B, 3, S, S) go to detector.method.score(images, class_names); others become "
            "uint8 arrays (H, W, 3)"
        )
    move = ".permute(1, 2, 0)" if len(shape) == 3 and shape[0] in {1, 3, 4} else ""
    move = ".permute(0, 2, 3, 1)" if len(shape) == 4 and shape[1] in {1, 3, 4} else move
    array = f"tensor{move}.cpu().numpy()"
    return f"{what}: give {f'a list of arrays, list({array})' if len(shape) == 4 else f'an array, {array}'}"


def _fault(item: Any) -> str:
    """Returns why a value is not an image, and the fix."""
    kind = type(item).__name__
    if isinstance(item, bytes | bytearray | memoryview):
        return f"{kind} are not taken: give PIL.Image.open(io.BytesIO(content))"
    if hasattr(item, "read"):
        return f"{kind} is an open file: give PIL.Image.open(file), or its path"
    if isinstance(item, list | tuple):
        return f"a {kind} within the list is not taken: give one flat list of images"
    if isinstance(item, int | float | np.number):
        return f"{item!r} is no image: numbers become one with numpy.asarray(values, dtype='uint8')"
    return f"{kind} is no image: give a path, a PIL image, a uint8 array (H, W, 3) in RGB, or a list of these"


def as_class_names(given: Any) -> str | list[str] | Iterator[str] | None:
    """Returns class names: one for all images, or one for each; None if none was given.

    Raises:
        DataError: The value has another type, or a name is empty.
    """
    if given is None:
        return None
    if isinstance(given, str):
        return _name(given)
    if not isinstance(given, Iterable) or isinstance(given, dict | bytes | set | frozenset):
        raise DataError(f"class_name is a string, or a list of one string per image, not {type(given).__name__}")
    return [_name(name) for name in given] if isinstance(given, Sequence) else map(_name, given)


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise DataError(f"class_name is a string, or a list of one string per image; {name!r} in it is none")
    if not name.strip():
        raise DataError("class_name is empty: name what is in the image, such as 'bottle', or leave it out")
    return name


def find(images: Any, class_name: str | Iterable[str] | None, *, size: int) -> Iterator[Found]:
    """Finds the input images: a list all at once, a generator in chunks.

    Args:
        images: A path of a file, folder, pattern or table; a PIL image; an array; or any number of these.
        class_name: One for all, one for each image, or None: that of a table, or ``object``.
        size: Number of images taken from a generator at a time.

    Raises:
        DataError: Nothing is given or found, the type is wrong, or the numbers of class names and images differ.
    """
    for kind, fix in (
        (dict, "give its values, list(images.values()), and class_name for what they show"),
        ((set, frozenset), "it has no order; give a sorted list"),
        ((bytes, bytearray), "give PIL.Image.open(io.BytesIO(content))"),
    ):
        if isinstance(images, kind):
            raise DataError(f"{type(images).__name__} is not taken for images: {fix}")
    alone = is_path(images) or isinstance(images, InMemory) or _is_tensor(images) or hasattr(images, "read")
    alone = alone or not isinstance(images, Iterable)
    items: Iterable[Any] = [images] if alone else images
    common = class_name if class_name is None or isinstance(class_name, str) else None
    names = None if class_name is None or isinstance(class_name, str) else iter(class_name)
    total = 0
    taken: set[tuple[str, str, str]] = set()
    for part in _parts(items, common, size, numbered=not alone):
        if names is not None:
            own = list(itertools.islice(names, len(part.frame)))
            if len(own) < len(part.frame):
                least = "" if isinstance(items, Sequence) else "at least "
                raise _miscount(f"{total + len(own)} names for {least}{total + len(part.frame)} images")
            part = part._replace(frame=part.frame.assign(class_name=own, category=own))
        total += len(part.frame)
        yield _named_once(part, taken)
    if not total:
        raise DataError("there are no images: the input is empty")
    if names is not None and next(names, None) is not None:
        raise _miscount(f"more names than the {total} images")


def _miscount(count: str) -> DataError:
    return DataError(f"class_name has {count}: give one name for all, or one for each image")


def _parts(items: Iterable[Any], class_name: str | None, size: int, *, numbered: bool) -> Iterator[Found]:
    """Yields a list as one part, and an iterable without a length in chunks of ``size``."""
    if isinstance(items, Sequence):
        if items and all(map(is_path, items)):
            yield _index([os.fspath(item) for item in items], class_name, several=len(items) > 1)
        elif items:
            yield _mixed(enumerate(items), class_name, numbered=numbered)
        return
    counted = enumerate(items)
    while chunk := list(itertools.islice(counted, size)):
        yield _mixed(chunk, class_name, numbered=True)


def _index(paths: list[str], class_name: str | None, *, several: bool) -> Found:
    """Indexes paths in their order; among several, a file that is not there becomes a row, which fails when read."""
    import pandas as pd

    from vlad.datamodules.index import COLUMNS
    from vlad.datamodules.sources import Locations

    locations = Locations(class_name=class_name)
    frames: list[pd.DataFrame] = []
    ignored: dict[str, list[str]] = {}
    for run in _runs(paths):
        if several and _is_missing(run[0]):
            frames.append(pd.DataFrame([_row(path, path, class_name) for path in run], columns=list(COLUMNS)))
            continue
        frame, others = locations.index_predict(run)
        frames.append(frame)
        for reason, files in others.items():
            ignored.setdefault(reason, []).extend(files)
    joined = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    return Found(joined, [None] * len(joined), ignored)


def _runs(paths: list[str]) -> list[list[str]]:
    """Cuts a list of paths into runs that are indexed together: no path twice, tables and what is missing apart."""
    from vlad.datamodules.sources import is_table

    runs: list[list[str]] = []
    known: set[str] = set()
    last: object = None
    for path in paths:
        kind = "missing" if _is_missing(path) else path if is_table(path) else ""
        place = os.path.abspath(os.path.expanduser(path))
        if kind != last or not runs or (not kind and place in known):
            runs.append([])
            known.clear()
        runs[-1].append(path)
        known.add(place)
        last = object() if is_table(path) else kind
    return runs


def _is_missing(path: str) -> bool:
    return not os.path.lexists(os.path.expanduser(path)) and not glob.has_magic(path)


def _mixed(items: Iterable[tuple[int, Any]], class_name: str | None, *, numbered: bool) -> Found:
    """Indexes images in memory, and paths among them, in their order."""
    import pandas as pd

    from vlad.datamodules.index import COLUMNS

    rows: list[dict[str, Any]] = []
    in_memory: list[InMemory | None] = []
    ignored: dict[str, list[str]] = {}
    for number, item in items:
        if not is_path(item):
            try:
                in_memory.append(as_in_memory(item))
            except DataError as error:
                raise DataError(f"image {number}: {error}" if numbered else str(error)) from None
            rows.append(_row(str(number), "", class_name))
            continue
        found = _index([os.fspath(item)], class_name, several=True)
        for row in found.frame.to_dict("records"):
            name = str(row["image_id"])  # a number is the name of an image in memory
            rows.append({**{str(key): value for key, value in row.items()}, "image_id": name + "~" * name.isdigit()})
            in_memory.append(None)
        for reason, paths in found.ignored.items():
            ignored.setdefault(reason, []).extend(paths)
    return Found(pd.DataFrame(rows, columns=list(COLUMNS)), in_memory, ignored)


def _named_once(found: Found, taken: set[tuple[str, str, str]]) -> Found:
    """Gives an image a name of its own where another of its category has the name: an image given twice, for one."""
    names: list[str] = []
    keys = found.frame[["dataset", "category", "image_id"]].itertuples(index=False, name=None)
    for (dataset, category, name), pixels in zip(keys, found.in_memory, strict=True):
        free = (one for one in itertools.chain([name], (f"{name}~{n}" for n in itertools.count(2))))
        own = name if pixels is not None else next(one for one in free if (dataset, category, one) not in taken)
        names.append(own)
        if pixels is None:
            taken.add((dataset, category, own))
    return found._replace(frame=found.frame.assign(image_id=names))


def _row(name: str, path: str, class_name: str | None) -> dict[str, Any]:
    """Returns the index row of an image without a label."""
    class_name = class_name or "object"
    row: dict[str, Any] = {"dataset": "images", "category": class_name, "class_name": class_name, "split": "predict"}
    row |= {"label": -1, "defect_type": "", "image_id": name, "image_path": path, "mask_path": ""}
    return {**row, "has_mask": False, "mask_threshold": 0, "row_crop": "", "frame": -1, "reader": ""}
