"""Some hundreds of damaged inputs: a named file or row, never another crash, nothing written outside the target."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tests_support import write_mvtec, write_picture

from vlad.cli import main
from vlad.datamodules.catalog import get_record
from vlad.datamodules.check import check_index
from vlad.datamodules.custom import index_folder, index_images, index_table
from vlad.datamodules.decode import load_image, load_mask
from vlad.datamodules.index import index_record
from vlad.errors import DataError, VladError

RNG = np.random.default_rng(0)
FORMATS = ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM"]


def encoded(kind):
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (40, 36, 3), np.uint8)).save(stream, kind)
    return stream.getvalue()


def damaged(data, seed):
    """Truncates, empties, overwrites or flips some bytes."""
    rng = np.random.default_rng(seed)
    kind = seed % 4
    if kind == 0:
        return data[: int(rng.integers(0, len(data)))]
    data = bytearray(data)
    if kind == 1:
        for place in rng.integers(0, len(data), 8):
            data[place] = int(rng.integers(0, 256))
    elif kind == 2:
        for place in rng.integers(0, min(64, len(data)), 4):
            data[place] ^= 1 << int(rng.integers(0, 8))
    else:
        start = int(rng.integers(0, len(data)))
        data[start : start + 20] = rng.bytes(20)
    return bytes(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_images_are_read_or_named(kind, tmp_path):
    file, refused = tmp_path / "image.png", 0
    for seed in range(60):
        file.write_bytes(damaged(encoded(kind), seed))
        for read in (
            lambda: load_image(str(file)),
            lambda: load_mask(str(file)),
            lambda: load_image(str(file), near=8),
        ):
            try:
                read()
            except DataError as error:
                refused += 1
                assert str(file) in str(error)  # noqa: PT017 - reading may succeed as well
                assert "\n" not in str(error)  # noqa: PT017
    assert refused > 20


def test_huge_dimensions_in_the_header(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    file = tmp_path / "bomb.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)))
    with pytest.raises(DataError, match=r"bomb\.png"):
        load_image(str(file))
    with pytest.raises(DataError, match=r"bomb\.png"):
        load_mask(str(file))


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"<html>not found</html>", b"GIF89a", b"II*\0\xff\xff\xff\xff", b"II*\0"]
)
def test_files_that_are_no_images(content, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read image .*a\.jpg"):
        load_image(str(tmp_path / "a.jpg"))


TABLES = [
    "",
    "image_path",
    "path,label\na.png,0",
    "image_path,label\na.png,maybe",
    "image_path,label\nmissing.png,0",
    "image_path,label\na.png,0\na.png,1",
    "image_path,label\n,0",
    'image_path,label\n"a.png,0',
    "image_path,label\na.png,0,1,2,3\na.png",
    "image_path,label,mask_path\na.png,1,nowhere.png",
    "image_path\n../../../etc/passwd",
    "image_path\n" + "x" * 5000,
    "\x00\x01\x02",
    "image_path,label\na.png,1e400",
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("text", TABLES)
def test_broken_tables(text, suffix, tmp_path):
    write_picture(tmp_path / "a.png")
    file = tmp_path / f"table{suffix}"
    file.write_bytes(text.encode())
    try:
        frame = index_table(file)
    except DataError as error:
        assert str(file) in str(error)  # noqa: PT017
    else:
        assert frame["image_path"].map(os.path.isfile).all()


def test_broken_tables_of_random_bytes(tmp_path):
    write_picture(tmp_path / "a.png")
    good = b"image_path,label,mask_path,split\na.png,0,,train\n"
    for seed in range(80):
        for suffix in (".csv", ".jsonl"):
            file = tmp_path / f"table{suffix}"
            file.write_bytes(damaged(good, seed))
            try:
                index_table(file)
            except DataError as error:
                assert str(file) in str(error)  # noqa: PT017


METAS = [
    "", "[]", "{}", "null", '{"train": []}', '{"train": {"a": [1]}}', '{"test": {"a": [{"img_path": 3}]}}',
    '{"sometimes": {"a": [{"img_path": "a.png", "anomaly": 0}]}}', '{"test": {"a": [{"img_path": "a.png"}]}}',
    '{"test": {"a": [{"img_path": "../a.png", "anomaly": 0}]}}',
    '{"test": {"a": [{"img_path": "gone.png", "anomaly": 1}]}}',
    '{"test": {"a": [{"img_path": "a.png", "anomaly": "x"}]}}', "[" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("text", METAS)
def test_broken_meta_json(text, tmp_path):
    write_picture(tmp_path / "m" / "a.png")
    (tmp_path / "m" / "meta.json").write_text(text)
    with pytest.raises(DataError, match="meta.json|none of the known layouts"):
        index_record(get_record("mvtec_ad"), tmp_path / "m")


def test_broken_lists_of_records(tmp_path):
    write_mvtec(tmp_path / "v")
    for text in ("object,split,label\na,b,c", "object,split,label,image,mask\na,b", "\xff\xfe"):
        (tmp_path / "v/split_csv").mkdir(exist_ok=True)
        (tmp_path / "v/split_csv/1cls.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(DataError, match="1cls.csv"):
            index_record(get_record("visa"), tmp_path / "v")
    (tmp_path / "h/head_ct").mkdir(parents=True)
    write_picture(tmp_path / "h/head_ct/000.png")
    for text in ("id,hemorrhage\n0,yes", "nr,x\n0,1", "id,hemorrhage\n0"):
        (tmp_path / "h/labels.csv").write_text(text)
        with pytest.raises(DataError, match="labels.csv"):
            index_record(get_record("headct"), tmp_path / "h")


def test_links_in_circles_and_to_nowhere(tmp_path):
    root = write_mvtec(tmp_path / "m", ("bottle",))
    clean = len(index_record(get_record("mvtec_ad"), root))
    os.symlink(root, root / "bottle" / "loop")
    os.symlink(root / "gone", root / "bottle" / "test" / "gone")
    os.symlink(root / "gone.png", root / "bottle" / "test" / "good" / "gone.png")
    frame = index_record(get_record("mvtec_ad"), root)
    assert len(frame) == clean + 1  # the link to nowhere is a row that fails where it is read, by its name
    assert len(index_images(str(root / "bottle" / "test")).frame) == 7
    with pytest.warns(UserWarning, match="links to a folder that they are in"):
        assert len(index_folder(root / "bottle")) == 10


def test_check_reports_every_damaged_file_and_goes_on(tmp_path):
    root = write_mvtec(tmp_path / "m", ("bottle",))
    for seed, file in enumerate(sorted(root.rglob("*.png"))):
        file.write_bytes(damaged(encoded("PNG"), 4 * seed))
    report = check_index(index_record(get_record("mvtec_ad"), root))
    texts = " ".join(finding.kind for finding in report.findings)
    assert "unreadable images" in texts
    assert "unreadable masks" in texts
    json.dumps(report.as_json())


def test_commands_say_one_line_and_leave_no_partial_file(tmp_path, capsys):
    write_picture(tmp_path / "in/good/a.png")
    (tmp_path / "in/good/b.png").write_bytes(b"")
    cases = [
        ["data", "check", "mvtec", str(tmp_path)],
        ["data", "check", "mvtec_ad", str(tmp_path / "nowhere")],
        ["data", "check", str(tmp_path / "no.toml"), str(tmp_path)],
        ["data", "index", str(tmp_path / "nowhere"), "-o", str(tmp_path / "out.csv")],
        ["data", "index", str(tmp_path / "in"), "-o", str(tmp_path / "out.xls")],
        ["data", "get", "mvtec", "--root", str(tmp_path)],
        ["data", "get", "btad", "--root", str(tmp_path)],
        ["data", "info", "bottle"],
    ]
    for case in cases:
        assert main(case) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("vlad data: ")
        assert "\n" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


HEAD = 'name="x"\ntitle="x"\ndomain="industrial"\nlevels=[]\nfolders=[]\n[categories]\na="a"\n'
RECORDS = ['name = "x"', "name = ", 'name = "x"\nlayuots = []', HEAD, HEAD + '[[layouts]]\nname="l"\nimage="("\n']


@pytest.mark.parametrize("text", RECORDS)
def test_broken_records(text, tmp_path):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(VladError, match=r"own\.toml"):
        get_record(str(tmp_path / "own.toml"))
