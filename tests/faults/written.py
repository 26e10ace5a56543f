"""Files that vlad has written and reads again: decisions, rows, previews, pointers, maps, the cached index."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from faults.kind import Kind, Read, pixels, require
from faults.weights import make_checkpoint
from PIL import Image

__all__ = ["WRITTEN"]


def _decision(kind: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        return _good_decision(kind).save(folder / "decision.json")

    return make


def _good_decision(kind: str) -> Any:
    from vlad.decision import Decision, ReferenceRecord, Rule
    from vlad.decision.conformal import conformal_threshold

    scores = tuple(np.linspace(0.1, 0.9, 40).astype(np.float32).tolist())
    threshold = conformal_threshold(scores, 0.05) if kind == "conformal" else 0.625
    rule = Rule(threshold, 0.5, "nut", scores, scores[::2], 0.25, 3, ReferenceRecord("a", "b"), {"0" * 64: 12345})
    target = "" if kind == "conformal" else "f1"
    rate = 0.05 if kind == "conformal" else None
    return Decision(kind, {"parts/nut": rule}, None, {"options": {"eps": 0.1}}, rate, target, 0.001, 7, "now", "0.1")


def _read_decision(kind: str) -> Read:
    def read(file: Path) -> None:
        from vlad.decision import Decision

        require(Decision.load(file) == _good_decision(kind), "another decision")

    return read


def _store_rows() -> list[dict[str, Any]]:
    return [
        {"key": f"k{n}", "path": f"{n}.png", "image_id": f"{n}", "category": "nut", "class_name": "nut",
         "image_score": n / 7, "map_max": n / 3, "error": "", "size": n, "mtime_ns": n, "digest": "d"}
        for n in range(6)
    ]  # fmt: skip


def _rows(folder: Path) -> Path:
    from vlad.store import RowStore

    store = RowStore(folder / "out")
    store.begin({"method": "sdp", "options": {"eps": 0.1}})
    store.append(_store_rows())
    store.join()
    store.append(_store_rows()[:2])
    store.close()
    return folder / "out" / "parts" / "rows.jsonl"


def _read_rows(file: Path) -> None:
    """Reads rows; a damaged one is not there, and its image is scored again."""
    from vlad.store import RowStore

    store = RowStore(file.parent.parent)
    store.states()
    good = {row["key"]: row for row in _store_rows()}
    for row in store.rows([*good, "other"]):
        require(row == good.get(row["key"]), f"another row {row}")
    store.write_table(good, file.parent.parent / "t.csv", lambda row: None)


def _settings(folder: Path) -> Path:
    return _rows(folder).with_name("settings.json")


def _read_settings(file: Path) -> None:
    from vlad.store import RowStore

    RowStore(file.parent.parent).check({"method": "sdp", "options": {"eps": 0.1}})


def _preview(folder: Path) -> Path:
    from vlad.drawing.previews import Preview, preview_file, save_preview

    maps = {"": np.linspace(0, 1, 72 * 80, dtype=np.float32).reshape(72, 80)}
    preview = Preview("nut/a", "nut/a", "score 1", np.asarray(Image.fromarray(pixels()).resize((80, 72))), maps)
    save_preview(preview_file(folder / "parts" / "previews", "nut/a"), preview)
    return preview_file(folder / "parts" / "previews", "nut/a")


def _read_preview(file: Path) -> None:
    """Draws what waits; a damaged preview is told and leaves no panel."""
    from vlad.drawing.album import Album

    folder = file.parent.parent.parent
    good = folder.parent / "good.png"
    album = Album(folder)
    album.draw(album.waiting())
    panel = folder / "heatmaps" / "nut" / "a.png"
    if panel.exists():
        if not good.exists():
            reference = folder.parent / "reference"
            undamaged = Album(reference)
            _preview(reference)
            undamaged.draw(undamaged.waiting())
            shutil.copy(reference / "heatmaps" / "nut" / "a.png", good)
        require(panel.read_bytes() == good.read_bytes(), "another panel")


def _scale(folder: Path) -> Path:
    _preview(folder)
    album = _album(folder)
    album.choose()
    return folder / "heatmaps" / "scale.json"


def _album(folder: Path) -> Any:
    from vlad.drawing.album import Album

    album = Album(folder)
    facts = {
        "name": "nut/a",
        "set": ("parts", "nut"),
        "label": -1,
        "score": 1.0,
        "max": 1.0,
        "level": 0.5,
        "scale": None,
    }
    album.add([facts], [])
    album.settle()
    return album


def _read_scale(file: Path) -> None:
    from vlad.drawing.album import Album

    album = Album(file.parent.parent)
    album.choose()
    album.draw(album.waiting())
    album.finish()


def _journal(folder: Path) -> Path:
    _scale(folder)
    return folder / "parts" / "previews" / "journal-0.jsonl"


def _read_journal(file: Path) -> None:
    from vlad.drawing.album import Album

    album = Album(file.parent.parent.parent)
    album.choose()
    album.draw(album.waiting())
    album.finish()


def _run_record(folder: Path) -> Path:
    make_checkpoint(folder)
    record = {"verb": "test", "checkpoint": {"file": "../run/checkpoints/epoch=0.ckpt", "path": "/nowhere"}}
    (folder / "test").mkdir()
    (folder / "test" / "run.json").write_text(json.dumps(record, indent=2))
    return folder / "test" / "run.json"


def _read_run(file: Path) -> None:
    from vlad.published import find_checkpoint

    find_checkpoint(file.parent)


def _latest(folder: Path) -> Path:
    from vlad.runs.pointers import write_latest

    make_checkpoint(folder)
    write_latest(folder, folder / "run")
    return folder / "latest"


def _read_latest(file: Path) -> None:
    from vlad.published import find_checkpoint

    find_checkpoint(file)


def _reference_records(folder: Path) -> Path:
    (folder / "references.csv").write_text(f"dataset,category,image_id,path,sha256\nparts,nut,a,a.png,{'0' * 64}\n")
    return folder / "references.csv"


def _read_reference_records(file: Path) -> None:
    from vlad.decision.records import recorded_references

    recorded_references(file.parent)


def _raw_map(kind: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from vlad.drawing.raw import write_map

        file = folder / f"map{'.npy' if kind == 'npy' else '.png'}"
        write_map(file, np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40), kind)
        return file

    return make


def _read_raw(file: Path) -> None:
    from vlad.drawing.raw import read_map

    require(read_map(file).ndim == 2, "no map")


def _cached_index(folder: Path) -> Path:
    from tests_support import write_mvtec

    write_mvtec(folder / "data" / "mvtec_ad", ("nut",), count=1)
    os.environ["VLAD_CACHE"] = str(folder / "cache")
    _index(folder / "data")
    (file,) = (folder / "cache" / "index").iterdir()
    return file


def _index(root: Path) -> Any:
    from vlad.datamodules.sources import Locations, Source

    return Locations(str(root)).index(Source("mvtec_ad"))


def _read_cached_index(file: Path) -> None:
    from vlad.datamodules.catalog import get_record
    from vlad.datamodules.index import index_record

    folder = file.parent.parent.parent
    os.environ["VLAD_CACHE"] = str(folder / "cache")
    good = index_record(get_record("mvtec_ad"), folder / "data" / "mvtec_ad")
    require(_index(folder / "data").equals(good), "another index")


WRITTEN: dict[str, Kind] = {
    "decision, conformal": Kind(_decision("conformal"), _read_decision("conformal"), digest=True),
    "decision, labelled": Kind(_decision("labelled"), _read_decision("labelled"), digest=True),
    "rows of a prediction": Kind(_rows, _read_rows, digest=True),
    "settings of a prediction": Kind(_settings, _read_settings),
    "preview": Kind(_preview, _read_preview, digest=True),
    "scale.json": Kind(_scale, _read_scale),
    "journal of heat maps": Kind(_journal, _read_journal),
    "run.json": Kind(_run_record, _read_run),
    "latest": Kind(_latest, _read_latest),
    "references.csv": Kind(_reference_records, _read_reference_records),
    "raw map npy": Kind(_raw_map("npy"), _read_raw),
    "raw map PNG": Kind(_raw_map("png16"), _read_raw),
    "cached index": Kind(_cached_index, _read_cached_index, digest=True),
}
