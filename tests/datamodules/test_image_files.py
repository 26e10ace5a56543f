import os
import socket

import numpy as np
import pytest
from PIL import Image

from vlad.datamodules.decode import load_image
from vlad.datamodules.image_files import IMAGE_SUFFIXES, list_files, looks_like, printable, survey
from vlad.errors import DataError


def picture(path, kind="PNG"):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(path, kind)
    return path


def test_suffixes_are_those_that_pillow_decodes():
    """What Pillow knows and is not here cannot be decoded by it alone: drawings, stubs, what it writes only."""
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    assert IMAGE_SUFFIXES - known <= {".jif", ".mpo", ".avif", ".avifs"}
    drawings = {".ps", ".eps", ".wmf", ".emf", ".bufr", ".grib", ".h5", ".hdf", ".iim", ".mpg", ".mpeg", ".ftu", ".pdf"}
    assert known - IMAGE_SUFFIXES <= drawings


def test_every_file_is_an_image_or_ignored_with_a_reason(tmp_path):
    for suffix, kind in ((".jpg", "JPEG"), (".JFIF", "JPEG"), (".gif", "GIF"), (".jp2", "JPEG2000"), ("", "PNG")):
        picture(tmp_path / f"p/x{suffix[1:]}{suffix}", kind)
    picture(tmp_path / "p/export.dat_1", "TIFF")
    picture(tmp_path / "p/.hidden/a.png")
    picture(tmp_path / "p/.DS_Store")
    (tmp_path / "p/notes.txt").write_text("x")
    (tmp_path / "p/table.csv").write_text("x")
    (tmp_path / "p/unknown.qqq").write_bytes(b"x")
    (tmp_path / "p/empty").write_bytes(b"")
    (tmp_path / "p/phone.heic").write_bytes(b"x")
    (tmp_path / "p/phone").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "p/raw.CR2").write_bytes(b"II*\0")
    picture(tmp_path / "p/clip.mp4")
    (tmp_path / "p/bad.png").write_bytes(b"x")  # its name says that it is one: reading it says the rest
    found = survey(tmp_path / "p")
    assert found.files == ["bad.png", "export.dat_1", "x", "xJFIF.JFIF", "xgif.gif", "xjp2.jp2", "xjpg.jpg"]
    reasons = {reason.partition(",")[0]: paths for reason, paths in found.ignored.items()}
    assert reasons == {
        "HEIC images": ["phone", "phone.heic"],
        "hidden": [".DS_Store", ".hidden/"],
        "not an image": ["empty", "unknown.qqq"],
        "not an image by the suffix": ["clip.mp4", "notes.txt", "table.csv"],
        "raw images of cameras": ["raw.CR2"],
    }
    assert found.repeated == []
    assert list_files(tmp_path / "p") == found.files
    assert "clip.mp4" in list_files(tmp_path / "p", IMAGE_SUFFIXES | {".mp4"})
    assert survey(tmp_path / "p", {".gif"}).files == ["export.dat_1", "x", "xgif.gif"]


def test_what_cannot_be_read_but_has_an_images_name_is_listed(tmp_path):
    """A disk that is not mounted, git-annex: the image is missed, not left out."""
    picture(tmp_path / "a.png")
    for name in ("gone.png", "gone"):
        os.symlink("/nowhere/x", tmp_path / name)
        os.mkfifo(tmp_path / f"fifo_{name}")
    os.symlink(tmp_path / "self", tmp_path / "self")
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.jpg")
    finally:
        os.chdir(here)
    found = survey(tmp_path)
    assert found.files == ["a.png", "fifo_gone.png", "gone.png", "socket.jpg"]
    assert found.ignored == {"links that lead nowhere": ["gone", "self"], "no files but FIFOs": ["fifo_gone"]}
    for file in found.files[1:]:
        with pytest.raises(DataError, match=file):
            load_image(str(tmp_path / file))


def test_a_folder_that_a_link_leads_to_is_listed_again(tmp_path):
    """Case: test/good is a link to train/good."""
    for number in range(3):
        picture(tmp_path / f"m/train/good/{number}.png")
    picture(tmp_path / "m/test/bad/0.png")
    os.symlink("../train/good", tmp_path / "m/test/good")
    os.symlink(tmp_path / "m/train/good/0.png", tmp_path / "m/test/bad/linked.png")
    found = survey(tmp_path / "m")
    assert [file for file in found.files if file.startswith("test/")] == [
        "test/bad/0.png",
        "test/bad/linked.png",
        "test/good/0.png",
        "test/good/1.png",
        "test/good/2.png",
    ]
    assert len(found.files) == 8
    assert found.repeated == ["test/good/"]
    assert not found.ignored


