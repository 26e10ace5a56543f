import json

import pytest
from tests_support import write_mask, write_picture

from vlad.datamodules.custom import index_folder, index_images, index_table
from vlad.errors import DataError


def test_good_and_bad_without_masks(tmp_path):
    for i in range(2):
        write_picture(tmp_path / "OK" / f"{i}.png")
        write_picture(tmp_path / "ng" / f"{i}.jpg")
    frame = index_folder(tmp_path, class_name="gasket")
    assert dict(zip(frame["image_id"], frame["label"], strict=True)) == {
        "OK/0": 0,
        "OK/1": 0,
        "ng/0": 1,
        "ng/1": 1,
    }
    assert set(frame["class_name"]) == {"gasket"}
    assert set(frame["split"]) == {"test"}
    assert not frame["has_mask"].any()


def test_masks_pair_by_stem_not_by_order(tmp_path):
    for stem in ("1", "2", "10"):
        write_picture(tmp_path / "bad" / f"{stem}.png")
        write_mask(tmp_path / "masks" / f"{stem}_mask.png")
    write_picture(tmp_path / "good" / "1.png")
    frame = index_folder(tmp_path)
    for row in frame[frame["label"] == 1].to_dict("records"):
        assert row["mask_path"].endswith(f"/{row['image_id'].split('/')[-1]}_mask.png")
    assert frame["has_mask"].all()
    assert frame[frame["label"] == 0]["mask_path"].item() == ""


def test_mvtec_like_folder(tmp_path):
    write_picture(tmp_path / "train" / "good" / "0.png")
    for kind in ("scratch", "hole"):
        write_picture(tmp_path / "test" / kind / "0.png")
        write_mask(tmp_path / "ground_truth" / kind / "0_mask.png")
    write_picture(tmp_path / "test" / "good" / "0.png")
    frame = index_folder(tmp_path)
    rows = {row["image_id"]: row for row in frame.to_dict("records")}
    assert [rows[f"test/{k}/0"]["label"] for k in ("scratch", "hole", "good")] == [1, 1, 0]
    assert rows["test/hole/0"]["mask_path"].endswith("ground_truth/hole/0_mask.png")
    assert rows["train/good/0"]["split"] == "train"


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        index_folder(tmp_path / "none")
    with pytest.raises(DataError, match="holds no images"):
        index_folder(tmp_path)
    write_picture(tmp_path / "x" / "0.png")
    with pytest.raises(DataError, match=r"does not tell good from bad.*x/0.png.*vlad predict"):
        index_folder(tmp_path)


def test_images_for_prediction(tmp_path):
    for name in ("a/1.png", "a/b/1.png", "c.jpg", "a/masks/1.png"):
        write_picture(tmp_path / name)
    assert list(index_images(tmp_path)["image_id"]) == ["a/1", "a/b/1", "c"]
    assert (index_images(tmp_path / "c.jpg", class_name="nut")["class_name"] == "nut").all()
    both = index_images([tmp_path / "a", str(tmp_path / "*.jpg")])
    assert list(both["image_id"]) == ["1", "b/1", "c"]
    assert (both["label"] == -1).all()
    for nothing in (tmp_path / "none", str(tmp_path / "*.bmp")):
        with pytest.raises(DataError, match="nothing is there"):
            index_images(nothing)


@pytest.fixture
def images(tmp_path):
    for name in ("img/a.png", "img/b.png"):
        write_picture(tmp_path / name)
    write_mask(tmp_path / "m.png")
    return tmp_path


def test_table_defaults(images):
    (images / "t.csv").write_text("image_path,mask_path,extra\nimg/a.png,,1\nimg/b.png,m.png,2\n")
    frame = index_table(images / "t.csv")
    assert frame["label"].tolist() == [-1, 1]  # a mask means anomalous
    assert set(frame["category"]) == {"img"}
    assert set(frame["split"]) == {"test"}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_table_formats(images, suffix):
    import pandas as pd

    table = pd.DataFrame(
        {"image_path": ["img/a.png", "img/b.png"], "label": ["good", "NG"], "class": "nut", "split": "train"}
    )
    file = images / f"t.{suffix}"
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        table.to_parquet(file)
    elif suffix == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in table.to_dict("records")))
    else:
        table.to_csv(file, index=False, sep="\t" if suffix == "tsv" else ",")
    frame = index_table(file)
    assert frame["label"].tolist() == [0, 1]
    assert set(frame["category"]) == {"nut"}
    assert set(frame["split"]) == {"train"}


def test_all_problems_of_a_table_are_told_together(images):
    rows = ["image_path,label,mask_path", "img/a.png,maybe,", "img/a.png,0,", "img/b.png,1,none.png"]
    rows += [f"img/x{i}.png,0," for i in range(7)]
    (images / "t.csv").write_text("\n".join(rows))
    with pytest.raises(DataError) as error:
        index_table(images / "t.csv")
    text = str(error.value)
    assert "1 unknown labels (row 1: maybe)" in text
    assert "1 duplicate images (row 2: img/a.png)" in text
    assert "1 missing masks (row 3: none.png)" in text
    assert "7 missing images (row 4: img/x0.png;" in text
    assert "x4.png; …)" in text


def test_table_errors(images):
    with pytest.raises(DataError, match="does not exist"):
        index_table(images / "none.csv")
    (images / "t.csv").write_text("file\nx\n")
    with pytest.raises(DataError, match=r"no column image_path; it has \['file'\]"):
        index_table(images / "t.csv")
    (images / "t.xls").write_text("")
    with pytest.raises(DataError, match="use .csv"):
        index_table(images / "t.xls")
    (images / "t.jsonl").write_text("{broken")
    with pytest.raises(DataError, match="cannot be read"):
        index_table(images / "t.jsonl")


def test_table_names_images_and_classes(images):
    lines = ["image_path,image_id,class_name,category", "img/a.png,../first,hex nut,nut", "img/b.png,,,nut"]
    (images / "t.csv").write_text("\n".join(lines))
    frame = index_table(images / "t.csv")
    assert frame["image_id"].tolist() == ["first", "img/b"]
    assert frame["class_name"].tolist() == ["hex nut", "nut"]
    assert set(index_table(images / "t.csv", class_name="bolt")["class_name"]) == {"bolt"}
    (images / "t.csv").write_text("image_path,image_id\nimg/a.png,one\nimg/b.png,one\n")
    with pytest.raises(DataError, match=r"1 duplicate image ids \(row 2: one\)"):
        index_table(images / "t.csv")
