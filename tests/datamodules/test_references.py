"""Few-shot references: drawn from a train split, held out of a test split, or given."""

import shutil

import pytest
from tests_support import write_mvtec, write_picture
from trees import small_data

from vlad.errors import DataError


def references(data, stage="test"):
    """Sets a data module up; returns category → ids of its references."""
    data.setup(stage)
    return {category: list(group["image_id"]) for category, group in data.frames["references"].groupby("category")}


@pytest.fixture
def six(mvtec):
    """A data root with two categories of six normal training images each."""
    write_mvtec(mvtec / "mvtec_ad", ("bottle", "cable"), count=6)
    return mvtec


# -- from the train split --------------------------------------------------------------------------------------


def test_references_are_seeded_and_nested_and_independent_of_other_categories(six):
    def drawn(shots=2, seed=0, categories=("bottle", "cable")):
        data = small_data(six, test="mvtec_ad", shots=shots, seed=seed, categories=list(categories))
        found = references(data)
        frame = data.frames["references"]
        assert ((frame["split"] == "train") & (frame["label"] == 0)).all()
        assert set(data.frames["test"]["category"]) == set(categories)
        assert all(len(set(ids)) == shots for ids in found.values())
        return found

    assert drawn() == drawn()
    assert drawn(categories=["bottle"])["bottle"] == drawn()["bottle"]
    assert any(drawn(seed=seed)["bottle"] != drawn()["bottle"] for seed in range(1, 6))
    one, two, four = (set(drawn(shots)["cable"]) for shots in (1, 2, 4))
    assert one < two < four


def test_reference_batches_and_records(six):
    data = small_data(six, test="mvtec_ad", shots=2, categories=["cable"], batch_size=8)
    (ids,) = references(data).values()
    (batch,) = data.reference_dataloader()
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["image_id"] == ids
    assert not {"mask", "label", "has_mask"} & set(batch)
    records = data.reference_records()
    assert list(records.columns) == ["dataset", "category", "image_id", "path", "sha256"]
    assert records["path"].tolist() == batch["path"]
    shutil.copy(batch["path"][1], batch["path"][0])
    assert data.reference_records()["sha256"].nunique() == 1 < records["sha256"].nunique()


def test_no_references_where_none_were_asked_for(six):
    for options in ({}, {"shots": 0}):
        data = small_data(six, test="mvtec_ad", **options)
        data.setup("test")
        assert data.reference_dataloader() is None


@pytest.mark.parametrize("shots", [-1, 1.5, True])
def test_numbers_of_shots_that_make_no_sense(shots):
    with pytest.raises(DataError, match=f"data.shots is a number of reference images per category, .* not {shots}"):
        small_data(test="mvtec_ad", shots=shots)


def test_more_shots_than_images(six):
    message = r"mvtec_ad/bottle has 6 normal training images, data.shots asks for 999"
    with pytest.raises(DataError, match=message):
        small_data(six, test="mvtec_ad", shots=999).setup("test")


def test_a_reference_that_is_tested_is_refused(six):
    root = six / "mvtec_ad/cable"
    for file in sorted((root / "train/good").iterdir()):
        shutil.copy(file, root / "test/good" / f"again_{file.name}")
    data = small_data(six, test="mvtec_ad", shots=1, categories=["cable"])
    with pytest.raises(DataError, match=r"1 images are in data.references and in data.test .*again_"):
        data.setup("test")
    given = small_data(six, test="mvtec_ad", categories=["cable"], references=str(root / "test/good"))
    with pytest.raises(DataError, match=r"12 images are in data.references and in data.test"):
        given.setup("test")


def test_validation_after_training_has_references(six):
    """Training needs none; and what is validated next draws its own, as what is tested after it does."""
    train = {"name": "mvtec_ad", "split": "train", "categories": ["bottle"]}
    val = {"name": "mvtec_ad", "split": "test", "categories": ["cable"]}
    test = {"name": "mvtec_ad", "categories": ["bottle"]}
    data = small_data(six, "one-class", train=train, val=val, test=test, shots=1)
    data.setup("fit")
    assert data.reference_dataloader() is None
    for stage, category in (("validate", "cable"), ("test", "bottle"), ("validate", "cable")):
        assert set(references(data, stage)) == {category}


def test_references_may_come_from_what_training_validates_on(six):
    train, test = ({"name": "mvtec_ad", "categories": [category]} for category in ("bottle", "cable"))
    val = {"name": "mvtec_ad", "split": "train", "categories": ["cable"]}
    data = small_data(six, "auxiliary", train=train, val=val, test=test, shots=1)
    data.setup("fit")
    data.setup("test")
    with pytest.raises(DataError, match="1 images are in data.references and in data.val"):
        data.setup("validate")


