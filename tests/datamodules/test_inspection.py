import io

import numpy as np
import pytest
from PIL import Image

from vlad.datamodules import inspection
from vlad.datamodules.decode import inspect_image, load_image
from vlad.errors import DataError

Y, X = np.mgrid[:90, :120]
PIXELS = np.stack([X * 2, Y * 2, (X * Y) % 251], -1).astype(np.uint8)
FORMATS = ["PNG", "JPEG", "TIFF", "GIF", "BMP", "PPM", "WEBP", "JPEG2000", "AVIF", "TGA", "PCX", "QOI", "SGI"]
SUFFIXES = {"TGA": ".tga", "PCX": ".pcx", "SGI": ".sgi"}


def encoded(kind, **options):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_files_that_are_cut_off_are_found(tmp_path, kind):
    """And none is called bad that can be read."""
    file = tmp_path / f"a{SUFFIXES.get(kind, '.png')}"
    data = encoded(kind)
    file.write_bytes(data)
    assert inspect_image(str(file)) == ((120, 90), 1, "")
    for share in (0, 0.02, 0.1, 0.5, 0.9):
        file.write_bytes(data[: int(len(data) * share)])
        problem = inspect_image(str(file)).problem
        try:
            load_image(str(file))
        except DataError:
            assert problem, share
            assert str(file) not in problem
        else:
            assert not problem, share


@pytest.mark.parametrize("kind", FORMATS[:7])
def test_usual_files_are_not_decoded(tmp_path, kind, monkeypatch):
    file = tmp_path / "a"
    file.write_bytes(encoded(kind))
    monkeypatch.setattr(inspection, "load_image", None)
    assert inspect_image(str(file)) == ((120, 90), 1, "")
    assert inspect_image("elsewhere", content=file.read_bytes()) == ((120, 90), 1, "")


def test_jpegs_with_previews_trailers_and_scans(tmp_path):
    """The end of a preview in the metadata is not the end of the image."""
    exif = Image.Exif()
    exif[0x927C] = encoded("JPEG", quality=20)[:4000]
    data = encoded("JPEG", exif=exif, progressive=True)
    file = tmp_path / "a.jpg"
    for content, good in (
        (data, True),
        (data + b"camera's own" * 50, True),
        (data[:-2], None),
        (data[: data.rindex(b"\xff\xda") + 30], False),
    ):
        file.write_bytes(content)
        problem = inspect_image(str(file)).problem
        try:
            load_image(str(file))
        except DataError:
            assert problem
            assert good is not True
        else:
            assert not problem
            assert good is not False


def test_png_checksums(tmp_path):
    data = bytearray(encoded("PNG"))
    data[len(data) // 2] ^= 255
    (tmp_path / "a.png").write_bytes(bytes(data))
    assert bool(inspect_image(str(tmp_path / "a.png")).problem) == (not _reads(tmp_path / "a.png"))


def _reads(file):
    try:
        return bool(load_image(str(file)))
    except DataError:
        return False


def test_a_page_that_is_cut_off_behind_a_whole_one(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(PIXELS[:50])])
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(data[:-5000])
    assert inspect_image(str(tmp_path / "a.tif"), frame=1) == ((120, 50), 2, "")
    assert not inspect_image(str(tmp_path / "b.tif"), frame=0).problem
    with pytest.raises(DataError):
        load_image(str(tmp_path / "b.tif"), frame=1)
    assert inspect_image(str(tmp_path / "b.tif"), frame=1).problem


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"<html>", b"GIF89a", b"II*\0\xff\xff\xff\xff", b"II*\0", b"BM"])
def test_what_is_no_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    facts = inspect_image(str(tmp_path / "a.png"))
    assert facts.problem.startswith("cannot read image (")
    assert "\n" not in facts.problem


def test_many_damaged_files_agree_with_reading(tmp_path):
    """Bytes overwritten anywhere: nothing that can be read is called bad, and nothing crashes."""
    rng, file = np.random.default_rng(0), tmp_path / "a.png"
    for kind in FORMATS[:7]:
        for _ in range(25):
            data = bytearray(encoded(kind))
            for place in rng.integers(0, min(200, len(data)), 4):
                data[place] = int(rng.integers(0, 256))
            file.write_bytes(bytes(data))
            if inspect_image(str(file)).problem:
                assert not _reads(file), kind