def test_links_in_circles_end(tmp_path):
    picture(tmp_path / "m/a/b/0.png")
    picture(tmp_path / "m/c/1.png")
    os.symlink(tmp_path / "m", tmp_path / "m/a/loop")
    os.symlink("../c", tmp_path / "m/a/c")
    os.symlink("../a", tmp_path / "m/c/a")
    found = survey(tmp_path / "m")
    assert {"a/b/0.png", "c/1.png", "a/c/1.png", "c/a/b/0.png"} == set(found.files)
    (looped,) = found.ignored.values()
    assert "a/loop/" in looped
    assert next(iter(found.ignored)) == "links to a folder that they are in"


def test_links_among_many_folders_are_not_followed_without_end(tmp_path):
    for number in range(9):
        picture(tmp_path / f"{number}/a.png")
    for one in range(9):
        for other in set(range(9)) - {one}:
            os.symlink(f"../{other}", tmp_path / f"{one}/to{other}")
    found = survey(tmp_path)
    assert {f"{number}/a.png" for number in range(9)} <= set(found.files)
    assert len(found.files) <= 9 * 16
    assert found.ignored["folders that more than 16 links lead to"]


def test_folders_that_cannot_be_listed_are_told(tmp_path, monkeypatch):
    picture(tmp_path / "closed/a.png")
    picture(tmp_path / "b.png")
    real = os.scandir

    def scandir(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    found = survey(tmp_path)
    assert found.files == ["b.png"]
    assert found.ignored == {"folders that cannot be listed (Permission denied)": ["closed/"]}
    assert survey(tmp_path / "nowhere").ignored == {"folders that cannot be listed (No such file or directory)": ["./"]}


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"two\nlines.png", "大.png".encode(), b"x" * 251 + b".png"])
def test_any_name(tmp_path, name):
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as stream:
        Image.new("L", (4, 4)).save(stream, "PNG")
    (file,) = survey(tmp_path).files
    assert os.fsencode(file) == name
    assert load_image(os.path.join(tmp_path, file)).size == (4, 4)
    assert printable(file).isprintable()
    printable(file).encode()


def test_paths_longer_than_the_system_takes(tmp_path):
    """A folder can be deeper than a path can be long; it is told, and the rest is listed."""
    here = os.getcwd()
    picture(tmp_path / "a.png")
    os.chdir(tmp_path)
    try:
        for _ in range(20):
            os.mkdir("d" * 240)
            os.chdir("d" * 240)
    finally:
        os.chdir(here)
    found = survey(tmp_path)
    assert found.files == ["a.png"]
    (reason,) = found.ignored
    assert reason == "folders that cannot be listed (File name too long)"


def test_printable():
    assert printable("Bär 大 1.png") == "Bär 大 1.png"
    assert printable("a\nb\x1b[0m\u2028.png") == "a\\nb\\x1b[0m\\u2028.png"
    assert printable("\udce9\ud800") == "\\xe9\\ud800"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "PPM", "AVIF", "QOI"])
def test_formats_by_their_first_bytes(tmp_path, kind):
    head = picture(tmp_path / "a", kind).read_bytes()[:16]
    assert looks_like(head) == kind


@pytest.mark.parametrize(
    "head", [b"", b"B", b"P", b"P5", b"BMW is a car", b"P1 is a file", b"RIFF1234AVI ", b"\0" * 16]
)
def test_what_looks_like_an_image_and_is_none(head):
    assert looks_like(head) == ""


def test_what_earlier_runs_have_drawn_is_not_taken_for_images(tmp_path):
    for name in ("a.png", "runs/sdp/run_1/heatmaps/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("run.json", "hparams.yaml"):
        (tmp_path / "runs/sdp/run_1" / name).touch()
    found = survey(tmp_path)
    assert found.files == ["a.png"]
    assert found.ignored == {"run folders of vlad": ["runs/sdp/run_1/"]}
