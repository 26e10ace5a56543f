"""Every kind of file that vlad reads: how a good one is made, how it is read, and when the result is right."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults.judge import WrongError
from PIL import Image, ImageOps

__all__ = ["KINDS", "Kind"]

Read = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        make: Writes a good file, and what it needs, into a folder; returns it.
        read: Reads it; raises WrongError where the result is wrong.
        digest: Whether the file carries a digest, so that all damage is noticed.
        quick: Whether a case takes a few ms; of others a quarter as many are tried.
    """

    make: Callable[[Path], Path]
    read: Read
    digest: bool = False
    quick: bool = True


def _require(holds: object, what: str) -> None:
    if not holds:
        raise WrongError(what)


# -- images and masks --------------------------------------------------------------------------------------------


def _pixels(size: tuple[int, int] = (40, 36)) -> np.ndarray:
    rows, columns = np.mgrid[: size[1], : size[0]]
    noise = np.random.default_rng(5).integers(0, 40, (size[1], size[0], 3))
    return (np.stack([rows * 4, columns * 4, rows + columns], 2) + noise).clip(0, 255).astype(np.uint8)


def _image(format_: str, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = folder / f"image.{format_.lower()}"
        Image.fromarray(_pixels()).save(file, format_, **options)
        return file

    return make


def _read_image(file: Path) -> None:
    """Reads an image; where it is decoded, the pixels are those that Pillow decodes."""
    from vlad.datamodules.decode import load_image

    image = load_image(str(file))
    _require(image.mode == "RGB" and image.width and image.height, "no RGB image")
    try:
        with Image.open(io.BytesIO(file.read_bytes())) as theirs:
            plain = theirs.mode in {"RGB", "L"}
            expected = np.asarray(ImageOps.exif_transpose(theirs).convert("RGB"))
    except Exception:  # a TIFF that calls itself grey, and the like: read although Pillow refuses
        return
    _require(not plain or np.array_equal(np.asarray(image), expected), "other pixels than Pillow decodes")


def _mask(folder: Path) -> Path:
    mask = np.zeros((36, 40), np.uint8)
    mask[8:20, 10:26] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder / "mask.png"


def _read_mask(file: Path) -> None:
    from vlad.datamodules.decode import load_mask

    mask = load_mask(str(file), (40, 36))
    _require(mask.shape == (36, 40) and mask.dtype == bool, "no mask of its image's size")


def _deep(folder: Path) -> Path:
    values = _pixels()[..., 0].astype(np.uint16) * 16
    Image.fromarray(values).save(folder / "deep.tiff")
    return folder / "deep.tiff"


def _read_deep(file: Path) -> None:
    from vlad.datamodules.decode import load_image

    _require(load_image(str(file)).mode == "RGB", "no RGB image")


def _pages(folder: Path) -> Path:
    pages = [Image.fromarray(_pixels()), Image.fromarray(255 - _pixels())]
    pages[0].save(folder / "pages.tiff", save_all=True, append_images=pages[1:])
    return folder / "pages.tiff"


def _read_pages(file: Path) -> None:
    from vlad.datamodules.custom import index_images
    from vlad.datamodules.decode import load_image
    from vlad.errors import DataError

    frame = index_images(str(file)).frame
    _require(0 < len(frame) < 100, f"{len(frame)} pages")
    for page in frame["frame"]:
        try:
            load_image(str(file), frame=int(page))
        except DataError as error:
            _require(str(file) in str(error), f"the file is not named: {error}")


def _read_roi(file: Path) -> None:
    from vlad.datamodules.custom import index_images
    from vlad.datamodules.roi import add_regions

    Image.fromarray(_pixels()).save(file.parent / "beside.bmp")
    add_regions(index_images(str(file.parent / "beside.bmp")).frame, str(file), None)


# -- tables ------------------------------------------------------------------------------------------------------

_ROWS = [
    {"image_path": f"{number}.png", "label": number % 2, "mask_path": "", "category": "nut", "split": "test"}
    for number in range(4)
]


def _table(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import pandas as pd

        for row in _ROWS:
            (folder / row["image_path"]).write_bytes(b"x")
        frame, file = pd.DataFrame(_ROWS), folder / f"table{suffix}"
        if suffix in {".csv", ".tsv"}:
            frame.to_csv(file, index=False, sep="," if suffix == ".csv" else "\t")
        elif suffix == ".json":
            frame.to_json(file, orient="records")
        elif suffix == ".jsonl":
            frame.to_json(file, orient="records", lines=True)
        else:
            frame.to_parquet(file)
        return file

    return make


def _read_table(file: Path) -> None:
    from vlad.datamodules.custom import index_table

    frame = index_table(file)
    _require(set(frame["label"]) <= {-1, 0, 1}, "labels")
    _require(all(os.path.lexists(path) for path in frame["image_path"]), "images that are not there")


def _reference_list(folder: Path) -> Path:
    for number in range(3):
        Image.fromarray(_pixels()).save(folder / f"{number}.png")
    (folder / "references.txt").write_text("0.png\n1.png\n2.png\n")
    return folder / "references.txt"


def _read_references(file: Path) -> None:
    import pandas as pd

    from vlad.datamodules.references import given_references

    wanted = pd.DataFrame({"dataset": ["a"], "category": ["b"], "class_name": ["b"]})
    given_references(str(file), None, 0, wanted)


def _meta(folder: Path) -> Path:
    for number in range(2):
        Image.fromarray(_pixels()).save(folder / f"{number}.png")
    rows = [
        {"img_path": f"{number}.png", "mask_path": "", "cls_name": "nut", "specie_name": "", "anomaly": number}
        for number in range(2)
    ]
    (folder / "meta.json").write_text(json.dumps({"train": {"nut": []}, "test": {"nut": rows}}))
    return folder / "meta.json"


def _read_meta(file: Path) -> None:
    from vlad.datamodules.meta import from_meta

    _require(set(from_meta(file)["label"]) <= {-1, 0, 1}, "labels")


# -- records and configs -------------------------------------------------------------------------------------------

_RECORD = """
name = "own"
title = "Own"
domain = "industrial"
levels = ["image", "pixel"]
folders = ["own"]
mask_threshold = 10
licence = "CC"
[categories]
nut = "metal nut"
[expected.test]
normal = 1
anomalous = 1
[counts]
nut = [1, 1, 1]
[[layouts]]
name = "folders"
image = "(?P<category>[^/]+)/(?P<split>train|test)/(?P<defect_type>[^/]+)/(?P<stem>[^/]+)"
masks = ["{category}/ground_truth/{defect_type}/{stem}_mask"]
normal = ["good"]
suffixes = [".png"]
splits = {train = "train", test = "test"}
normal_test = 0.0
row_crops = 2
[[downloads]]
url = "https://example.org/own.zip"
checksum = "md5:00112233445566778899aabbccddeeff"
size = 100
[overlaps]
mvtec_ad = "nothing"
"""


def _record(folder: Path) -> Path:
    from tests_support import write_mvtec

    write_mvtec(folder / "own", ("nut",), count=1)
    (folder / "own.toml").write_text(_RECORD)
    return folder / "own.toml"


def _read_record(file: Path) -> None:
    from vlad.datamodules.catalog import get_record
    from vlad.datamodules.index import index_record

    record = get_record(str(file))
    frame = index_record(record, file.parent / "own")
    _require(len(frame) < 10_000, f"{len(frame)} rows of three images")


_CONFIG = """
model: {class_path: sdp, image_size: 96, backbone: vlad-tiny}
data:
  predict: photos
  class_name: "metal nut"
  batch_size: 4
  num_workers: 0
  max_pixels: 1000000
  intensity_range: [0, 4095]
heatmaps: {enabled: true, limit: 5, height: 128}
trainer: {devices: 1, accelerator: cpu, precision: 32-true}
seed_everything: 7
"""


def _config(folder: Path) -> Path:
    (folder / "photos").mkdir()
    Image.fromarray(_pixels()).save(folder / "photos" / "a.png")
    (folder / "config.yaml").write_text(_CONFIG)
    return folder / "config.yaml"


def _read_config(file: Path) -> None:
    """Parses a config as ``vlad predict`` does; a wrong one ends with 2, in short."""
    from contextlib import redirect_stderr, redirect_stdout

    from vlad.cli import main
    from vlad.errors import OptionError

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(["predict", "--config", str(file), "--print_config"])
        except SystemExit as stop:
            status = int(stop.code or 0)
    text = err.getvalue()
    _require("Traceback" not in text, f"a traceback: {text[-300:]}")
    if status:
        raise OptionError(text.strip().splitlines()[-1] if text.strip() else f"status {status} without a word")


# -- weights and checkpoints -----------------------------------------------------------------------------------------


@cache
def _built(seed: int) -> tuple[Any, dict[str, torch.Tensor]]:
    from vlad.methods.sdp_plus import SDPPlus

    torch.manual_seed(seed)
    method = SDPPlus(backbone="vlad-tiny", image_size=64, layers=[2, 4]).eval()
    return method, {name: value.clone() for name, value in method.state_dict().items()}


def _method(seed: int = 3) -> Any:
    """Returns a method with the weights that the seed gives; the same object every time, to be quick."""
    method, state = _built(seed)
    with torch.no_grad():
        for name, value in method.named_parameters():
            if value.requires_grad:
                value.copy_(state[name])
    method.origin = "fit"
    return method


def _checkpoint(folder: Path) -> Path:
    from tests_support import save_run

    return save_run(_method(), folder / "run") / "checkpoints" / "epoch=0.ckpt"


def _same_state(state: Any) -> None:
    good = _built(3)[1]
    for name, value in state.items():
        _require(name in good, f"unknown {name}")
        _require(torch.equal(value, good[name]), f"another {name}")


def _read_checkpoint(file: Path) -> None:
    from vlad.checkpoint import read_checkpoint

    _same_state(read_checkpoint(file)["state_dict"])


def _exported(folder: Path) -> Path:
    from vlad.checkpoint import export_weights

    return export_weights(_checkpoint(folder), folder / "exported.safetensors")


def _load_weights(file: Path) -> None:
    from vlad.checkpoint import load_weights

    method = _method(4)
    load_weights(method, file)
    for name, value in method.named_parameters():
        if value.requires_grad:
            _require(bool(value.isfinite().all()), f"{name} is not finite")


def _load_own_weights(file: Path) -> None:
    from vlad.checkpoint import load_weights

    method = _method(4)
    load_weights(method, file)
    for name, value in method.named_parameters():
        _require(torch.equal(value, _built(3)[1][name]), f"another {name}")


def _foreign(suffix: str) -> Callable[[Path], Path]:
    """Weights as a method's authors publish them: without a digest of ours."""

    def make(folder: Path) -> Path:
        layers = {
            name.replace("heads.", "fc."): p.detach() for name, p in _method().named_parameters() if "heads" in name
        }
        torch.save({"linear_layers": layers}, folder / f"official{suffix}")
        return folder / f"official{suffix}"

    return make


def _clip_folder(folder: Path) -> Path:
    from vlad.testing import tiny_clip

    tiny_clip(folder / "clip")
    return folder / "clip" / "open_clip_model.safetensors"


def _clip_config(folder: Path) -> Path:
    return _clip_folder(folder).with_name("open_clip_config.json")


def _read_clip(file: Path) -> None:
    """Loads a CLIP of a folder; its weights have no digest, and are whole and finite."""
    from vlad.encoders import load_encoder

    encoder = load_encoder(f"local-dir:{file.parent}")
    for name, value in encoder.state_dict().items():
        _require(not value.is_floating_point() or bool(value.isfinite().all()), f"{name} is not finite")


def _video(folder: Path) -> Path:
    import cv2

    file = folder / "video.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 5, (40, 36))
    for number in range(4):
        writer.write((_pixels() + 10 * number).astype(np.uint8))
    writer.release()
    return file


def _read_video(file: Path) -> None:
    from vlad.datamodules.custom import index_images
    from vlad.datamodules.decode import load_image
    from vlad.errors import DataError

    frame = index_images(str(file)).frame
    _require(0 < len(frame) < 100, f"{len(frame)} frames")
    for number in frame["frame"]:
        try:
            load_image(str(file), frame=int(number))
        except DataError as error:
            _require(str(file) in str(error), f"the file is not named: {error}")


# -- what vlad has written itself --------------------------------------------------------------------------------------


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

        _require(Decision.load(file) == _good_decision(kind), "another decision")

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
        _require(row == good.get(row["key"]), f"another row {row}")
    store.write_table(good, file.parent.parent / "t.csv", lambda row: None)


def _settings(folder: Path) -> Path:
    return _rows(folder).with_name("settings.json")


def _read_settings(file: Path) -> None:
    from vlad.store import RowStore

    RowStore(file.parent.parent).check({"method": "sdp", "options": {"eps": 0.1}})


def _preview(folder: Path) -> Path:
    from vlad.drawing.previews import Preview, preview_file, save_preview

    maps = {"": np.linspace(0, 1, 72 * 80, dtype=np.float32).reshape(72, 80)}
    preview = Preview("nut/a", "nut/a", "score 1", np.asarray(Image.fromarray(_pixels()).resize((80, 72))), maps)
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
        _require(panel.read_bytes() == good.read_bytes(), "another panel")


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
    _checkpoint(folder)
    record = {"verb": "test", "checkpoint": {"file": "../run/checkpoints/epoch=0.ckpt", "path": "/nowhere"}}
    (folder / "test").mkdir()
    (folder / "test" / "run.json").write_text(json.dumps(record, indent=2))
    return folder / "test" / "run.json"


def _read_run(file: Path) -> None:
    from vlad.published import find_checkpoint

    find_checkpoint(file.parent)


def _latest(folder: Path) -> Path:
    from vlad.runs.pointers import write_latest

    _checkpoint(folder)
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

    _require(read_map(file).ndim == 2, "no map")


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
    _require(_index(folder / "data").equals(good), "another index")


# -- archives ----------------------------------------------------------------------------------------------------


def _archive(kind: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        content = {f"data/nut/{number}.bin": _pixels().tobytes()[: 500 + number] for number in range(4)}
        file = folder / f"archive.{kind}"
        if kind == "zip":
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in content.items():
                    archive.writestr(name, data)
        else:
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w") as archive:
                for name, data in content.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
            file.write_bytes(gzip.compress(stream.getvalue(), 6, mtime=0) if kind == "tar.gz" else stream.getvalue())
        return file

    return make


def _read_archive(file: Path) -> None:
    from vlad.datamodules.download import unpack

    target = file.parent / "unpacked" / "here"
    shutil.rmtree(target.parent, ignore_errors=True)
    before = {path.name for path in file.parent.iterdir()}
    try:
        unpack([file], target)
    finally:
        beside = {path.name for path in file.parent.iterdir()} - before - {"unpacked"}
        _require(not beside, f"something beside the folder: {beside}")
        left = {path.name for path in target.parent.iterdir()} - {"here"} if target.parent.is_dir() else set()
        _require(not left, f"left: {left}")
    if file.name.endswith((".zip", ".tar.gz")):  # their members have a checksum
        for path in target.rglob("*.bin"):
            data = path.read_bytes()
            _require(data == _pixels().tobytes()[: len(data)] and 500 <= len(data) < 504, f"another {path.name}")


KINDS: dict[str, Kind] = {
    "image PNG": Kind(_image("PNG"), _read_image),
    "image PNG, indexed": Kind(_image("GIF"), _read_image),
    "image JPEG": Kind(_image("JPEG", quality=90), _read_image),
    "image TIFF": Kind(_image("TIFF", compression="tiff_lzw"), _read_image),
    "image BMP": Kind(_image("BMP"), _read_image),
    "image WebP": Kind(_image("WEBP", lossless=True), _read_image),
    "image 16-bit TIFF": Kind(_deep, _read_deep),
    "image of pages": Kind(_pages, _read_pages),
    "video": Kind(_video, _read_video, quick=False),
    "mask": Kind(_mask, _read_mask),
    "region of interest": Kind(_mask, _read_roi),
    "table CSV": Kind(_table(".csv"), _read_table),
    "table TSV": Kind(_table(".tsv"), _read_table),
    "table JSON": Kind(_table(".json"), _read_table),
    "table JSON lines": Kind(_table(".jsonl"), _read_table),
    "table parquet": Kind(_table(".parquet"), _read_table),
    "list of references": Kind(_reference_list, _read_references, quick=False),
    "meta.json": Kind(_meta, _read_meta),
    "record of a data set": Kind(_record, _read_record),
    "config": Kind(_config, _read_config, quick=False),
    "checkpoint": Kind(_checkpoint, _read_checkpoint, digest=True, quick=False),
    "checkpoint as weights": Kind(_checkpoint, _load_own_weights, digest=True, quick=False),
    "exported weights": Kind(_exported, _load_own_weights, digest=True, quick=False),
    "published weights": Kind(_foreign(".pth"), _load_weights, quick=False),
    "CLIP weights": Kind(_clip_folder, _read_clip, quick=False),
    "CLIP config": Kind(_clip_config, _read_clip, quick=False),
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
    "archive zip": Kind(_archive("zip"), _read_archive),
    "archive tar": Kind(_archive("tar"), _read_archive),
    "archive tar.gz": Kind(_archive("tar.gz"), _read_archive),
}
