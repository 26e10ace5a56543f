"""One page of results that opens from disk: what is in it, and how it is written.

The callback :class:`vlad.callbacks.Report` collects while a run goes on; :func:`write_page` writes ``report.html``.
"""

from vlad.report.media import Media, encode_media
from vlad.report.page import Group, Page, Row, write_page
from vlad.report.store import MediaStore

__all__ = ["Group", "Media", "MediaStore", "Page", "Row", "encode_media", "write_page"]
