import json
import os

import pytest
from PIL import Image
from tests_support import write_mask, write_picture

from vlad.datamodules.custom import index_images, index_table
from vlad.datamodules.sources import Locations
from vlad.errors import DataError


def test_images_for_prediction(tmp_path):
    for name in ("a/1.png", "a/b/1.png", "c.jpg", "a/masks/1.png"):
        write_picture(tmp_path / name)
    found = index_images(tmp_path)
    assert list(found.frame["image_id"]) == ["a/1", "a/b/1", "c"]
    assert found.ignored == {"in a folder of masks": [str(tmp_path / "a/masks/1.png")]}
    assert (index_images(tmp_path / "c.jpg", class_name="nut").frame["class_name"] == "nut").all()
    both = index_images([tmp_path / "a", str(tmp_path / "*.jpg")]).frame
    assert list(both["image_id"]) == ["1", "b/1", "c"]
    assert (both["label"] == -1).all()
    for nothing in (tmp_path / "none", str(tmp_path / "*.bmp")):
        with pytest.raises(DataError, match="nothing is there"):
            index_images(nothing)


def test_every_file_is_a_row_or_ignored_with_a_reason(tmp_path):
    write_picture(tmp_path / "p/0.png")
    write_mask(tmp_path / "p/0_mask.png")
    write_picture(tmp_path / "p/label.png")
    (tmp_path / "p/notes.txt").write_text("")
    (tmp_path / "p/phone.heic").write_bytes(b"....")
    os.symlink("nowhere.jpg", tmp_path / "p/gone.jpg")
    os.mkfifo(tmp_path / "p/pipe.png")
    (tmp_path / "p/clip.mp4").write_bytes(b"nothing")
    found = index_images([tmp_path / "p", tmp_path / "p/0.png"])
    assert set(found.frame["image_id"]) == {"0", "label", "gone", "pipe", "clip"}  # those that fail are rows too
    assert {reason.split(",")[0]: len(paths) for reason, paths in found.ignored.items()} == {
        "HEIC images": 1,
        "not an image by the suffix": 1,
        "a mask beside its image": 1,
        "given twice": 1,
    }


def test_ids_of_several_sources_are_told_apart(tmp_path, monkeypatch):
    def ids(*sources, class_name="object"):
        frame = index_images(sources, class_name=class_name).frame
        assert frame["image_id"].is_unique
        assert not frame["image_id"].str.contains("..", regex=False).any()
        return dict(zip(frame["image_id"], frame["image_path"], strict=True))

    for name in ("x/cam1/a.png", "x/cam2/a.jpg", "y/cam1/a.png", "y/cam1/b.png", "z/c.png"):
        write_picture(tmp_path / name)
    monkeypatch.chdir(tmp_path / "x")
    assert set(ids("cam1", "cam2")) == {"cam1/a", "cam2/a"}
    assert set(ids("cam1/a.png", "cam2/a.jpg")) == {"cam1/a", "cam2/a"}
    assert set(ids("cam1", "../y/cam1", "../z")) == {"x/cam1/a", "y/cam1/a", "y/cam1/b", "c"}
    assert ids("cam1", "../y/cam1")["y/cam1/a"] == "../y/cam1/a.png"
    assert set(ids("cam1", "cam2", class_name="cam1")) == {"a", "cam2/a"}
    assert set(ids(".", "../y")) == {"x/cam1/a", "x/cam2/a", "y/cam1/a", "y/cam1/b"}


def test_names_that_are_not_utf8(tmp_path):
    write_picture(tmp_path / "b.png")
    os.rename(tmp_path / "b.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    write_picture(tmp_path / "a.png")
    frame = index_images(tmp_path).frame
    assert list(frame["image_id"]) == ["a", r"caf\xe9"]
    assert [os.path.basename(os.fsencode(path)) for path in frame["image_path"]] == [b"a.png", b"caf\xe9.png"]
    assert frame["frame"].dtype == "int64"
    assert frame["has_mask"].dtype == "bool"
    (tmp_path / "c").mkdir()
    write_picture(tmp_path / "c/c.png")
    assert len(Locations().index_predict([str(tmp_path / "c"), str(tmp_path)]).frame) == 3


def test_a_pattern_may_match_folders(tmp_path):
    for name in ("line1/a.png", "line2/b/a.png"):
        write_picture(tmp_path / name)
    assert list(index_images(str(tmp_path / "line*")).frame["image_id"]) == ["a", "b/a"]


def test_each_page_is_a_row_and_that_is_said(tmp_path):
    pages = [Image.new("L", (8, 8), 40 * page) for page in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    write_picture(tmp_path / "one.tif")
    with pytest.warns(
        UserWarning, match=r"1 images of several pages: each page is scored \(first: .*stack.tif, 3 pages"
    ):
        frame = index_images(tmp_path).frame
    assert frame["frame"].tolist() == [-1, 0, 1, 2]
    assert frame["image_id"].tolist() == ["one", "stack_000000", "stack_000001", "stack_000002"]


def test_a_folder_without_images_says_what_is_there(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no images; ignored: 1 HEIC images.*a\.heic"):
        index_images(tmp_path)
    write_picture(tmp_path / "b/a.png")
    assert len(index_images([tmp_path / "b", tmp_path]).frame) == 1


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
    (images / "t.csv").write_text("what\nx\n")
    with pytest.raises(DataError, match=r"no column image_path; it has \['what'\]"):
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
