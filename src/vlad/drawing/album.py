"""The heat maps of one run: previews that wait, the run's scale, panels, and a contact sheet of some."""

from __future__ import annotations

import heapq
import json
import shutil
import warnings
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlad.drawing.panel import draw_contact_sheet, draw_panel
from vlad.drawing.png import write_png
from vlad.drawing.pool import Pool, usable_cpus
from vlad.drawing.previews import Preview, load_preview, preview_file, save_preview
from vlad.drawing.scale import Scale, choose_scale
from vlad.drawing.text import escaped
from vlad.files import read_plain, write_atomic, write_json
from vlad.journal import Journal, read_journals, seal

__all__ = ["Album", "choose_for_contact_sheet"]

Drawn = tuple[tuple[str, str], str, int, float]
"""Data set and category, name, label (-1 where not known) and image score of a panel."""

_SHEET = 24


def choose_for_contact_sheet(drawn: Iterable[Drawn], limit: int = _SHEET) -> list[str]:
    """Chooses what stands for a run, without picking cherries.

    Args:
        drawn: Data set and category, name, label (-1 where not known) and image score of every panel.
        limit: At most this many.

    Returns:
        Of each category the anomalous and the normal image of middle score; where nothing is known, the
        images of highest score.
    """
    known: dict[tuple[tuple[str, str], int], list[tuple[float, str]]] = {}
    highest: list[tuple[float, int, str]] = []
    for number, (category, name, label, score) in enumerate(drawn):
        known.setdefault((category, 1), [])  # categories in their order, the anomalous image first
        known.setdefault((category, 0), [])
        if label in (0, 1):
            known[category, label].append((score, name))
        heapq.heappush(highest, (score, -number, name))
        if len(highest) > limit:
            heapq.heappop(highest)
    chosen = [sorted(ranked)[len(ranked) // 2][1] for ranked in known.values() if ranked]
    return (chosen or [name for _, _, name in sorted(highest, reverse=True)])[:limit]


class Album:
    """Heat maps below ``heatmaps/`` of a run folder; what waits to be drawn is in ``parts/previews/``.

    Every preview is on disk before it is drawn and goes once it was: whatever kills a run, the rest is drawn when the
    run is continued. Several processes share the folders: each has a journal of its own and draws a share.
    """

    def __init__(self, folder: Path, *, rank: int = 0, world: int = 1) -> None:
        """Makes nothing yet.

        Args:
            folder: The run folder.
            rank: Which of the processes this one is.
            world: How many processes there are.
        """
        self.heatmaps, self.parts = folder / "heatmaps", folder / "parts" / "previews"
        self.rank, self.world = rank, world
        self.unknown: set[str] = set()  # letters that no font has
        self._journal = Journal(self.parts / f"journal-{rank}.jsonl")
        self._pool: Pool | None = None

    def clear(self) -> None:
        """Forgets what an earlier run left in the folder, but for its panels."""
        shutil.rmtree(self.parts, ignore_errors=True)
        for name in ("scale.json", "contact_sheet.json", "index.jsonl"):
            (self.heatmaps / name).unlink(missing_ok=True)

    # -- while a run goes on -----------------------------------------------------------------------------------

    def add(self, rows: Sequence[dict[str, Any]], previews: Sequence[Preview]) -> None:
        """Keeps a batch; it is on disk when this returns. What has a scale already is drawn soon.

        Args:
            rows: One for each image: ``name``; ``set``, its data set and category; ``label``, -1 where not known;
                ``score``; ``max`` and ``level`` (median) of its map; ``scale``, a dictionary, or None for the run's
                own. Where map or score is not finite, these four are None.
            previews: Of those images that have a panel.
        """
        names = {preview.name for preview in previews}
        self._journal.append(
            {**row, "key": f"{row['max'] is None} {row['name']}", "drawn": row["name"] in names} for row in rows
        )
        for preview in previews:
            path = preview_file(self.parts, preview.name)
            save_preview(path, preview)
            if preview.scale is not None:
                if self._pool is None:  # the other half of the processors scores
                    self._pool = Pool(usable_cpus() // (2 * self.world))
                self._pool.add(self._draw, path, None)

    def settle(self) -> None:
        """Waits until all that could be drawn is; every process calls it before :meth:`choose`."""
        self._journal.close()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def abandon(self) -> None:
        """Stops drawing where a run ends early; the rest stays for its continuation."""
        self._journal.close()
        if self._pool is not None:
            self._pool.abandon()
        self._pool = None

    # -- at its end --------------------------------------------------------------------------------------------

    def _journals(self) -> Iterator[dict[str, Any]]:
        return read_journals(sorted(self.parts.glob("journal-*.jsonl")), "key")

    def _recorded(self, name: str) -> dict[str, Any]:
        """Returns what a JSON file of the heat maps says; nothing where it is not there or damaged."""
        with suppress(OSError, ValueError, RecursionError):
            content = json.loads(read_plain(self.heatmaps / name))
            return content if isinstance(content, dict) else {}
        return {}

    def choose(self) -> None:
        """Chooses the run's scale and writes ``scale.json``; one process calls it, once all have settled.

        A continued run keeps the scale that it has drawn with.
        """
        maxima, levels, labels = array("d"), array("d"), array("b")
        before = self._recorded("scale.json")
        known = before.get("categories")
        categories: dict[str, Any] = dict(known) if isinstance(known, dict) else {}
        count = 0
        for row in self._journals():
            count += 1
            if row["scale"] is not None:
                categories["/".join(dict.fromkeys(row["set"]))] = row["scale"]
            elif row["max"] is not None:
                maxima.append(row["max"])
                levels.append(row["level"])
                labels.append(row["label"])
        run = self._run_scale()
        if run is None and maxima:
            run = choose_scale(np.asarray(maxima), np.asarray(levels), np.asarray(labels))
        if count:
            write_json(self.heatmaps / "scale.json", {**(run.to_dict() if run else {}), "categories": categories})

    def _run_scale(self) -> Scale | None:
        """Returns the scale that ``scale.json`` has for images without a calibrated one, if it has."""
        with suppress(ValueError):
            return Scale.of_dict(self._recorded("scale.json"))
        return None

    def waiting(self) -> list[Path]:
        """Returns the previews that this process is to draw."""
        paths = (path for path in self.parts.glob("*.safetensors") if path.is_file())  # a FIFO would be waited for
        return sorted(path for path in paths if zlib.crc32(path.name.encode()) % self.world == self.rank)

    def draw(self, paths: Sequence[Path], advance: Callable[[int], None] = lambda count: None) -> None:
        """Draws previews with the run's scale and deletes them.

        Args:
            paths: This process's share, of :meth:`waiting`.
            advance: Is called with the number of panels drawn since the last call.
        """
        scale = self._run_scale()
        pool = Pool(usable_cpus() // self.world)

        def draw(path: Path) -> None:
            self._draw(path, scale)
            advance(1)

        for path in paths:
            pool.add(draw, path)
        pool.close()

    def _draw(self, path: Path, scale: Scale | None) -> None:
        try:
            preview = load_preview(path)
        except (OSError, ValueError):
            warnings.warn(f"no heat map: {path} is damaged; --output into another folder draws it anew", stacklevel=1)
            path.unlink(missing_ok=True)
            return
        final = preview.maps[""]
        scale = preview.scale or scale
        if scale is None:  # its journal is lost
            seen = final[np.isfinite(final)]
            scale = choose_scale(np.array([seen.max()]), np.array([np.median(seen)]))
        self.unknown |= escaped(f"{preview.title}{preview.caption}")[1]
        write_png(self._file(preview.name), draw_panel(preview.panel(), scale))
        path.unlink(missing_ok=True)

    def _panels(self) -> Iterator[dict[str, Any]]:
        """Yields the facts of the panels drawn since the last contact sheet, and of those on it."""
        sheet = self._recorded("contact_sheet.json").get("panels")
        rows = [row for row in sheet if _is_panel(row)] if isinstance(sheet, list) else []
        earlier = {row["name"]: row for row in rows}
        for row in self._journals():
            if row["drawn"]:
                earlier.pop(row["name"], None)
                yield row
        yield from earlier.values()

    def finish(self) -> str:
        """Draws the contact sheet and deletes what waited; one process calls it, once all have drawn.

        Returns:
            What has to be said of images without a panel; "" for nothing.
        """
        if not self.parts.is_dir():  # nothing new
            return ""
        count, first = 0, ""
        for row in self._journals():
            if row["max"] is None and not self._file(row["name"]).is_file():
                count, first = count + 1, first or row["name"]
        facts = ((tuple(row["set"]), row["name"], row["label"], row["score"]) for row in self._panels())
        chosen = [name for name in choose_for_contact_sheet(facts) if self._opened(name) is not None]
        self._write_index()
        if chosen:
            kept = {row["name"]: row for row in self._panels() if row["name"] in set(chosen)}
            panels = [{part: kept[name][part] for part in ("name", "set", "label", "score")} for name in chosen]
            sheet = draw_contact_sheet([self._opened(name) for name in chosen])
            target = self.heatmaps / "contact_sheet.jpg"
            write_atomic(target, lambda partial: sheet.save(partial, format="JPEG", quality=92))
            write_json(self.heatmaps / "contact_sheet.json", {"panels": panels})
        shutil.rmtree(self.parts, ignore_errors=True)
        with suppress(OSError):  # others' parts stay
            self.parts.parent.rmdir()
        if not count:
            return ""
        return f"no heat map of {count} images whose score or map is not finite, such as {first}"

    def _write_index(self) -> None:
        """Adds the panels drawn since to ``index.jsonl``: which image each is of."""
        index = self.heatmaps / "index.jsonl"

        def lines() -> Iterator[str]:
            drawn = set()
            for row in self._journals():
                if row["drawn"] and self._file(row["name"]).is_file():
                    drawn.add(hash(row["name"]))
                    about: dict[str, Any] = {name: row[name] for name in ("path", "image_id") if name in row}
                    yield seal({"file": f"{row['name']}.png", **about})
            earlier = read_journals([index] if index.is_file() else [], "file")
            yield from (seal(row) for row in earlier if hash(row["file"][:-4]) not in drawn)

        def write(partial: Path) -> None:
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(sorted(lines()))

        if any(row["drawn"] for row in self._journals()):
            write_atomic(index, write)

    def _opened(self, name: str) -> Any:
        """Returns a panel; None where it is gone or damaged."""
        with suppress(OSError, ValueError, SyntaxError), Image.open(self._file(name)) as panel:
            return panel.copy()
        return None

    def _file(self, name: str) -> Path:
        return self.heatmaps / f"{name}.png"


def _is_panel(row: Any) -> bool:
    """Whether a panel of an earlier contact sheet is what :meth:`Album.finish` wrote."""
    kinds = {"name": str, "set": list, "label": int, "score": float | int}
    return isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in kinds.items())
