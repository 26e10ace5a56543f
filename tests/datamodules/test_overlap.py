"""No image is in two parts of a run; data sets that are known to share images are warned of."""

import shutil
from pathlib import Path

import pytest
from tests_support import write_mvtec, write_picture
from trees import TREES, build, small_data

from vlad.datamodules import overlap
from vlad.datamodules.overlap import file_digest, find_overlap
from vlad.errors import DataError


def set_up(data, *stages):
    for stage in stages:
        data.setup(stage)
    return data.frames


@pytest.fixture
def leaking(tmp_path):
    """Two data sets of which one image is the same, under another name."""
    write_mvtec(tmp_path / "mvtec_ad", ("bottle",))
    for place, seed in (("good/a.png", 71), ("bad/b.png", 72)):
        write_picture(tmp_path / "own" / place, seed=seed)
    shutil.copy(tmp_path / "mvtec_ad/bottle/test/good/001.png", tmp_path / "own/good/copied.png")
    return tmp_path


@pytest.mark.parametrize(
    ("parts", "stages", "named"),
    [
        ({"train": "mvtec_ad", "test": "own"}, ["test"], ("train", "test")),
        ({"train": "mvtec_ad", "test": "own"}, ["fit", "test"], ("train", "test")),
        ({"train": "mvtec_ad", "val": "own"}, ["fit"], ("train", "val")),
        ({"train": "mvtec_ad", "val": "own"}, ["validate"], ("train", "val")),
        ({"val": "mvtec_ad", "test": "own"}, ["validate", "test"], ("val", "test")),
    ],
)
def test_an_image_in_two_parts_is_refused(leaking, parts, stages, named):
    def source(part):
        name = parts[part]
        return {"name": "folder", "root": str(leaking / "own"), "split": "test"} if name == "own" else name

    options = {part: source(part) for part in parts}
    if parts.get("val") == "mvtec_ad":
        options["val"] = {"name": "mvtec_ad", "split": "test"}
    message = (
        rf"1 images are in data.{named[0]} and in data.{named[1]} "
        r"\(first: .*good/001\.png and .*own/good/copied\.png\).*take them out, or give --allow-overlap"
    )
    data = small_data(leaking, "auxiliary", **options)
    for _ in range(2):  # a second try is refused too
        with pytest.raises(DataError, match=message):
            set_up(data, *stages)
    with pytest.warns(UserWarning, match=rf"1 images are in data.{named[0]} and in data.{named[1]} .*copied\.png"):
        set_up(small_data(leaking, "auxiliary", **options, allow_overlap=True), *stages)


def test_files_of_one_size_are_not_taken_for_the_same(tmp_path):
    write_mvtec(tmp_path / "mvtec_ad", ("bottle",))
    original = tmp_path / "mvtec_ad/bottle/test/good/001.png"
    content = bytearray(original.read_bytes())
    content[-1] ^= 1  # of the checksum of the last chunk: same length, other bytes
    other = tmp_path / "own/good/other.png"
    other.parent.mkdir(parents=True)
    other.write_bytes(content)
    write_picture(tmp_path / "own/bad/b.png", seed=72)
    assert other.stat().st_size == original.stat().st_size
    set_up(small_data(tmp_path, "auxiliary", train="mvtec_ad", test=str(tmp_path / "own")), "fit", "test")


def test_little_is_read_to_compare_files_of_one_size(tmp_path, monkeypatch):
    """Files without compression are all of one size; of those, only what has a like middle is read whole."""
    for number in range(6):
        write_picture(tmp_path / f"own/{'good' if number % 2 else 'bad'}/{number}.bmp", (96, 96), seed=number)
    for number in range(3):
        write_picture(tmp_path / f"other/{'good' if number % 2 else 'bad'}/{number}.bmp", (96, 96), seed=10 + number)
    shutil.copy(tmp_path / "own/good/3.bmp", tmp_path / "other/good/again.bmp")
    read = []
    monkeypatch.setattr(overlap, "file_digest", lambda path: (read.append(path), file_digest(path))[1])
    data = small_data(supervision="auxiliary", train=str(tmp_path / "own"), test=str(tmp_path / "other"))
    with pytest.raises(DataError, match=r"1 images are in data.train and in data.test .*3\.bmp and .*again\.bmp"):
        data.setup("test")
    assert sorted(Path(path).name for path in read) == ["3.bmp", "again.bmp"]


def test_other_categories_of_one_set_do_not_overlap(mvtec):
    train = [{"name": "mvtec_ad", "categories": ["bottle"]}]
    test = [{"name": "mvtec_ad", "categories": ["metal_nut"]}]
    set_up(small_data(mvtec, "auxiliary", train=train, test=test), "test")


def test_parts_of_one_file_are_told_apart(tmp_path):
    """KSDD: the thirds of an image are images of their own, and share its file."""
    build(tmp_path, TREES["ksdd"][0])
    frame = set_up(small_data(tmp_path, test={"name": "ksdd", "split": "all"}), "test")["test"]
    first, rest = frame[frame["row_crop"] == "0/3"], frame[frame["row_crop"] != "0/3"]
    assert len(find_overlap(frame, first)) == len(first) == 2
    assert find_overlap(first, rest) == []


def test_data_sets_known_to_share_images_are_warned_of(tmp_path):
    for number, place in enumerate(("br35h/yes/a.png", "br35h/no/b.png", "brain_mri/yes/a.png", "brain_mri/no/b.png")):
        write_picture(tmp_path / place, seed=number)
    data = small_data(tmp_path, "auxiliary", train="brain_mri", test="br35h")
    with pytest.warns(UserWarning, match="test on br35h, train on brain_mri: .*201 of the 228 different images"):
        data.setup("test")


def test_training_data_that_is_elsewhere_does_not_keep_one_from_testing(mvtec):
    """A run's configuration names what was trained on; it need not be on the machine that tests."""
    data = small_data(mvtec, "auxiliary", train={"name": "visa", "root": str(mvtec / "none")}, test="mvtec_ad")
    with pytest.warns(UserWarning, match=r"data.train is not compared with what is scored: VisA: folder .*none does"):
        data.setup("test")
    assert len(data.frames["test"]) == 12
