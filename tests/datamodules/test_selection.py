"""Which images a part of a run takes, and that no image is in two of them."""

import shutil

import pytest
from tests_support import write_mvtec, write_picture
from trees import TREES, build, small_data

from vlad.datamodules import AnomalyDataModule
from vlad.datamodules.selection import find_overlap
from vlad.errors import DataError


def set_up(data, *stages):
    for stage in stages:
        data.setup(stage)
    return data.frames


# -- splits ----------------------------------------------------------------------------------------------------


def test_what_training_takes_follows_from_the_supervision(mvtec):
    auxiliary = set_up(small_data(mvtec, "auxiliary", train="mvtec_ad"), "fit")["train"]
    assert set(auxiliary["split"]) == {"test"}
    assert set(auxiliary["label"]) == {0, 1}
    one_class = set_up(small_data(mvtec, "one-class", train="mvtec_ad"), "fit")["train"]
    assert set(one_class["split"]) == {"train"}
    assert set(one_class["label"]) == {0}


def test_a_one_class_method_leaves_anomalies_out_and_says_so(tmp_path):
    build(tmp_path, TREES["ksdd2"][0])
    data = small_data(tmp_path, "one-class", train="ksdd2")
    with pytest.warns(UserWarning, match=r"1 images of data.train are not normal and are left out .*10001\.png"):
        data.setup("fit")
    assert data.frames["train"]["image_id"].tolist() == ["train/10000"]
    bad = small_data(tmp_path, "one-class", train={"name": "ksdd2", "split": "train"}, test="ksdd2")
    (tmp_path / "train/10000.png").unlink()
    with pytest.raises(DataError, match="the images of data.train are all not normal"):
        bad.setup("fit")


@pytest.mark.parametrize("supervision", [None, "auxiliary"])
def test_a_method_that_does_not_learn_takes_no_training_data(mvtec, supervision):
    data = small_data(mvtec, supervision, train="mvtec_ad")
    if supervision is None:
        with pytest.raises(DataError, match=r"data.train is given and the method has nothing to train; run vlad test"):
            data.setup("fit")
    else:
        data.setup("fit")


def test_data_module_that_was_not_told_what_the_method_requires(mvtec):
    data = AnomalyDataModule(root=str(mvtec), train="mvtec_ad", test="mvtec_ad")
    message = r"call datamodule.require\(method.requirements\) first"
    with pytest.raises(DataError, match=message):
        data.setup("fit")
    data = AnomalyDataModule(root=str(mvtec), test="mvtec_ad")
    data.setup("test")
    with pytest.raises(DataError, match=message):
        data.test_dataloader()


def test_another_method_learns_from_other_images(mvtec):
    data = small_data(mvtec, "auxiliary", train="mvtec_ad")
    assert set(set_up(data, "fit")["train"]["split"]) == {"test"}
    one_class = small_data(mvtec, "one-class").requirements
    assert set(set_up(data.require(one_class), "fit")["train"]["split"]) == {"train"}


def test_validation_takes_the_validation_split(tmp_path):
    for name in ("mvtec_loco", "mvtec_ad_2"):
        build(tmp_path / name, TREES[name][0])
        frames = set_up(small_data(tmp_path, val=name, test=name), "validate", "test")
        assert frames["val"]["split"].tolist() == ["val"]
        assert set(frames["test"]["split"]) == {"test"}


@pytest.mark.parametrize(("stage", "train"), [("validate", None), ("fit", "mvtec_ad")])
def test_validation_data_without_a_validation_split(mvtec, stage, train):
    data = small_data(mvtec, "auxiliary", train=train, val="mvtec_ad")
    with pytest.raises(DataError, match=r"no images in its val split \(it has: test 12, train 6\); say which split"):
        data.setup(stage)
    named = small_data(mvtec, "auxiliary", val={"name": "mvtec_ad", "split": "train"})
    assert set(set_up(named, "validate")["val"]["split"]) == {"train"}


# -- overlaps --------------------------------------------------------------------------------------------------


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
    with pytest.raises(DataError, match=message):
        set_up(small_data(leaking, "auxiliary", **options), *stages)
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
