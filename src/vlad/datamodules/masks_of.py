"""Which mask belongs to which image of a folder: by place and name, in folders of masks or beside the images."""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from vlad.datamodules.words import FILLERS, is_mask_word, label_of, label_of_word, split_of

__all__ = ["Place", "Truth", "join_masks", "looks_like_mask", "masks_beside", "pair_masks", "split_masks"]

_WORDS = (
    (
        "masks?|maske|masque|mascara|maschera|gt|ground[ _-]?truth|seg[ _-]?mask|defect[ _-]?mask|anomaly[ _-]?mask",
        True,
    ),
    ("labels?|lbl|seg|segmentation|annotations?|anno|ann|truth", False),
)
_ENDINGS = {
    beside: [
        (re.compile(rf"(.+?)[ ._-]{'+' if beside else '*'}(?:{words})(?:[ ._-]?\(?\d+\)?)?"), sure, False)
        for words, sure in _WORDS
    ]
    + [(re.compile(rf"(?:{words})[ ._-]+(.+)"), sure, True) for words, sure in _WORDS]
    for beside in (True, False)
}
"""Beside images or not: patterns with the image's name, whether the words mean nothing else, and whether they lead."""

_ANY_WORD = re.compile("|".join(words for words, _ in _WORDS))
_LAST_NUMBER = re.compile(r"[ ._-]+\(?\d+\)?$")
_FEW_COLOURS = 32


def join_masks(paths: Sequence[str]) -> str:
    """Returns the cell ``mask_path`` of an index: a path, or a JSON list where an image has several masks.

    Examples:
        >>> join_masks(["a.png"]), join_masks(["a.png", "b.png"]), join_masks([])
        ('a.png', '["a.png", "b.png"]', '')
    """
    return json.dumps(list(paths), ensure_ascii=False) if len(paths) > 1 else "".join(paths)


def split_masks(cell: str) -> list[str]:
    """Returns the paths in a cell ``mask_path``: none, one (which may be a folder of masks), or a JSON list of several.

    Examples:
        >>> split_masks('["a.png", "b.png"]'), split_masks("[1] a.png"), split_masks("")
        (['a.png', 'b.png'], ['[1] a.png'], [])
    """
    if cell.startswith("[") and cell.endswith("]"):
        try:
            paths = json.loads(cell)
        except ValueError:
            return [cell]
        if isinstance(paths, list) and all(isinstance(path, str) for path in paths):
            return paths
    return [cell] if cell else []


def looks_like_mask(path: Path) -> bool:
    """Returns whether an image has few colours, as masks do; a photo has many. False for what cannot be read."""
    import numpy as np
    from PIL import Image

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore")
            if opened.mode in {"1", "P"} and opened.format != "GIF":
                return True
            lossy = opened.format in {"JPEG", "MPO", "WEBP"}
            opened.thumbnail((512, 512), Image.Resampling.NEAREST)
            pixels = np.asarray(opened.convert("RGB")).reshape(-1, 3)
    except Exception:  # whatever is wrong with it is said where it is read as an image
        return False
    if lossy:  # compression blurs the few colours
        _, counts = np.unique(pixels >> 5, axis=0, return_counts=True)
        return bool(np.sort(counts)[-3:].sum() >= 0.97 * len(pixels))
    return len(np.unique(pixels, axis=0)) <= _FEW_COLOURS


@dataclass(frozen=True)
class Place:
    """Where a file lies, as far as it tells which mask belongs to which image.

    Attributes:
        split: Split that the folders above name, or "".
        label: 0 or 1 if they say good or bad, else -1.
        rest: Other folders, lower case: categories and kinds of defects.
    """

    split: str
    label: int
    rest: tuple[str, ...]

    @classmethod
    @lru_cache(maxsize=4096)
    def of(cls, folders: tuple[str, ...]) -> Place:
        """Makes the place of the folders above a file, without those that mean masks."""
        kept = [folder for folder in folders if not is_mask_word(folder, sure=False)]
        split = next((split_of(folder) for folder in kept if split_of(folder)), "")
        rest = [f.casefold() for f in kept if not split_of(f) and label_of_word(f) < 0 and f.casefold() not in FILLERS]
        return cls(split, label_of(kept), tuple(rest))

    def takes(self, image: Place) -> bool:
        """Returns whether a mask here may belong to an image there: nothing in its path says otherwise."""
        if self.split and image.split and self.split != image.split:
            return False
        if self.label >= 0 and image.label >= 0 and self.label != image.label:
            return False
        folders = iter(image.rest)
        return all(folder in folders for folder in self.rest)

    def distance(self, image: Place) -> int:
        """Returns how much of an image's place this one does not name."""
        return 2 * (len(image.rest) - len(self.rest)) + (self.split != image.split) + (self.label != image.label)


