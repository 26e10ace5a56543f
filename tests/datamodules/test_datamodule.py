import pytest
import torch
from tests_support import write_mask, write_mvtec, write_picture
from trees import small_data

from vlad.datamodules import AnomalyDataModule, Source
from vlad.errors import DataError


def test_training_takes_the_test_split(mvtec):
    data = small_data(mvtec, "auxiliary", train="mvtec_ad", batch_size=4)
    data.setup("fit")
    assert set(data.frames) == {"train"}
    assert set(data.frames["train"]["split"]) == {"test"}
    batches = list(data.train_dataloader())
    assert sum(len(b["image"]) for b in batches) == 12
    assert data.val_dataloader() == []


def test_several_sets_folders_and_tables_together(mvtec, tmp_path):
    write_picture(tmp_path / "parts" / "good" / "0.png")
    write_picture(tmp_path / "parts" / "bad" / "0.png")
    (tmp_path / "t.csv").write_text("image_path,label\nparts/good/0.png,good\n")
    sources = [
        Source("mvtec_ad", categories=["bottle"], class_names={"bottle": "glass bottle"}),
        str(tmp_path / "parts"),
        {"name": "table", "root": str(tmp_path / "t.csv")},
    ]
    data = small_data(mvtec, test=sources)
    data.setup("test")
    frame = data.frames["test"]
    assert list(frame["dataset"].unique()) == ["mvtec_ad", "parts", "t"]
    assert set(frame[frame["dataset"] == "mvtec_ad"]["class_name"]) == {"glass bottle"}
    indices = [i for batch in data.test_dataloader() for i in batch["index"].tolist()]
    assert indices == list(range(len(frame)))


def test_tables_and_images_are_predicted_together(mvtec, tmp_path):
    (tmp_path / "t.csv").write_text("image_path,category\nmvtec_ad/bottle/test/good/000.png,bottle\n")
    data = small_data(predict=[str(tmp_path / "t.csv"), str(mvtec / "mvtec_ad/bottle/test/broken")])
    data.setup("predict")
    assert data.frames["predict"]["category"].tolist() == ["bottle", "object", "object", "object"]
    assert len(next(iter(data.predict_dataloader()))["image"]) == 4


def test_natural_words(mvtec):
    data = small_data(mvtec, test="mvtec_ad", class_name_style="natural")
    data.setup("test")
    assert "metal nut" in set(data.frames["test"]["class_name"])


def test_root_may_be_the_set_itself(mvtec):
    data = small_data(mvtec / "mvtec_ad", test="mvtec_ad")
    data.setup("test")
    assert len(data.frames["test"]) == 12


@pytest.mark.parametrize(
    ("options", "stage", "message"),
    [
        (
            {"test": "mvtec_ad", "categories": ["botle"]},
            "test",
            "mvtec_ad has no category 'botle'; did you mean bottle",
        ),
        (
            {"test": {"name": "mvtec_ad", "split": "val"}},
            "test",
            "no images in its val split .it has: test 12, train 6.; set split",
        ),
        ({}, "test", "data.test is not set"),
        ({}, "fit", "data.train is not set"),
        ({}, "predict", "nothing to predict"),
        ({"test": {"name": "visa", "categorys": []}}, "test", "has no field 'categorys'; did you mean categories"),
        ({"test": {"root": "somewhere"}}, "test", "needs a name"),
        ({"test": "visa_ad"}, "test", "no data set is named 'visa_ad'; did you mean visa"),
        ({"test": "./nowhere/at_all"}, "test", "data folder ./nowhere/at_all does not exist"),
        ({"test": "visa"}, "test", "VisA: .* is in none of the known layouts"),
    ],
)
def test_errors(mvtec, options, stage, message):
    with pytest.raises(DataError, match=message):
        small_data(mvtec, **options).setup(stage)


def test_empty_category_is_refused(mvtec):
    for folder in ("good", "broken"):
        for file in (mvtec / "mvtec_ad" / "bottle" / "test" / folder).iterdir():
            file.unlink()
    with pytest.raises(DataError, match="mvtec_ad/bottle has no images in its test split"):
        small_data(mvtec, test="mvtec_ad", categories=["bottle"]).setup("test")


def test_root_is_asked_for_and_read_from_the_environment(mvtec, monkeypatch):
    monkeypatch.delenv("VLAD_DATA", raising=False)
    with pytest.raises(DataError, match=r"where is MVTec AD\? Give data.root"):
        AnomalyDataModule(test="mvtec_ad").setup("test")
    monkeypatch.setenv("VLAD_DATA", str(mvtec))
    AnomalyDataModule(test="mvtec_ad").setup("test")


