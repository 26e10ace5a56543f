"""Methods as files that run without vlad and, where wanted, without torch: ``vlad export``."""

from __future__ import annotations

from vlad.export.runtime import ExportedModel

__all__ = ["ExportedModel"]
