import json

import pandas as pd
import pytest
from tests_support import write_mask, write_mvtec, write_picture

from vlad.datamodules.catalog import get_record, list_datasets, read_record
from vlad.datamodules.index import COLUMNS, finish, index_record, list_files
from vlad.errors import DataError


def index(name, root, **more):
    return index_record(get_record(name), root, **more)


def counts(frame):
    return {key: int(value) for key, value in frame.groupby(["category", "split", "label"]).size().items()}


@pytest.mark.parametrize("name", list_datasets())
def test_records_are_complete(name):
    record = get_record(name)
    assert record.name == name
    assert record.layouts
    assert record.rendered or record.url.startswith("https://")
    assert record.steps
    assert record.licence
    assert all(natural == natural.strip() for natural in record.categories.values())
    json.dumps([record.categories, record.expected])


def test_unknown_record():
    with pytest.raises(DataError, match="no data set is named 'mvtecad'; did you mean mvtec_ad"):
        get_record("mvtecad")


def test_mvtec(tmp_path):
    root = write_mvtec(tmp_path / "m")
    write_picture(root / "bottle" / "test" / "broken" / "010.png")
    write_mask(root / "bottle" / "ground_truth" / "broken" / "010_mask.png")
    frame = index("mvtec_ad", root)
    assert tuple(frame.columns) == COLUMNS
    assert counts(frame) == {
        ("bottle", "test", 0): 3,
        ("bottle", "test", 1): 4,
        ("bottle", "train", 0): 3,
        ("metal_nut", "test", 0): 3,
        ("metal_nut", "test", 1): 3,
        ("metal_nut", "train", 0): 3,
    }
    bad = frame[frame["label"] == 1]
    assert all(
        i.split("/")[-1][:3] == m.split("/")[-1][:3] for i, m in zip(bad["image_path"], bad["mask_path"], strict=True)
    )
    assert frame["has_mask"].all()
    assert (frame["class_name"] == frame["category"]).all()
    assert list(frame["category"].unique()) == ["bottle", "metal_nut"]
    assert frame["image_id"].iloc[0] == "test/broken/000"


def test_mvtec_mask_that_is_missing_leaves_the_pixels_unknown(tmp_path):
    root = write_mvtec(tmp_path / "m", ("bottle",))
    (root / "bottle" / "ground_truth" / "broken" / "001_mask.png").unlink()
    frame = index("mvtec_ad", root)
    row = frame[frame["image_path"].str.endswith("broken/001.png")].iloc[0]
    assert (row["label"], row["mask_path"], bool(row["has_mask"])) == (1, "", False)


def test_class_names(tmp_path):
    root = write_mvtec(tmp_path / "m")
    frame = index("mvtec_ad", root, class_names={"metal_nut": "metal nut"})
    assert set(frame["class_name"]) == {"bottle", "metal nut"}


@pytest.fixture
def visa(tmp_path):
    lines = ["object,split,label,image,mask"]
    for i in range(2):
        for split in ("train", "test"):
            image = f"candle/Data/Images/Normal/{split}{i}.JPG"
            write_picture(tmp_path / image, seed=i)
            lines.append(f"candle,{split},normal,{image},")
        image, mask = f"candle/Data/Images/Anomaly/{i:03}.JPG", f"candle/Data/Masks/Anomaly/{i:03}.png"
        write_picture(tmp_path / image, seed=9 + i)
        write_mask(tmp_path / mask, value=3)  # a class id
        lines.append(f"candle,test,anomaly,{image},{mask}")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text("\n".join(lines))
    return tmp_path


def test_visa_csv(visa):
    frame = index("visa", visa)
    assert counts(frame) == {("candle", "test", 0): 2, ("candle", "test", 1): 2, ("candle", "train", 0): 2}
    assert frame["has_mask"].all()


def test_visa_csv_that_lacks_a_column(visa):
    (visa / "split_csv" / "1cls.csv").write_text("object,split,image\n")
    with pytest.raises(DataError, match=r"lacks the columns \['label', 'mask'\]"):
        index("visa", visa)


