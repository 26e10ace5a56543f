"""A record of a data set: plain data that says where its files lie and what is known of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Download", "Layout", "Record"]


@dataclass(frozen=True)
class Layout:
    """One way in which a data set's files may lie; all paths are POSIX and relative to the root.

    Attributes:
        name: What the error calls it when no layout fits.
        image: Regular expression over a file's path without its suffix; groups ``category``, ``split``,
            ``defect_type`` (the kind of defect, or the normal folder) and ``stem`` are read where present.
        suffixes: Only files with these suffixes are images (lower case, with the dot); all by default.
        masks: Paths of the mask without suffix, tried in order, filled with the groups. With a suffix, that file
            alone; with a ``/`` at the end, all files of a folder together.
        label: What makes an image anomalous: its ``defect_type`` is not normal; it ``has_mask``; its ``mask`` holds
            anomalous pixels (masks are read); or all are ``anomalous``.
        normal: Defect types that are normal, such as ``good``.
        unlabelled: Defect types of which nothing is known.
        splits: Name in the path → ``train``, ``val`` or ``test``.
        split: Split where the path tells none.
        normal_test: Share of the normal images, drawn with seed 42, that are test; the others train. 0: not drawn.
        row_crops: Cut images into so many crops of rows, each an image of its own.
        labels: A CSV with one label per stem: ``file``, ``key`` column, ``value`` column (1 is anomalous).
        table: A CSV that lists every image, in place of ``image``.
        json: Pattern of JSON files ``{"train": [...], "test": [...]}`` that list every image.
        base: Folder that the paths of those files start from, tried in order, filled with ``category``.
        columns: The CSV's columns or the JSON's keys for ``category``, ``split``, ``defect_type``, ``image``, ``mask``.
    """

    name: str
    image: str = ""
    suffixes: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    label: Literal["defect_type", "has_mask", "mask", "anomalous"] = "defect_type"
    normal: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    splits: Mapping[str, str] = field(default_factory=dict)
    split: Literal["train", "val", "test"] = "test"
    normal_test: float = 0.0
    row_crops: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    table: str = ""
    json: str = ""
    base: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def wanted(self) -> str:
        """What is looked for, in words for an error."""
        return self.table or self.json or re.sub(r"\(\?P<(\w+)>(?:[^()]|\([^()]*\))*\)", r"<\1>", self.image)


@dataclass(frozen=True)
class Download:
    """A file that may be fetched directly.

    Attributes:
        url: Open direct link.
        checksum: ``sha256:…`` or ``md5:…``, as published.
        size: Bytes, about; 0 where not known.
        folder: Folder below the data root that it is unpacked into; the data set's own by default.
    """

    url: str
    checksum: str
    size: int = 0
    folder: str = ""


@dataclass(frozen=True)
class Record:
    """What is known of a data set.

    Attributes:
        name: Name in configs.
        title: Name in print.
        domain: ``"industrial"`` or ``"medical"``.
        levels: At which levels there is ground truth: ``"image"``, ``"pixel"``.
        folders: Usual folder names below a common data root, tried in order.
        categories: Category → natural words for it. The category itself is what published checkpoints saw.
        layouts: Known layouts, tried in order.
        licence: Licence of the data.
        url: Where it comes from.
        steps: How to get it into place.
        citation: Paper.
        mask_threshold: A mask pixel above this value is anomalous.
        expected: Official counts, split → ``normal``/``anomalous``.
        counts: Category → normal training, normal test and anomalous test images.
        downloads: Open direct links with checksums, for ``vlad data get``.
        overlaps: Data set → what it has in common with this one, so that one must not train what the other tests.
        rendered: Whether vlad makes the images itself, into its cache, where no root is given.
    """

    name: str
    title: str
    domain: Literal["industrial", "medical"]
    levels: tuple[str, ...]
    folders: tuple[str, ...]
    categories: Mapping[str, str]
    layouts: tuple[Layout, ...]
    licence: str = ""
    url: str = ""
    steps: str = ""
    citation: str = ""
    mask_threshold: int = 0
    expected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    downloads: tuple[Download, ...] = ()
    overlaps: Mapping[str, str] = field(default_factory=dict)
    rendered: bool = False

    def find_root(self, data_root: Path) -> Path:
        """Returns the set's folder below a common data root: the first usual name that exists, or the root itself."""
        for folder in self.folders:
            if (data_root / folder).is_dir():
                return data_root / folder
        return data_root
