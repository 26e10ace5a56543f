import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tests_support import write_mvtec, write_picture

from vlad.datamodules.catalog import get_record
from vlad.datamodules.check import check_index
from vlad.datamodules.folder import read_folder
from vlad.datamodules.index import index_record


@pytest.fixture
def root(tmp_path):
    return write_mvtec(tmp_path / "mvtec_ad", ("bottle",))


def report(root, **more):
    return check_index(index_record(get_record("mvtec_ad"), root), get_record("mvtec_ad"), **more)


def kinds(found):
    return {finding.kind.split(",")[0].split(":")[0]: finding for finding in found.findings}


def test_counts_and_what_is_missing(root):
    found = report(root)
    assert not found.sound
    assert found.counts == [
        {"category": "bottle", "split": "test", "normal": 3, "anomalous": 3, "unknown": 0, "masks": 3},
        {"category": "bottle", "split": "train", "normal": 3, "anomalous": 0, "unknown": 0, "masks": 0},
    ]
    assert kinds(found)["categories that are missing"].count == 14
    assert kinds(found)["counts that differ from the official ones"].examples == [
        "bottle train normal: 3 here, 209 officially",
        "bottle test normal: 3 here, 20 officially",
        "bottle test anomalous: 3 here, 63 officially",
    ]


def test_files_that_are_wrong(root):
    bad, truth = root / "bottle/test/broken", root / "bottle/ground_truth/broken"
    (bad / "000.png").write_bytes(b"")
    Image.new("L", (7, 7), 255).save(truth / "001_mask.png")
    Image.new("L", (40, 36)).save(truth / "002_mask.png")
    found = kinds(report(root))
    assert "000.png (the file is empty)" in found["unreadable images"].examples[0]
    assert "is 7x7 pixels, its image 40x36" in found["unreadable masks"].examples[0]
    assert found["masks without an anomalous pixel"].examples == [str(truth / "002_mask.png")]
    (truth / "000_mask.png").unlink()
    assert kinds(report(root))["anomalous images without a mask"].examples == [str(bad / "000.png")]


def test_masks_that_are_not_black_and_white_are_noted(root):
    mask = np.zeros((36, 40), np.uint8)
    mask[:9] = np.arange(9)[:, None]
    Image.fromarray(mask).save(root / "bottle/ground_truth/broken/000_mask.png")
    (finding,) = [f for f in report(root).findings if f.kind.startswith("masks with values")]
    assert not finding.serious
    assert finding.examples[0].endswith("000_mask.png (9 values)")


def test_duplicates(root, tmp_path):
    good = root / "bottle/test/good/000.png"
    shutil.copy(good, root / "bottle/test/good/copy.png")
    assert not kinds(report(root))["the same image several times"].serious
    shutil.copy(good, root / "bottle/train/good/leak.png")
    assert kinds(report(root))["the same image in different splits"].serious
    shutil.copy(good, root / "bottle/test/broken/wrong.png")
    assert kinds(report(root))["the same image with different labels"].serious
    (tmp_path / "br/no").mkdir(parents=True)
    write_picture(tmp_path / "br/yes/y.png", seed=123)
    shutil.copy(root / "bottle/train/good/001.png", tmp_path / "br/no/x.png")
    other = index_record(get_record("br35h"), tmp_path / "br")
    assert kinds(report(root, others=[other]))["images that another data set has too"].count == 1


def test_what_each_folder_was_taken_for(root):
    taken = report(root).taken
    assert [(one.folder, one.category, one.split, one.label, one.images, one.masks) for one in taken] == [
        ("test/broken", "bottle", "test", "anomalous", 3, 3),
        ("test/good", "bottle", "test", "normal", 3, 0),
        ("train/good", "bottle", "train", "normal", 3, 0),
    ]
    assert (taken[0].example, taken[0].mask) == ("000.png", "ground_truth/broken/000_mask.png")


def test_sound_only_where_nothing_was_left_out(root):
    def checked():
        folder = read_folder(root / "bottle")
        return check_index(folder.frame, notes=folder.notes, ignored=folder.ignored)

    (root / "bottle/readme.txt").write_text("")
    (root / "bottle/.hidden").write_text("")
    found = checked()
    assert found.sound
    assert {finding.kind for finding in found.findings} == {
        "no images: hidden",
        "no images: not an image by the suffix",
    }
    (root / "bottle/test/good/9.heic").write_bytes(b"")
    found = checked()
    assert (found.sound, found.left_out) == (False, 1)
    assert not any(finding.serious for finding in found.findings)
    (root / "bottle/test/good/9.heic").unlink()
    write_picture(root / "bottle/train/unsorted/0.png", seed=99)
    assert kinds(checked())["images cannot be told good from bad"].serious


def test_turned_images_pages_and_links_to_nowhere(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    good = root / "bottle/test/good"
    Image.new("RGB", (40, 36), "red").save(good / "turned.jpg", exif=exif)
    Image.new("L", (8, 8)).save(good / "pages.tif", save_all=True, append_images=[Image.new("L", (8, 8), 9)])
    (good / "gone.png").symlink_to("/nowhere/gone.png")
    found = kinds(report(root))
    assert found["images are turned as their EXIF data say"].examples == [str(good / "turned.jpg")]
    assert found["images of several pages"].examples == [str(good / "pages.tif")]
    assert "gone.png" in found["unreadable images"].examples[0]


def test_fifos_are_not_waited_for(tmp_path):
    write_picture(tmp_path / "good/0.png")
    write_picture(tmp_path / "bad/0.png", seed=1)
    for name in ("good/1.png", "bad/1.png"):
        os.mkfifo(tmp_path / name)
    found = check_index(read_folder(tmp_path).frame)
    assert not found.sound
    assert sum(finding.count for finding in found.findings if finding.kind == "unreadable images") == 2
