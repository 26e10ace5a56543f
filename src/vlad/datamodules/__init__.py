"""Data: catalogue records, one index, one dataset, one LightningDataModule."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlad.datamodules.catalog import get_record, list_datasets
    from vlad.datamodules.datamodule import AnomalyDataModule
    from vlad.datamodules.dataset import AnomalyDataset
    from vlad.datamodules.record import Record
    from vlad.datamodules.sources import Source

__all__ = [
    "AnomalyDataModule",
    "AnomalyDataset",
    "Record",
    "Source",
    "get_record",
    "list_datasets",
]

# Lazy, so that listing data sets imports no torch.
_LAZY = {
    "AnomalyDataModule": "datamodule",
    "AnomalyDataset": "dataset",
    "Record": "record",
    "Source": "sources",
    "get_record": "catalog",
    "list_datasets": "catalog",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
