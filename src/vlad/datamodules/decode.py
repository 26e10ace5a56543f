"""Images, masks and frames from files: by content, never by suffix, each failure naming its file."""

from __future__ import annotations

from vlad.datamodules.images import image_size, load_image
from vlad.datamodules.inspection import ImageFacts, inspect_image
from vlad.datamodules.masks import RowCrop, load_mask
from vlad.datamodules.opening import Reading, read_bytes
from vlad.datamodules.pages import page_count

__all__ = [
    "ImageFacts",
    "Reading",
    "RowCrop",
    "image_size",
    "inspect_image",
    "load_image",
    "load_mask",
    "page_count",
    "read_bytes",
]