def test_some_images_per_category_are_repeated_to_the_same_number_of_steps(mvtec):
    write_mvtec(mvtec / "mvtec_ad", ("bottle", "cable"), count=6)

    def ids(count, seed=0):
        data = small_data(
            mvtec, "auxiliary", train="mvtec_ad", categories=["bottle", "cable"], images_per_category=count, seed=seed
        )
        data.setup("fit")
        frame = data.frames["train"]
        assert len(frame) == 24
        assert len(data.train_dataloader()) == 3
        counts = frame.groupby(["category", "image_id"]).size()
        assert counts.max() - counts.min() <= 1
        return {category: set(group["image_id"]) for category, group in frame.groupby("category")}

    assert {len(found) for found in ids(None).values()} == {12}
    assert {len(found) for found in ids(2).values()} == {2}
    assert {len(found) for found in ids(0.25).values()} == {3}
    assert ids(2)["bottle"] < ids(4)["bottle"]  # fewer are a part of more
    assert any(ids(2, seed)["bottle"] != ids(2)["bottle"] for seed in range(1, 6))
    with pytest.raises(DataError, match="mvtec_ad/bottle has 12 training images, data.images_per_category asks for 13"):
        ids(13)
    for wrong in (0, -1, 1.5, 0.0):
        with pytest.raises(DataError, match=r"is a number of images \(4\), or a share"):
            ids(wrong)


def test_unlabelled_images_are_not_trained_on(tmp_path):
    for name in ("a", "b", "c"):
        write_picture(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("image_path,label\na.png,good\nb.png,bad\nc.png,\n")
    data = small_data(supervision="auxiliary", train=str(tmp_path / "t.csv"))
    with pytest.warns(UserWarning, match=r"1 images of data.train are not labelled and are left out .*c\.png"):
        data.setup("fit")
    assert data.frames["train"]["label"].tolist() == [0, 1]


def test_mosaic_is_for_one_source_in_training_alone(mvtec):
    sources = [
        {"name": "mvtec_ad", "categories": ["bottle"], "mosaic": 1.0},
        {"name": "mvtec_ad", "categories": ["metal_nut"]},
    ]
    data = small_data(mvtec, "auxiliary", train=sources, test=sources)
    data.setup("fit")
    assert data.frames["train"].groupby("category")["mosaic"].unique().map(list).to_dict() == {
        "bottle": [1.0],
        "metal_nut": [0.0],
    }
    data.allow_overlap = True
    data.setup("test")
    assert "mosaic" not in data.frames["test"]
    assert next(iter(data.train_dataloader()))["image"].shape == (8, 3, 32, 32)


def test_augmentation_changes_image_and_mask_alike(mvtec):
    flip = [{"name": "HorizontalFlip", "p": 1.0}]
    plain, flipped = (
        small_data(mvtec, "auxiliary", train="mvtec_ad"),
        small_data(mvtec, "auxiliary", train="mvtec_ad", augment=flip),
    )
    for data in (plain, flipped):
        data.setup("fit")
    a, b = plain.dataset("train")[0], flipped.dataset("train")[0]
    assert a["mask"].any()
    assert torch.equal(b["mask"], a["mask"].flip(-1))
    torch.testing.assert_close(b["image"], a["image"].flip(-1), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"name": "HorizontalFlop"}, "no transform 'HorizontalFlop'; did you mean HorizontalFlip"),
        ({"name": "Resize"}, "data.augment: Resize"),
    ],
)
def test_wrong_augmentation(mvtec, step, message):
    data = small_data(mvtec, "auxiliary", train="mvtec_ad", augment=[step])
    data.setup("fit")
    with pytest.raises(DataError, match=message):
        data.train_dataloader()


def test_an_error_in_a_worker_keeps_its_sentence(mvtec):
    from vlad.cli.messages import one_line

    data = small_data(mvtec, test="mvtec_ad", num_workers=1)
    data.setup("test")  # what is wrong by now is told here; later changes where they are read
    write_mask(mvtec / "mvtec_ad" / "bottle" / "ground_truth" / "broken" / "000_mask.png", size=(7, 7))
    with pytest.raises(DataError) as error:
        list(data.test_dataloader())
    assert one_line(error.value).startswith("mask ")
    assert "000_mask.png is 7x7 pixels, its image 40x36" in one_line(error.value)
    assert "Traceback" not in one_line(error.value)


def test_split_protocol_names_what_is_trained_and_tested(mvtec):
    data = AnomalyDataModule(split_protocol="april_gan")
    assert data.sources == {"train": ["mvtec_ad"], "val": None, "test": ["visa"]}
    data = AnomalyDataModule(split_protocol="april_gan", test="mvtec_ad")
    assert data.sources["test"] == "mvtec_ad"
    with pytest.raises(DataError, match="no protocol is named 'aprilgan'; did you mean april_gan"):
        AnomalyDataModule(split_protocol="aprilgan")


def test_rendered_set_needs_no_root():
    data = small_data(test="synthetic", categories=["mucosa"])
    data.setup("test")
    frame = data.frames["test"]
    assert frame["label"].value_counts().to_dict() == {0: 24, 1: 24}
    dataset = data.dataset("test")
    assert [bool(dataset[row]["mask"].any()) for row in (0, 47)] == [False, True]