# -- held out of a test split ----------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """Own images without a train split: eleven normal ones, two anomalous."""
    for number in range(11):
        write_picture(tmp_path / f"own/good/{number:02}.png", seed=number)
    for number in range(2):
        write_picture(tmp_path / f"own/bad/{number:02}.png", seed=100 + number)
    return tmp_path / "own"


@pytest.mark.parametrize("seed", range(4))
def test_without_a_train_split_every_k_is_tested_on_the_same_rest(own, seed):
    rests, drawn = [], []
    for shots in (0, 1, 4, 8):
        data = small_data(test=str(own), shots=shots, seed=seed)
        data.setup("test")
        drawn.append(set(data.frames["references"]["image_id"]))
        rests.append(data.frames["test"]["image_id"].tolist())
    assert [len(some) for some in drawn] == [0, 1, 4, 8]
    assert drawn[1] < drawn[2] < drawn[3]
    assert rests[0] == rests[1] == rests[2] == rests[3]
    assert sorted([*rests[0], *drawn[3]]) == sorted([f"good/{n:02}" for n in range(11)] + ["bad/00", "bad/01"])
    with pytest.raises(DataError, match="8 normal test images per category are held out, data.shots asks for 9"):
        small_data(test=str(own), shots=9).setup("test")


def test_only_categories_without_normal_training_images_hold_some_out(own):
    lines = ["image_path,label,category,split"] + [f"good/{n:02}.png,0,without,test" for n in range(9)]
    lines += ["good/09.png,0,with,train", "good/10.png,0,with,test", "bad/00.png,1,with,test"]
    (own / "t.csv").write_text("\n".join(lines))
    data = small_data(test=str(own / "t.csv"), shots=1)
    told = "t: no normal training images; 8 test images are held out as references"
    with pytest.warns(UserWarning, match=told):
        found = references(data)
    assert found["with"] == ["good/09"]
    assert len(found["without"]) == 1
    assert data.frames["test"]["category"].value_counts().to_dict() == {"with": 2, "without": 1}


def test_a_category_with_too_few_normal_images_to_hold_out(own):
    for file in sorted((own / "good").iterdir())[7:]:
        file.unlink()
    with pytest.raises(DataError, match=r"own/own has no normal training images and 7 normal test images, of which"):
        small_data(test=str(own), shots=1).setup("test")
    lines = ["image_path,label,category"] + [f"good/{n:02}.png,0,some" for n in range(7)]
    lines += [f"bad/{n:02}.png,1,none" for n in range(2)]
    (own / "t.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="t/none has no normal training images and 0 normal test images"):
        small_data(test={"name": "table", "root": str(own / "t.csv"), "categories": ["none"]}, shots=1).setup("test")


def test_copies_of_what_is_held_out_are_not_tested(own):
    for number in range(11):
        shutil.copy(own / f"good/{number:02}.png", own / f"good/{number:02}_again.png")
    data = small_data(test=str(own), shots=8)
    data.setup("test")
    drawn = {name[:7] for name in data.frames["references"]["image_id"]}
    assert not drawn & {name[:7] for name in data.frames["test"]["image_id"]}


def test_other_parts_of_a_file_are_still_tested(tmp_path):
    write_picture(tmp_path / "a.png")
    rows = [f"a.png,{int(number > 9)},{number}/12" for number in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["image_path,label,row_crop", *rows]))
    data = small_data(test=str(tmp_path / "t.csv"), shots=8)
    data.setup("test")
    assert len(data.frames["test"]) == 4
    assert data.frames["test"]["label"].tolist() == [0, 0, 1, 1]


# -- given -----------------------------------------------------------------------------------------------------


@pytest.fixture
def given(tmp_path):
    """Reference images in a folder per category, and a list of each kind."""
    for number, name in enumerate(("bottle/a", "bottle/b", "bottle/c", "metal_nut/a")):
        write_picture(tmp_path / f"references/{name}.png", seed=500 + number)
    (tmp_path / "bottle.txt").write_text("references/bottle/a.png\n\nreferences/bottle/b.png\n")
    (tmp_path / "both.csv").write_text(
        "image_path,category\nreferences/bottle/a.png,bottle\nreferences/metal_nut/a.png,metal_nut\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("place", "categories", "expected"),
    [
        ("references/bottle", ["bottle"], {"bottle": ["a", "b", "c"]}),
        ("references", None, {"bottle": ["a", "b", "c"], "metal_nut": ["a"]}),
        ("bottle.txt", ["bottle"], {"bottle": ["a", "b"]}),
        ("both.csv", None, {"bottle": ["a"], "metal_nut": ["a"]}),
        ("both.csv", ["metal_nut"], {"metal_nut": ["a"]}),
        ("references/bottle/c.png", ["bottle"], {"bottle": ["c"]}),
    ],
)
def test_given_references(mvtec, given, place, categories, expected):
    data = small_data(mvtec, test="mvtec_ad", categories=categories, references=str(given / place))
    assert references(data) == expected
    assert len(data.frames["test"]) == 6 * len(expected)
    frame = data.frames["references"]
    assert set(frame["dataset"]) == {"mvtec_ad"}
    assert (frame["class_name"] == frame["category"]).all()


