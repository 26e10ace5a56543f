"""Files that users give: images, videos, masks, tables, records, configs, archives."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from faults.kind import Kind, pixels, require
from PIL import Image, ImageOps

__all__ = ["INPUTS", "RECORD", "read_archive", "read_config", "read_image", "read_record_file"]

# -- images and masks --------------------------------------------------------------------------------------------


def _image(format_: str, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = folder / f"image.{format_.lower()}"
        Image.fromarray(pixels()).save(file, format_, **options)
        return file

    return make


def read_image(file: Path) -> None:
    """Reads an image; where it is decoded, the pixels are those that Pillow decodes."""
    from vlad.datamodules.decode import load_image

    image = load_image(str(file))
    require(image.mode == "RGB" and image.width and image.height, "no RGB image")
    try:
        with Image.open(io.BytesIO(file.read_bytes())) as theirs:
            plain = theirs.mode in {"RGB", "L"}
            expected = np.asarray(ImageOps.exif_transpose(theirs).convert("RGB"))
    except Exception:  # a TIFF that calls itself grey, and the like: read although Pillow refuses
        return
    require(not plain or np.array_equal(np.asarray(image), expected), "other pixels than Pillow decodes")


def _mask(folder: Path) -> Path:
    mask = np.zeros((36, 40), np.uint8)
    mask[8:20, 10:26] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder / "mask.png"


def _read_mask(file: Path) -> None:
    from vlad.datamodules.decode import load_mask

    mask = load_mask(str(file), (40, 36))
    require(mask.shape == (36, 40) and mask.dtype == bool, "no mask of its image's size")


def _deep(folder: Path) -> Path:
    values = pixels()[..., 0].astype(np.uint16) * 16
    Image.fromarray(values).save(folder / "deep.tiff")
    return folder / "deep.tiff"


def _read_deep(file: Path) -> None:
    from vlad.datamodules.decode import load_image

    require(load_image(str(file)).mode == "RGB", "no RGB image")


def _pages(folder: Path) -> Path:
    pages = [Image.fromarray(pixels()), Image.fromarray(255 - pixels())]
    pages[0].save(folder / "pages.tiff", save_all=True, append_images=pages[1:])
    return folder / "pages.tiff"


def _read_pages(file: Path) -> None:
    from vlad.datamodules.custom import index_images
    from vlad.datamodules.decode import load_image
    from vlad.errors import DataError

    frame = index_images(str(file)).frame
    require(0 < len(frame) < 100, f"{len(frame)} pages")
    for page in frame["frame"]:
        try:
            load_image(str(file), frame=int(page))
        except DataError as error:
            require(str(file) in str(error), f"the file is not named: {error}")


def _read_roi(file: Path) -> None:
    from vlad.datamodules.custom import index_images
    from vlad.datamodules.decode import RowCrop
    from vlad.datamodules.roi import add_regions, load_roi

    Image.fromarray(pixels()).save(file.parent / "beside.bmp")
    frame, _ = add_regions(index_images(str(file.parent / "beside.bmp")).frame, str(file), None)
    inside = load_roi(frame.to_dict("records")[0], (40, 36), RowCrop.parse(""))
    require(inside is None or inside.shape == (36, 40), "no region of its image's size")


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
    require(set(frame["label"]) <= {-1, 0, 1}, "labels")
    require(all(os.path.lexists(path) for path in frame["image_path"]), "images that are not there")


def _reference_list(folder: Path) -> Path:
    for number in range(3):
        Image.fromarray(pixels()).save(folder / f"{number}.png")
    (folder / "references.txt").write_text("0.png\n1.png\n2.png\n")
    return folder / "references.txt"


def _read_references(file: Path) -> None:
    import pandas as pd

    from vlad.datamodules.references import given_references

    wanted = pd.DataFrame({"dataset": ["a"], "category": ["b"], "class_name": ["b"]})
    given_references(str(file), None, 0, wanted)


def _meta(folder: Path) -> Path:
    for number in range(2):
        Image.fromarray(pixels()).save(folder / f"{number}.png")
    rows = [
        {"img_path": f"{number}.png", "mask_path": "", "cls_name": "nut", "specie_name": "", "anomaly": number}
        for number in range(2)
    ]
    (folder / "meta.json").write_text(json.dumps({"train": {"nut": []}, "test": {"nut": rows}}))
    return folder / "meta.json"


def _read_meta(file: Path) -> None:
    from vlad.datamodules.meta import from_meta

    require(set(from_meta(file)["label"]) <= {-1, 0, 1}, "labels")


# -- records and configs -------------------------------------------------------------------------------------------

RECORD = """
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
    (folder / "own.toml").write_text(RECORD)
    return folder / "own.toml"