def _keys(stem: str, *, beside: bool) -> Iterator[tuple[str, int, bool]]:
    """Yields the names that a mask's image may have, the likeliest first, with a rank and whether the name is sure.

    Ranks: 0 the mask's own name, 1 without an ending such as ``_mask``, 2 without a number too.
    """
    if not beside:
        yield stem, 0, True
    for pattern, sure, leads in _ENDINGS[beside] if _ANY_WORD.search(stem) else ():
        match = pattern.fullmatch(stem)
        if match:
            yield match[1], 2 if not leads and stem[-1] in "0123456789)" else 1, sure
            shorter = _LAST_NUMBER.sub("", match[1])
            if shorter != match[1] and not leads:
                yield shorter, 2, sure
    if not beside:
        shorter = _LAST_NUMBER.sub("", stem)
        if shorter and shorter != stem:
            yield shorter, 2, True


def _stem(file: str) -> str:
    return os.path.splitext(os.path.basename(file))[0].casefold()


def _name(file: str) -> str:
    return os.path.basename(file).casefold()


def _folders(file: str) -> tuple[str, ...]:
    return tuple(file.split("/")[:-1])


def masks_beside(files: Iterable[str], root: Path) -> tuple[dict[str, tuple[str, int]], list[str]]:
    """Finds masks that lie beside their images: ``0.png`` and ``0_mask.png``, ``0.mask.png``, ``0_gt_2.png``, ….

    Endings that may mean something else, such as ``_label``, count where the file has few colours.

    Args:
        files: Image files below the root, without those in folders of masks.
        root: The folder, for a look at their content.

    Returns:
        Mask → its image and rank; and masks without an image, in folders where others have one.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for file in files:
        folders[os.path.dirname(file)].append(file)
    found: dict[str, tuple[str, int]] = {}
    orphans = []
    for group in folders.values():
        by_name: dict[str, str] = {}
        for file in sorted(group, key=len, reverse=True):
            by_name[_stem(file)] = by_name[_name(file)] = file
        sure_ones = []
        for file in group:
            for key, rank, sure in _keys(_stem(file), beside=True):
                base = by_name.get(key)
                if base and base != file and (sure or looks_like_mask(root / file)):
                    found[file] = (base, rank)
                    break
                if sure:
                    sure_ones.append(file)
        if any(file in found for file in group):
            orphans += [file for file in dict.fromkeys(sure_ones) if file not in found]
    for file, (base, rank) in list(found.items()):  # the mask of a mask is the image's
        if base in found:
            found[file] = (found[base][0], rank)
    return found, orphans


@dataclass
class Truth:
    """Which masks belong to which image.

    Attributes:
        masks: Image → its masks; several are united.
        unclear: Masks that fit several images: given to none.
        unused: Masks that belong to no image.
        of_normal: Masks of normal images.
        extra: Masks of images that have another one.
    """

    masks: dict[str, list[str]] = field(default_factory=dict)
    unclear: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    of_normal: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)


def pair_masks(
    images: dict[str, int],
    masks: Sequence[str],
    beside: dict[str, tuple[str, int]],
    places: dict[str, Sequence[str]],
) -> Truth:
    """Gives each mask to the one image that it belongs to.

    A mask fits an image of its name (``_mask`` and the like, and a number, allowed) or lies in a folder of that name,
    if the folders above it name no other category, kind of defect, split or label than those above the image.

    Args:
        images: Image → label (0, 1, -1).
        masks: Masks in folders of masks.
        beside: Masks beside their images, see :func:`masks_beside`.
        places: Folders above a file, where other than in its path: ``bad_masks`` for a mask means ``bad``.
    """
    by_key: dict[str, list[tuple[str, Place]]] = defaultdict(list)
    for image in images:
        place = Place.of(_folders(image))
        for key in {_stem(image), _name(image)}:
            by_key[key].append((image, place))
    truth = Truth()
    found: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for mask, (image, rank) in beside.items():
        found[image].append((-1, rank, mask))
    for mask in masks:
        fits = _fits(mask, Place.of(tuple(places.get(mask, _folders(mask)))), by_key)
        anomalous = [fit for fit in fits if images[fit[2]] == 1] or fits
        nearest = [fit for fit in anomalous if fit[0] == min(anomalous)[0]]
        if not nearest:
            truth.unused.append(mask)
        elif len(nearest) > 1:
            truth.unclear.append(mask)
        else:
            distance, rank, image = nearest[0]
            found[image].append((distance, rank, mask))
    for image, candidates in found.items():
        candidates.sort()
        own = [one for one in candidates if one[0] == candidates[0][0]]
        first = [mask for _, rank, mask in own if rank < 2][:1]
        taken = first + [mask for _, rank, mask in own if rank == 2]
        truth.extra += [mask for _, _, mask in candidates if mask not in taken]
        if images[image] == 0:
            truth.of_normal += taken
        else:
            truth.masks[image] = taken
    return truth


def _fits(mask: str, place: Place, by_key: dict[str, list[tuple[str, Place]]]) -> list[tuple[int, int, str]]:
    """Returns the images that a mask may belong to, with distance and rank."""
    for key, rank, _ in _keys(_stem(mask), beside=False):
        fits = [(place.distance(at), rank, image) for image, at in by_key.get(key, ()) if place.takes(at)]
        if fits:
            return fits
    if place.rest:  # a folder per image
        above = Place(place.split, place.label, place.rest[:-1])
        return [(above.distance(at), 2, image) for image, at in by_key.get(place.rest[-1], ()) if above.takes(at)]
    return []
