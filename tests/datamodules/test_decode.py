import io
import os
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from vlad.datamodules.decode import (
    Reading,
    RowCrop,
    image_size,
    inspect_image,
    load_image,
    load_mask,
    page_count,
    read_bytes,
)
from vlad.errors import DataError, OptionError

PIXELS = np.random.default_rng(0).integers(0, 255, (12, 10, 3), np.uint8)


def malformed_tiff(path, pixels, *, order="<", strips=3):
    """Writes a TIFF of three samples that calls itself grey, in several strips, as CVC-ClinicDB's are."""
    rows, columns, _ = pixels.shape
    data = pixels.tobytes()
    size = -(-rows // strips) * columns * 3
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    tags = [(256, 3, [columns]), (257, 3, [rows]), (258, 3, [8, 8, 8]), (259, 3, [1]), (262, 3, [1]), (273, 4, None)]
    tags += [(277, 3, [3]), (278, 3, [-(-rows // strips)]), (279, 4, [len(part) for part in parts])]
    at = 8 + 2 + 12 * len(tags) + 4
    extra = b""
    offsets_at = at
    at += 4 * len(parts)
    starts = []
    lengths_at = at
    at += 4 * len(parts)
    bits_at = at
    at += 6
    for part in parts:
        starts.append(at)
        at += len(part)
    directory = struct.pack(order + "H", len(tags))
    for tag, kind, values in tags:
        if tag == 273:
            entry = struct.pack(order + "HHII", tag, kind, len(parts), offsets_at)
        elif tag == 279:
            entry = struct.pack(order + "HHII", tag, kind, len(parts), lengths_at)
        elif tag == 258:
            entry = struct.pack(order + "HHII", tag, kind, 3, bits_at)
        else:
            entry = struct.pack(order + "HHIHH", tag, kind, 1, values[0], 0)
        directory += entry
    directory += struct.pack(order + "I", 0)
    extra = struct.pack(f"{order}{len(parts)}I", *starts)
    extra += struct.pack(f"{order}{len(parts)}I", *[len(part) for part in parts]) + struct.pack(order + "3H", 8, 8, 8)
    path.write_bytes(header + directory + extra + b"".join(parts))


@pytest.mark.parametrize("order", ["<", ">"])
def test_malformed_tiff_in_true_colour_and_as_published(tmp_path, order):
    file = tmp_path / "1.tif"
    malformed_tiff(file, PIXELS, order=order)
    with pytest.raises(Exception, match="identify"):
        Image.open(file)
    assert np.array_equal(np.asarray(load_image(str(file))), PIXELS)
    red = np.asarray(load_image(str(file), reader="red"))
    assert np.array_equal(red, np.repeat(PIXELS[..., :1], 3, axis=2))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"1\.tif \(image file is truncated"):
        load_image(str(file))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "LA", "CMYK"])
def test_modes_and_lying_suffixes(tmp_path, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    file = tmp_path / "image.jpg"
    image.save(file, format="TIFF" if mode == "CMYK" else "PNG")
    read = load_image(str(file))
    assert (read.mode, read.size) == ("RGB", (10, 12))
    assert np.array_equal(np.asarray(read), np.asarray(image.convert("RGB")))


def test_row_crops_cover_the_image(tmp_path):
    Image.fromarray(PIXELS[:11]).save(tmp_path / "a.png")
    Image.fromarray(PIXELS[:11, :, 0]).save(tmp_path / "m.png")
    row_crops = [RowCrop(k, 3) for k in range(3)]
    assert [row_crop.rows(11) for row_crop in row_crops] == [(0, 3), (3, 7), (7, 11)]
    images = [np.asarray(load_image(str(tmp_path / "a.png"), crop=row_crop)) for row_crop in row_crops]
    assert np.array_equal(np.concatenate(images), PIXELS[:11])
    mask = load_mask(str(tmp_path / "m.png"), (10, 4), threshold=99, crop=row_crops[1])
    assert np.array_equal(mask, PIXELS[3:7, :, 0] > 99)


def test_large_jpeg_near_its_target_size(tmp_path):
    y, x = np.mgrid[:900, :1200]
    smooth = np.stack([x / 5, y / 4, (x + y) / 9], -1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "big.jpg", quality=95)
    full, near = load_image(str(tmp_path / "big.jpg")), load_image(str(tmp_path / "big.jpg"), near=224)
    assert (full.size, near.size) == ((1200, 900), (600, 450))
    small = [np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), float) for image in (full, near)]
    assert np.abs(small[0] - small[1]).mean() < 1


SEEN = np.zeros((48, 64, 3), np.uint8)
SEEN[:16, :16], SEEN[32:, 40:] = [250, 20, 20], [20, 250, 20]
# How to store what is to be seen, by EXIF orientation: the inverse of the turn.
STORED = {
    1: SEEN,
    2: SEEN[:, ::-1],
    3: SEEN[::-1, ::-1],
    4: SEEN[::-1],
    5: SEEN.transpose(1, 0, 2),
    6: np.rot90(SEEN, 1),
    7: np.rot90(SEEN, 2).transpose(1, 0, 2),
    8: np.rot90(SEEN, -1),
}


def oriented(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_images_and_masks_are_turned_as_a_viewer_shows_them(tmp_path, kind, number):
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    file = str(tmp_path / f"photo.{kind}")
    Image.fromarray(np.ascontiguousarray(STORED[number])).save(file, kind, exif=oriented(number), **options)
    read = np.asarray(load_image(file)).astype(int)
    assert read.shape == SEEN.shape
    assert np.abs(read - SEEN).mean() < (3 if kind == "JPEG" else 0.01)
    assert image_size(file) == inspect_image(file).size == (64, 48)
    red = (SEEN[..., 0] > 200).astype(np.uint8) * 255
    turned = (STORED[number][..., 0] > 200).astype(np.uint8) * 255
    mask = str(tmp_path / f"mask.{kind}")
    Image.fromarray(np.ascontiguousarray(turned)).save(mask, kind, exif=oriented(number), **options)
    assert (load_mask(mask, (64, 48)) == (red > 0)).mean() > 0.99


def test_an_orientation_behind_the_pixels_and_a_damaged_one(tmp_path):
    """ExifTool may write a PNG's metadata at its end; and metadata that cannot be read do not spoil an image."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(STORED[6])).save(stream, "PNG", exif=oriented(6))
    data = stream.getvalue()
    at = data.index(b"eXIf") - 4
    length = int.from_bytes(data[at : at + 4], "big") + 12
    (tmp_path / "late.png").write_bytes(data[:at] + data[at + length : -12] + data[at : at + length] + data[-12:])
    assert image_size(str(tmp_path / "late.png")) == load_image(str(tmp_path / "late.png")).size == (64, 48)
    Image.fromarray(SEEN).save(tmp_path / "odd.jpg", exif=b"Exif\0\0" + b"II*\0\xff\xff\xff\x7f")
    assert image_size(str(tmp_path / "odd.jpg")) == load_image(str(tmp_path / "odd.jpg")).size == (64, 48)


def test_a_row_crop_is_one_of_the_turned_image(tmp_path):
    Image.fromarray(np.ascontiguousarray(STORED[6])).save(tmp_path / "a.png", exif=oriented(6))
    read = np.asarray(load_image(str(tmp_path / "a.png"), crop=RowCrop(0, 3)))
    assert np.array_equal(read, SEEN[:16])


def test_bytes_in_place_of_the_file(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    content = read_bytes(tmp_path / "a.png")
    assert content == (tmp_path / "a.png").read_bytes()
    for name in ("a.png", "gone.png"):
        read = load_image(str(tmp_path / name), content=content)
        assert np.array_equal(np.asarray(read), PIXELS)
        assert image_size(str(tmp_path / name), content=content) == (10, 12)
        assert page_count(tmp_path / name, content) == 1
    with pytest.raises(DataError, match="a.png .the file is empty."):
        load_image(str(tmp_path / "a.png"), content=b"")


def test_alpha_is_dropped_and_colours_below_it_are_seen(tmp_path):
    alpha = np.zeros((12, 10, 1), np.uint8)
    alpha[:6] = 128
    for name, part in {"some.png": alpha, "all.png": alpha * 0}.items():
        Image.fromarray(np.concatenate([PIXELS, part], axis=2)).save(tmp_path / name)
        assert np.array_equal(np.asarray(load_image(str(tmp_path / name))), PIXELS)


def test_cmyk_as_it_is_and_inverted_as_adobe_writes_it(tmp_path):
    ink = Image.new("CMYK", (32, 32), (0, 200, 200, 0))  # red
    ink.save(tmp_path / "a.tif")
    ink.save(tmp_path / "a.jpg", quality=95)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    for name in ("a.tif", "a.jpg"):
        assert np.abs(np.asarray(load_image(str(tmp_path / name))).astype(int) - [255, 55, 55]).max() < 5


@pytest.mark.parametrize("suffix", [".jpg", ".jfif", ".gif", ".jp2", ".avif", ".tga", ".ppm", ".dib", ".ico", ".webp"])
def test_formats_by_suffix_and_by_content(tmp_path, suffix):
    """Formats with a mark of their own are read under any name."""
    Image.init()
    if suffix not in Image.EXTENSION:
        pytest.skip(f"this Pillow knows no {suffix}")
    file = tmp_path / f"a{suffix}"
    Image.new("RGB", (32, 32), (90, 120, 150)).save(file)
    assert np.abs(np.asarray(load_image(str(file))).astype(int) - [90, 120, 150]).max() < 6
    assert inspect_image(str(file)) == ((32, 32), 1, "")
    if suffix not in {".tga", ".dib", ".ico"}:
        file.rename(tmp_path / "no_suffix")
        assert load_image(str(tmp_path / "no_suffix")).size == (32, 32)


def test_drawings_are_no_images_and_heic_is_named(tmp_path):
    """EPS would start Ghostscript."""
    Image.fromarray(PIXELS).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png \(no known image format\)"):
        load_image(str(tmp_path / "a.png"))
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    with pytest.raises(DataError, match=r"phone\.jpg \(no format that is read: HEIC; convert it"):
        load_image(str(tmp_path / "phone.jpg"))


def test_a_limit_of_pixels_by_the_header(tmp_path, monkeypatch):
    """Neither is Pillow's limit asked, nor is it changed: other threads of a program have theirs."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", compression="tiff_lzw")
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "m.tif")
    for name in ("a.png", "a.tif"):
        file = str(tmp_path / name)
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(lambda _, file=file: load_image(file, crop=RowCrop(0, 1)), range(20)))
        assert all(np.array_equal(np.asarray(image), PIXELS) for image in read)
        assert load_image(file, crop=RowCrop(0, 2)).size == (10, 6)
        small = Reading(max_pixels=119)
        with pytest.raises(DataError, match=r"10x12 are 120 pixels, above .* 119\); .* --data.max_pixels 120"):
            load_image(file, reading=small)
        assert "--data.max_pixels 120" in inspect_image(file, reading=small).problem
        with pytest.raises(DataError, match=r"--data.max_pixels 120"):
            load_mask(file, reading=small)
        assert load_image(file, reading=Reading(max_pixels=120)).size == (10, 12)
    assert load_mask(str(tmp_path / "m.tif")).shape == (12, 10)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_readings_that_cannot_be():
    for given in ((1.0, 1.0), (5.0, 2.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(OptionError, match="intensity_range"):
            Reading(intensity_range=given)
    with pytest.raises(OptionError, match="max_pixels"):
        Reading(max_pixels=0)


def test_what_is_no_regular_file_is_refused_unread(tmp_path):
    """A FIFO that nobody writes to would be waited for."""
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    here = os.getcwd()
    os.chdir(tmp_path)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.png")
    finally:
        os.chdir(here)
    os.symlink("/dev/zero", tmp_path / "device.png")
    os.symlink("/nowhere/a.png", tmp_path / "link.png")
    os.symlink(tmp_path / "self.png", tmp_path / "self.png")
    begun = time.monotonic()
    expected = {
        "fifo.png": "a FIFO, no file",
        "folder.png": "a folder, no file",
        "socket.png": "a socket, no file",
        "device.png": "a device, no file",
        "link.png": "is a link to /nowhere/a.png, which does not exist",
        "self.png": "symbolic link",
    }
    for name, text in expected.items():
        file = str(tmp_path / name)
        for read in (read_bytes, load_image, lambda file: load_image(file, frame=0), image_size, page_count):
            with pytest.raises(DataError, match=rf"{name}.*{text}"):
                read(file)
        assert text in inspect_image(file).problem
        if name != "folder.png":
            with pytest.raises(DataError, match=rf"mask .*{name}.*{text}"):
                load_mask(file)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "name", [b"caf\xe9.png", b"two\nlines\x1b[31m.png", "Bär 大.png".encode(), b"x" * 251 + b".png"]
)
def test_any_name_is_read_and_can_be_printed(tmp_path, name):
    file = os.path.join(os.fsencode(tmp_path), name)
    with open(file, "wb") as stream:
        Image.fromarray(PIXELS).save(stream, "PNG")
    path = os.fsdecode(file)
    assert np.array_equal(np.asarray(load_image(path)), PIXELS)
    assert load_mask(path).shape == (12, 10)
    with open(file, "wb") as stream:
        stream.write(b"nothing")
    for read in (load_image, load_mask, page_count):
        with pytest.raises(DataError) as error:
            read(path)
        text = str(error.value)
        assert text.isprintable()
        text.encode("utf-8")
    assert inspect_image(path).problem.isprintable()