def read_record_file(file: Path) -> None:
    from vlad.datamodules.catalog import get_record
    from vlad.datamodules.index import index_record

    record = get_record(str(file))
    frame = index_record(record, file.parent / "own")
    require(len(frame) < 10_000, f"{len(frame)} rows of three images")


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
    Image.fromarray(pixels()).save(folder / "photos" / "a.png")
    (folder / "config.yaml").write_text(_CONFIG)
    return folder / "config.yaml"


def read_config(file: Path) -> None:
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
    require("Traceback" not in text, f"a traceback: {text[-300:]}")
    if status:
        raise OptionError(text.strip().splitlines()[-1] if text.strip() else f"status {status} without a word")


def _video(folder: Path) -> Path:
    import cv2

    file = folder / "video.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 5, (40, 36))
    for number in range(4):
        writer.write((pixels() + 10 * number).astype(np.uint8))
    writer.release()
    return file


def _read_video(file: Path) -> None:
    from vlad.datamodules.custom import index_images
    from vlad.datamodules.decode import load_image
    from vlad.errors import DataError

    frame = index_images(str(file)).frame
    require(0 < len(frame) < 100, f"{len(frame)} frames")
    for number in frame["frame"]:
        try:
            load_image(str(file), frame=int(number))
        except DataError as error:
            require(str(file) in str(error), f"the file is not named: {error}")


# -- archives ----------------------------------------------------------------------------------------------------


def _archive(kind: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        content = {f"data/nut/{number}.bin": pixels().tobytes()[: 500 + number] for number in range(4)}
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


def read_archive(file: Path) -> None:
    from vlad.datamodules.download import unpack

    target = file.parent / "unpacked" / "here"
    shutil.rmtree(target.parent, ignore_errors=True)
    before = {path.name for path in file.parent.iterdir()}
    try:
        unpack([file], target)
    finally:
        beside = {path.name for path in file.parent.iterdir()} - before - {"unpacked"}
        require(not beside, f"something beside the folder: {beside}")
        left = {path.name for path in target.parent.iterdir()} - {"here"} if target.parent.is_dir() else set()
        require(not left, f"left: {left}")
    if file.name.endswith((".zip", ".tar.gz")):  # their members have a checksum
        for path in target.rglob("*.bin"):
            data = path.read_bytes()
            require(data == pixels().tobytes()[: len(data)] and 500 <= len(data) < 504, f"another {path.name}")


INPUTS: dict[str, Kind] = {
    "image PNG": Kind(_image("PNG"), read_image),
    "image PNG, indexed": Kind(_image("GIF"), read_image),
    "image JPEG": Kind(_image("JPEG", quality=90), read_image),
    "image TIFF": Kind(_image("TIFF", compression="tiff_lzw"), read_image),
    "image BMP": Kind(_image("BMP"), read_image),
    "image WebP": Kind(_image("WEBP", lossless=True), read_image),
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
    "record of a data set": Kind(_record, read_record_file),
    "config": Kind(_config, read_config, quick=False),
    "archive zip": Kind(_archive("zip"), read_archive),
    "archive tar": Kind(_archive("tar"), read_archive),
    "archive tar.gz": Kind(_archive("tar.gz"), read_archive),
}