def test_references_of_two_data_sets_in_one_table(tmp_path):
    """Categories of one name: the one data set has normal training images, the other has not."""
    lines = ["image_path,label,category,split,dataset", "a/x.png,0,part,train,first", "a/y.png,1,part,test,first"]
    lines += [f"b/{number}.png,{int(number == 9)},part,test,second" for number in range(10)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    for number, line in enumerate(lines[1:]):
        write_picture(tmp_path / line.partition(",")[0], seed=number)
    data = small_data(test=str(tmp_path / "t.csv"), shots=1)
    with pytest.warns(UserWarning, match="^second: no normal training images; 8 test images"):
        data.setup("test")
    assert data.frames["references"]["dataset"].tolist() == ["first", "second"]
    assert data.frames["test"]["dataset"].tolist() == ["first", "second", "second"]


def test_a_reference_given_twice_counts_once(mvtec, given):
    twice = [str(given / "references/bottle"), str(given / "references/bottle/a.png")]
    data = small_data(mvtec, test="mvtec_ad", categories=["bottle"], references=twice)
    assert references(data)["bottle"] == ["a", "b", "c"]


def test_anomalies_are_no_references(mvtec, given):
    """A folder that holds normal and anomalous images, and such a folder of one category."""
    write_picture(given / "mixed/good/0.png", seed=700)
    write_picture(given / "mixed/bad/1.png", seed=701)
    message = (
        r"references are normal images, and 1 .*first: .*mixed/bad/1\.png\); give the folder .*alone: .*mixed/good$"
    )
    with pytest.raises(DataError, match=message):
        small_data(mvtec, test="mvtec_ad", categories=["bottle"], references=str(given / "mixed")).setup("test")
    write_picture(given / "references/metal_nut/defect/1.png", seed=702)
    with pytest.raises(DataError, match=r"and 1 of data.references are in folders of anomalies .* alone$"):
        small_data(mvtec, test="mvtec_ad", references=str(given / "references")).setup("test")


def test_some_of_the_given_references_are_drawn(mvtec, given):
    options = {"test": "mvtec_ad", "categories": ["bottle"], "references": [str(given / "references/bottle")]}
    drawn = references(small_data(mvtec, **options, shots=2))["bottle"]
    assert len(set(drawn)) == 2
    with pytest.raises(DataError, match="mvtec_ad/bottle has 3 given references, data.shots asks for 4"):
        small_data(mvtec, **options, shots=4).setup("test")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "references/bottle",
            r"does not name the category of .*bottle/a\.png, and 2 categories are scored: put each category's in",
        ),
        ("bottle.txt", r"does not name the category of .*bottle/a\.png, and 2 categories are scored: put each"),
        ("short.csv", r"has no images of mvtec_ad/metal_nut: put each category's into a folder of its name, or name"),
        ("none.csv", r"none\.csv does not exist"),
        ("none.txt", r"list of references .*none\.txt does not exist"),
        ("none", "nothing is there"),
        ("empty.txt", r"empty\.txt names no images"),
        ("wrong.csv", r"wrong\.csv has no column image_path; it has \['what'\]"),
    ],
)
def test_given_references_that_cannot_be_used(mvtec, given, place, message):
    (given / "short.csv").write_text("image_path,category\nreferences/bottle/a.png,bottle\n")
    (given / "wrong.csv").write_text("what\nreferences/bottle/a.png\n")
    (given / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=message):
        small_data(mvtec, test="mvtec_ad", references=str(given / place)).setup("test")


def test_prediction_with_references(mvtec, given):
    data = small_data(predict=str(mvtec / "mvtec_ad/bottle/test"), references=str(given / "references/bottle"))
    data.setup("predict")
    assert len(data.frames["predict"]) == 6
    (batch,) = data.reference_dataloader()
    (scored,) = data.predict_dataloader()
    assert {*zip(batch["dataset"], batch["category"], strict=True)} == {
        *zip(scored["dataset"], scored["category"], strict=True)
    }
    same = small_data(predict=str(given / "references"), references=str(given / "references/bottle"))
    with pytest.raises(DataError, match="3 images are in data.references and in data.predict"):
        same.setup("predict")


def test_shots_draw_from_a_data_set_alone(mvtec):
    with pytest.raises(DataError, match="data.shots draws from a data set; for your own images give --references"):
        small_data(predict=str(mvtec / "mvtec_ad/bottle/test"), shots=1).setup("predict")
