"""Which images a part of a run takes."""

import pytest
from trees import TREES, build, small_data

from vlad.datamodules import AnomalyDataModule
from vlad.errors import DataError


def set_up(data, *stages):
    for stage in stages:
        data.setup(stage)
    return data.frames


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