def test_headct(tmp_path):
    for i in range(4):
        write_picture(tmp_path / "head_ct" / "head_ct" / f"{i:03}.png", seed=i, mode="RGBA" if i else "L")
    (tmp_path / "labels.csv").write_text("id, hemorrhage\n0,1\n1,1\n2,0\n3,0\n")  # the header has a space
    frame = index("headct", tmp_path)
    assert frame["label"].tolist() == [1, 1, 0, 0]
    assert not frame["has_mask"].any()
    assert set(frame["category"]) == {"headct"}


@pytest.mark.parametrize("base", ["", "brain_tumor_dataset/"])
def test_brain_mri_is_counted_once(tmp_path, base):
    bases = {base, "brain_tumor_dataset/"} if base == "" else {base}
    for b in bases:  # the archive holds everything twice
        write_picture(tmp_path / b / "yes" / "Y1.jpg", seed=1)
        write_picture(tmp_path / b / "yes" / "Y2.JPG", seed=2)
        write_picture(tmp_path / b / "no" / "1 no.jpeg", seed=3)
    assert counts(index("brain_mri", tmp_path)) == {("brain_mri", "test", 0): 1, ("brain_mri", "test", 1): 2}


def test_missing_folder_and_unknown_layout_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"MVTec AD: folder .*nowhere does not exist.*mvtec.com"):
        index("mvtec_ad", tmp_path / "nowhere")
    write_picture(tmp_path / "loose.png")
    with pytest.raises(
        DataError, match=r"none of the known layouts \(meta.json .*; official: <category>/<split>.*unpack it"
    ):
        index("mvtec_ad", tmp_path)


def test_same_stem_twice_gets_different_names(tmp_path):
    write_picture(tmp_path / "bottle" / "test" / "good" / "a.png")
    write_picture(tmp_path / "bottle" / "test" / "good" / "a.jpg")
    assert sorted(index("mvtec_ad", tmp_path)["image_id"]) == ["test/good/a.jpg", "test/good/a.png"]


def test_files_are_listed_in_order_and_hidden_ones_are_not(tmp_path):
    for name in ("b.PNG", "a.tif", ".hidden.png", ".git/x.png", "notes.txt", "sub/c.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list_files(tmp_path) == ["a.tif", "b.PNG", "sub/c.bmp"]


def test_index_survives_a_csv_round_trip(tmp_path):
    frame = index("mvtec_ad", write_mvtec(tmp_path / "m"))
    frame.to_csv(tmp_path / "i.csv", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "i.csv", keep_default_na=False), frame, check_dtype=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("levels =", "shares = {}\nlevels ="), "'shares' is called 'overlaps' now; rename it"),
        (("image =", "bands = 3\nimage ="), "'bands' in a layout is called 'row_crops' now"),
        (("defect_type>", "species>"), "'species' in layout 'ours' is called 'defect_type' now"),
        (("image =", 'label = "species"\nimage ='), "'species' in layout 'ours' is called 'defect_type' now"),
        (
            ("image =", 'columns = {species = "kind"}\nimage ='),
            "'species' in layout 'ours' is called 'defect_type' now",
        ),
        (("image =", 'label = "has_masks"\nimage ='), "in a layout: label 'has_masks'; did you mean has_mask"),
        (("image =", "masc = []\nimage ="), "unknown key 'masc' in a layout; did you mean masks"),
    ],
)
def test_records_with_old_or_unknown_keys(change, message):
    text = (
        'name = "bolts"\ntitle = "Bolts"\ndomain = "industrial"\nlevels = ["image"]\nfolders = ["bolts"]\n'
        '[categories]\nbolt = "bolt"\n[[layouts]]\nname = "ours"\n'
        "image = '(?P<defect_type>[^/]+)/(?P<stem>[^/]+)'\n"
    )
    assert read_record(text, "bolts.toml").name == "bolts"
    with pytest.raises(DataError, match=f"bolts.toml: .*{message}"):
        read_record(text.replace(*change), "bolts.toml")


def test_ids_are_unique_whatever_the_paths():
    row = {"dataset": "d", "category": "c", "class_name": "c", "split": "test", "label": 0, "defect_type": ""}
    row |= {"image_path": "", "mask_path": "", "has_mask": False, "mask_threshold": 0}
    paths = ["c/a.png", "a.png", "../a.png", "../c/a.png", "a.jpg", "/a.png"]
    ids = finish([{**row, "relative": path} for path in paths])["image_id"].tolist()
    assert len(set(ids)) == len(ids)
    assert not any(".." in name or name.startswith("/") for name in ids)
