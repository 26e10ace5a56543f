"""Writes the page: a template with styles, scripts and data in it, so that it opens from disk with no network."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote

import numpy as np

from vlad.datamodules.image_files import printable
from vlad.drawing.colors import colorize
from vlad.files import write_atomic
from vlad.report.media import LEVELS
from vlad.report.store import Kept
from vlad.results.tables import Table, render

__all__ = ["Group", "Page", "Row", "write_page"]

_CHUNK = 48
"""Images whose thumbnails stand in one block: a block is read when the first of them is shown."""

_SCRIPTS = ("model.js", "charts.js", "images.js", "gallery.js", "app.js")
_SHOWN = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
"""Suffixes of images that browsers show."""


class Row(NamedTuple):
    """An image of the page.

    Attributes:
        group: Position of its category in :attr:`Page.groups`.
        name: Image id.
        path: The file.
        label: 0 normal, 1 anomalous, -1 unknown.
        score: Image score; None where it could not be scored.
        p_value: Share of normal calibration images that score at least as high, or None.
        decision: ``normal``, ``anomalous`` or "".
        error: Why it could not be scored, or "".
        above: Share of the category's normal images that score at least as high; None where it is not compared.
        other_above: The same in the run that this one is compared with.
    """

    group: int
    name: str
    path: str
    label: int = -1
    score: float | None = None
    p_value: float | None = None
    decision: str = ""
    error: str = ""
    above: float | None = None
    other_above: float | None = None


@dataclass(frozen=True)
class Group:
    """A category.

    Attributes:
        name: As it is called on the page.
        scale: Scores of the colours: floor, low, high; see :class:`vlad.drawing.Scale`.
        threshold: Of the decision, or None.
        curves: Pixel curves by name (``roc``, ``pr``, ``pro``): x and y of their points.
    """

    name: str
    scale: tuple[float, float, float] = (0.0, 0.0, 1.0)
    threshold: float | None = None
    curves: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """What a page says, but for its images.

    Attributes:
        title: Of the page.
        verb: ``test`` or ``predict``.
        subtitle: Below the title: method and data.
        groups: Categories.
        tables: Tables by heading, in their order.
        card: Sections of the protocol card: lines of a name and a text.
        summary: Figures at the top: a name and a text.
        notes: Sentences below the title.
        against: The run that this one is compared with, or "".
    """

    title: str
    verb: str
    subtitle: str
    groups: Sequence[Group]
    tables: Mapping[str, Sequence[Table]]
    card: Mapping[str, Sequence[tuple[str, str]]]
    summary: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    against: str = ""


def write_page(
    path: Path,
    page: Page,
    rows: Sequence[Row],
    kept: Callable[[], Iterable[Kept | None]],
    *,
    original: Callable[[str], str] | None = None,
) -> Path:
    """Writes a report; thumbnails pass through one by one.

    Args:
        path: The file.
        page: All but the images.
        rows: The images.
        kept: Called once; gives what is kept of each row, in their order.
        original: Gives the file that a row's path is linked to; the path itself by default.

    Raises:
        OutputError: It cannot be written.
    """
    template = _asset("page.html")
    parts = {
        "title": html.escape(printable(page.title)),
        "subtitle": html.escape(printable(page.subtitle)),
        "notes": "".join(f"<p class=note>{html.escape(printable(note))}</p>" for note in page.notes),
        "style": _asset("page.css"),
        "tables": "\n".join(_section(heading, tables) for heading, tables in page.tables.items()),
        "card": "\n".join(_card(heading, lines) for heading, lines in page.card.items()),
        "script": "\n".join(_asset(name) for name in _SCRIPTS),
    }

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for number, piece in enumerate(template.split("%%")):
                if number % 2 == 0:
                    file.write(piece)
                elif piece == "data":
                    _write_data(file, page, rows, kept(), path.parent, original)
                else:
                    file.write(parts[piece])

    return write_atomic(path, write)


def _asset(name: str) -> str:
    return files("vlad.report").joinpath("assets", name).read_text(encoding="utf-8")


def _section(heading: str, tables: Sequence[Table]) -> str:
    shown = "\n".join(f'<div class="scroll">{render(table, "html")}</div>' for table in tables)
    return f"<h3>{html.escape(heading)}</h3>\n{shown}"


def _card(heading: str, lines: Sequence[tuple[str, str]]) -> str:
    shown = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(printable(text))}</dd>" for name, text in lines)
    return f"<div><h3>{html.escape(heading)}</h3><dl>{shown}</dl></div>"


def _json(value: Any) -> str:
    """Returns JSON that can stand in a script element: no tag can begin in it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _write_data(
    file: IO[str],
    page: Page,
    rows: Sequence[Row],
    kept: Iterable[Kept | None],
    folder: Path,
    original: Callable[[str], str] | None,
) -> None:
    """Writes blocks of thumbnails, then the facts of all images."""
    panels: list[str] = []
    chunk: list[Any] = []
    with_thumbnail = 0
    for number, one in enumerate(kept):
        has_panel = one is not None and one.panel and (folder / "heatmaps" / f"{one.panel}.png").is_file()
        panels.append(quote(f"heatmaps/{one.panel}.png") if has_panel and one is not None else "")
        chunk.append(0 if one is None else one.media)
        with_thumbnail += one is not None
        if len(chunk) == _CHUNK or number == len(rows) - 1:
            file.write(f'<script type="application/json" id="media-{number // _CHUNK}">{_json(chunk)}</script>\n')
            chunk = []
    links = [_link(original(row.path) if original else row.path, folder) for row in rows]
    facts: dict[str, Any] = {
        "verb": page.verb,
        "chunk": _CHUNK,
        "palette": colorize(np.linspace(0, 1, 256)[None])[0].ravel().tolist(),
        "groups": [
            {"name": printable(one.name), "scale": one.scale, "threshold": one.threshold, "curves": one.curves}
            for one in page.groups
        ],
        "thumbnails": with_thumbnail,
        "levels": LEVELS,
        "summary": page.summary,
        "rows": {
            "group": [row.group for row in rows],
            "name": [printable(row.name) for row in rows],
            "path": [printable(row.path) for row in rows],
            "link": links,
            "panel": panels,
            "label": [row.label for row in rows],
            "score": [row.score for row in rows],
            "p": [row.p_value for row in rows],
            "decision": [row.decision for row in rows],
            "error": [printable(row.error) for row in rows],
        },
        "against": printable(page.against),
    }
    if page.against:
        facts["rows"] |= {name: [getattr(row, name) for row in rows] for name in ("above", "other_above")}
    file.write(f'<script type="application/json" id="facts">{_json(facts)}</script>\n')


def _link(path: str, folder: Path) -> str:
    """Returns a relative address of a file, percent-encoded byte by byte."""
    relative = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
    return quote(os.fsencode(relative)) + ("" if Path(path).suffix.lower() in _SHOWN else "#other")
