"""A folder of good and bad images as an index: categories, splits, labels and masks by where the files lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.datamodules.image_files import IMAGE_SUFFIXES, printable, survey
from vlad.datamodules.index import finish
from vlad.datamodules.masks import AUTOMATIC
from vlad.datamodules.masks_of import Truth, join_masks, looks_like_mask, masks_beside, pair_masks
from vlad.datamodules.notes import Note, say_ignored, say_notes
from vlad.datamodules.pages_of import several_pages
from vlad.datamodules.words import (
    FILLERS,
    is_mask_word,
    is_open_word,
    label_of,
    label_of_stem,
    label_of_word,
    split_of,
)
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Folder", "index_folder", "read_folder", "split_masks_off"]


@dataclass
class Folder:
    """What a folder was taken for.

    Attributes:
        frame: The index.
        ignored: Files that are neither image nor mask: reason → paths.
        notes: What was guessed, left out or left open.
    """

    frame: pd.DataFrame
    ignored: dict[str, list[str]]
    notes: list[Note]


@dataclass
class _Image:
    """An image and what its folders say of it.

    Attributes:
        file: Its path below the root.
        folders: The folders above it.
        split: The split that they name, ``test`` where they name none.
        label: 0, 1 or -1.
        home: The folders of its category, without splits and words that say nothing.
        kind: The defect, or the normal folder.
        guess: Which folder was taken for a kind of defect, though no ``test`` is above.
    """

    file: str
    folders: tuple[str, ...]
    split: str
    label: int
    home: tuple[str, ...]
    kind: str
    guess: str = ""


def index_folder(root: Path, *, class_name: str | None = None) -> pd.DataFrame:
    """Indexes a folder of good and bad images, masks optional; says in a line each what was guessed or left out.

    Folders named good, ok, normal, … hold normal images; bad, ng, defect, … anomalous ones (see
    :mod:`vlad.datamodules.words` for the words of other languages). Beside a folder of good images, any other folder
    counts as a kind of defect. Folders above, each with its good and its bad images, are categories. ``train``, ``val``
    and ``test`` folders give the split, ``test`` where there are none. Masks lie in a folder named masks,
    ground_truth, …, or beside their images (``0.png``, ``0_mask.png``); an image may have several (``0_mask_1.png``,
    or a folder of its name).

    Args:
        root: The folder.
        class_name: What is in the images, for the prompts; defaults to the category, or the folder's name.

    Raises:
        DataError: Missing folder, no images, or nothing that tells good from bad.
    """
    folder = read_folder(root, class_name=class_name)
    say_notes(folder.notes, printable(root))
    say_ignored(folder.ignored, printable(root))
    return folder.frame


def read_folder(root: Path, *, class_name: str | None = None) -> Folder:
    """Indexes a folder and tells what it was taken for, without saying anything; see :func:`index_folder`."""
    if not root.is_dir():
        raise DataError(f"folder {printable(root)} does not exist; give its place as data.root")
    seen = survey(root)
    files, masks, places = split_masks_off(seen.files, root)
    beside, orphans = masks_beside(files, root)
    files = [file for file in files if file not in beside and file not in set(orphans)]
    if not files:
        raise DataError(f"folder {printable(root)} holds no images{_left(seen.ignored)}")
    images = [_by_words(file) for file in files]
    notes = _complete(images, root)
    truth = pair_masks({image.file: image.label for image in images}, masks, beside, places)
    rows, has_masks = _rows(images, truth, root, class_name)
    notes += _truth_notes(images, truth, orphans, has_masks)
    paged = several_pages([root / file for file in files])
    notes.append(Note("images of several pages, of which the first is taken", [str(path) for path in paged]))
    notes.append(Note("folders that links lead to twice: their images are listed twice", seen.repeated))
    return Folder(finish(rows), seen.ignored, [note for note in notes if note.paths])


def _left(ignored: dict[str, list[str]]) -> str:
    """Returns what was left out of a folder that holds no images, for an error."""
    parts = [f"{len(paths)} {reason} (first: {printable(paths[0])})" for reason, paths in ignored.items() if paths]
    return f"; left out: {'; '.join(parts)}" if parts else f" ({', '.join(sorted(IMAGE_SUFFIXES)[:12])}, …)"


def split_masks_off(files: Sequence[str], root: Path) -> tuple[list[str], list[str], dict[str, Sequence[str]]]:
    """Tells images from what lies in folders of masks.

    Args:
        files: Image files below the root.
        root: The folder, for a look at the content where a name such as ``labels`` leaves it open.

    Returns:
        Images, masks, and for masks in a folder such as ``bad_masks`` beside ``bad``: the folders ``bad`` and above.
    """
    by_folder: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for file in files:
        by_folder[tuple(file.split("/")[:-1])].append(file)
    inside: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for folders, group in by_folder.items():
        for depth in range(1, len(folders) + 1):
            inside[folders[:depth]] += group
    of_masks: dict[tuple[str, ...], tuple[str, ...]] = {}
    known = {tuple(part.casefold() for part in folder) for folder in inside}
    for folder, below in inside.items():
        name = folder[-1].casefold()
        beside = next((rest for rest in _without_mask(name) if (*_lower(folder[:-1]), rest) in known), "")
        if is_mask_word(name):
            of_masks[folder] = folder[:-1]
        elif beside:
            of_masks[folder] = (*folder[:-1], beside)
        elif is_mask_word(name, sure=False):
            deeper = (part for file in below for part in Path(file).parts[len(folder) : -1])
            if all(label_of_word(part) != 0 for part in deeper) and all(looks_like_mask(root / f) for f in below[:3]):
                of_masks[folder] = folder[:-1]
    images: list[str] = []
    masks: list[str] = []
    places: dict[str, Sequence[str]] = {}
    for folders, group in by_folder.items():
        above = next((folders[:d] for d in range(1, len(folders) + 1) if folders[:d] in of_masks), None)
        (images if above is None else masks).extend(group)
        if above is not None:
            places.update(dict.fromkeys(group, (*of_masks[above], *folders[len(above) :])))
    return sorted(images), sorted(masks), places


def _lower(folders: Sequence[str]) -> tuple[str, ...]:
    return tuple(folder.casefold() for folder in folders)


def _without_mask(name: str) -> list[str]:
    """Returns what is left of ``bad_masks`` or ``mask_bad``: ``bad``; nothing where the name has no such part."""
    parts = name.replace("-", "_").replace(" ", "_").split("_")
    if len(parts) < 2:
        return []
    length = len(name)
    return [name[: length - len(parts[-1]) - 1]] * is_mask_word(parts[-1]) + [name[len(parts[0]) + 1 :]] * is_mask_word(
        parts[0]
    )


def _says_something(folder: str) -> bool:
    return not split_of(folder) and folder.casefold() not in FILLERS


def _by_words(file: str) -> _Image:
    """Reads what the words above an image say: the nearest word for good or bad, the split, and the folders above."""
    folders = tuple(file.split("/")[:-1])
    return _Image(file, folders, *_words_above(folders))


@lru_cache(maxsize=4096)
def _words_above(folders: tuple[str, ...]) -> tuple[str, int, tuple[str, ...], str]:
    split = next((split_of(folder) for folder in folders if split_of(folder)), "")
    at = next((i for i in reversed(range(len(folders))) if label_of_word(folders[i]) >= 0), None)
    home = tuple(folder for folder in folders[:at] if _says_something(folder))
    kind = next((f for f in reversed(folders[at:]) if _says_something(f) and not is_mask_word(f, sure=False)), "")
    return split or "test", label_of(folders), home, kind if at is not None else ""


def _complete(images: list[_Image], root: Path) -> list[Note]:
    """Labels what no word labels: kinds of defect beside good, else by the names of the files or of the root.

    Raises:
        DataError: Nothing tells good from bad.
    """
    homes = {image.home for image in images if image.label == 0}
    with_bad = {image.home for image in images if image.label == 1}
    for image in images:
        if image.label < 0:
            _as_kind(image, homes, with_bad)
    guessed = [image for image in images if image.guess]
    kinds = list(dict.fromkeys(image.guess for image in guessed))
    named = ", ".join([*map(printable, kinds[:5]), *["…"] * (len(kinds) > 5)])
    notes = [Note(f"images beside good ones are taken for anomalous: {named}", [image.file for image in guessed])]
    if all(image.label < 0 for image in images):
        by_name = [label_of_stem(Path(image.file).stem) for image in images]
        if min(by_name) >= 0:
            for image, label in zip(images, by_name, strict=True):
                image.label = label
            notes.append(Note("images are labelled by the words in their names", [image.file for image in images]))
        elif label_of_word(root.resolve().name) >= 0:
            for image in images:
                image.label, image.home = label_of_word(root.resolve().name), ()
            word = "good" if images[0].label == 0 else "bad"
            notes.append(Note(f"images are taken for {word} by the folder's name", [image.file for image in images]))
    unknown = [image.file for image in images if image.label < 0]
    if len(unknown) == len(images):
        raise DataError(
            f"folder {printable(root)} does not tell good from bad: put images in folders named good and bad (first: "
            f"{printable(unknown[0])}), or run vlad predict, which needs no labels"
        )
    notes.append(Note("images cannot be told good from bad: their label is unknown", unknown, True, True))
    return notes


def _as_kind(image: _Image, homes: set[tuple[str, ...]], with_bad: set[tuple[str, ...]]) -> None:
    """Takes the folder beside good ones that an image is in for a kind of defect."""
    told = [(i, folder) for i, folder in enumerate(image.folders) if _says_something(folder)]
    names = tuple(folder for _, folder in told)
    home = next((names[:n] for n in reversed(range(len(names))) if names[:n] in homes), None)
    if home is None:
        image.home = names
        return
    place, kind = told[len(home)]
    image.home, image.kind = home, kind
    tested = any(split_of(folder) in {"test", "val"} for folder in image.folders[:place])
    if is_open_word(kind) or (home in with_bad and not tested):
        return  # beside good and bad, a third name says nothing
    image.label, image.guess = 1, "" if tested else "/".join(image.folders[: place + 1])


def _categories(images: list[_Image], name: str) -> dict[tuple[str, ...], str]:
    """Returns home → category: the folders with good and bad images are categories, else all is one."""
    labels: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for image in images:
        labels[image.home].add(image.label)
    several = any({0, 1} <= found for found in labels.values())
    return {home: "/".join(home) if home and several else name for home in labels}


def _rows(
    images: list[_Image], truth: Truth, root: Path, class_name: str | None
) -> tuple[list[dict[str, Any]], set[str]]:
    """Returns the rows of an index, and the categories that have masks."""
    name = root.resolve().name or "images"
    categories = _categories(images, name)
    has_masks = {categories[image.home] for image in images if truth.masks.get(image.file) and image.label == 1}
    rows = []
    for image in images:
        category = categories[image.home]
        masks = truth.masks.get(image.file, []) if image.label == 1 else []
        rows.append(
            {
                "dataset": name,
                "category": category,
                "class_name": class_name or category.rpartition("/")[2],
                "split": image.split,
                "label": image.label,
                "defect_type": image.kind,
                "relative": image.file,
                "image_path": str(root / image.file),
                "mask_path": join_masks([str(root / mask) for mask in masks]),
                "has_mask": category in has_masks and (image.label == 0 or bool(masks)),
                "mask_threshold": AUTOMATIC,
            }
        )
    return rows, has_masks


def _truth_notes(images: list[_Image], truth: Truth, orphans: list[str], has_masks: set[str]) -> list[Note]:
    lacking = [image.file for image in images if image.label == 1 and not truth.masks.get(image.file)]
    of_unknown = [m for image in images if image.label < 0 for m in truth.masks.get(image.file, [])]
    return [
        Note("anomalous images have no mask: their pixels are left out", lacking if has_masks else [], True, True),
        Note("masks fit several images and are given to none", truth.unclear, True, True),
        Note("masks belong to no image", [*truth.unused, *orphans], True, True),
        Note("masks of images that have another one are left out", truth.extra, True, True),
        Note("masks of images of unknown label are left out", of_unknown, False, True),
        Note("masks of normal images are not read", truth.of_normal),
    ]
