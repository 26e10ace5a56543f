import json

import pandas as pd
import pytest
from tests_support import write_mask, write_picture

from vlad.datamodules.decode import load_mask
from vlad.datamodules.table_rows import index_table, read_rows
from vlad.datamodules.tables import read_table
from vlad.errors import DataError


@pytest.fixture
def place(tmp_path):
    for name in ("im/0.png", "im/1.png"):
        write_picture(tmp_path / name)
    for name in ("m/1.png", "m/1b.png"):
        write_mask(tmp_path / name)
    return tmp_path


def written(place, text, name="t.csv", encoding="utf-8"):
    (place / name).write_bytes(text.encode(encoding))
    return place / name


@pytest.mark.parametrize(
    "text",
    [
        "image_path,label\nim/0.png,0\nim/1.png,1\n",
        "image_path, label\nim/0.png, 0\nim/1.png, 1\n",
        '"image_path", "label"\n"im/0.png", "0"\n"im/1.png", "1"\n',
        "image_path,Label\r\nim/0.png,0\r\n\r\nim/1.png,1\r\n",
        "Image Path;Label\nim/0.png;0\nim/1.png;1\n",
        "image-path\tLABEL\nim/0.png\t0,0\nim/1.png\t1,0\n",
        "image_path|label\nim/0.png|0\nim/1.png|1\n",
        "sep=;\nimage_path;label;\nim/0.png;0;\nim/1.png;1;\n",
        "filename,anomaly\nim/0.png,False\nim/1.png,True\n",
        "Datei;Ergebnis\nim/0.png;i.O.\nim/1.png;n.i.O.\n",
        "file,is_good\nim/0.png,1\nim/1.png,0\n",
        "img_path,gt\nim/0.png,good\nim/1.png,defect\n",
        "image,class\nim/0.png,OK\nim/1.png,NG\n",
        "image,Class Label\nim/0.png,0.0\nim/1.png,1.0\n",
        "path,defect_type\nim/0.png,good\nim/1.png,scratch\n",
        "filename,path,label\n0.png,im/0.png,0\n1.png,im/1.png,1\n",
        "image_path,label\nim\\0.png,FALSCH\nim\\1.png,WAHR\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_spellings_and_dialects(place, text, encoding):
    frame = read_rows(written(place, text, encoding=encoding)).frame
    assert frame["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "value",
    [
        [{"image_path": "im/0.png", "label": 0}, {"Image_Path": "im/1.png", "label": 1}],
        {"items": [{"file": "im/0.png", "label": "good"}, {"file": "im/1.png", "label": "bad"}]},
        {"image_path": {"0": "im/0.png", "1": "im/1.png"}, "label": {"0": 0, "1": 1}},
        {"columns": ["image_path", "label"], "data": [["im/0.png", False], ["im/1.png", True]]},
    ],
)
def test_json(place, value):
    file = written(place, json.dumps(value), "t.json")
    if isinstance(value, list):
        value[1]["image_path"] = value[1].pop("Image_Path")
        file = written(place, json.dumps(value), "t.json")
    assert index_table(file)["label"].tolist() == [0, 1]


def test_json_that_is_no_table(place):
    with pytest.raises(DataError, match=r"t\.json cannot be read: it is COCO's format"):
        index_table(written(place, '{"images": [], "annotations": []}', "t.json"))
    with pytest.raises(DataError, match=r"t\.jsonl cannot be read: line 2 is no JSON"):
        index_table(written(place, '{"image_path": "im/0.png"}\n{', "t.jsonl"))


def test_a_sheet_is_read_or_refused_with_the_fix(place, monkeypatch):
    def missing(*_, **__):
        raise ImportError("Missing optional dependency 'openpyxl'.")

    file = written(place, "", "t.xlsx")
    monkeypatch.setattr(pd, "read_excel", missing)
    with pytest.raises(DataError, match=r"t\.xlsx is a sheet: save it as CSV.*or pip install openpyxl"):
        read_table(file)
    monkeypatch.setattr(pd, "read_excel", lambda *_, **__: pd.DataFrame({"Image": ["im/0.png"], "Label": ["OK"]}))
    assert index_table(file)["label"].tolist() == [0]


def test_another_encoding_is_said(place):
    write_picture(place / "im/Öse.png")
    with pytest.warns(UserWarning, match="is not UTF-8 and is read as Windows-1252"):
        frame = index_table(written(place, "image_path\nim/Öse.png\n", encoding="cp1252"))
    assert frame["image_id"].tolist() == ["Öse"]


def test_columns_that_are_not_read_are_named_once(place):
    with pytest.warns(UserWarning, match=r"columns are not read: station, Nr\.$") as told:
        index_table(written(place, "image_path,station,label,Nr.\nim/0.png,A,0,1\nim/1.png,B,1,2\n"))
    assert len(told) == 1


def test_columns_whose_values_tell_what_they_are_are_said(place):
    with pytest.warns(UserWarning, match="columns are read by their values: gt as mask_path$"):
        index_table(written(place, "image_path,gt\nim/1.png,m/1.png\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_path,label,Label\nim/0.png,0,1\n", r"the column 'label' comes 2 times \(columns 2, 3\)"),
        (
            "image_path,image path\nim/0.png,x\n",
            "two columns image_path: 'image_path' and 'image path'; rename one",
        ),
        ("image_path,label\nim/0.png,0,1\n", "line 2 has 3 values for 2 columns"),
        ("im/0.png,0\nim/1.png,1\n", r"no column image_path; .*the first line names the columns"),
        ("image_path,label\nim/0.png,scratch\n", "1 unknown labels.*labels are 0 and 1, or words such as good and bad"),
        ("image_path,split\nim/0.png,holdout\n", "1 unknown splits.*splits are train, val and test"),
        ("image_path\nimage.png\n", "1 missing images.*relative paths start from"),
        ("image_path,label\n", "lists no images"),
        ("", "it is empty"),
        ('image_path,label\n"im/0.png,0\n', "cannot be read"),
    ],
)
def test_what_is_wrong_is_told(place, text, message):
    with pytest.raises(DataError, match=message):
        index_table(written(place, text))


def test_paths_that_only_the_working_folder_knows(place, monkeypatch):
    (place / "lists").mkdir()
    monkeypatch.chdir(place)
    with pytest.raises(DataError, match=r"relative paths start from .*lists, not from the working folder"):
        index_table(written(place, "image_path\nim/0.png\n", "lists/t.csv"))


def test_splits_in_any_case(place):
    frame = index_table(written(place, "image_path,Split\nim/0.png,Training\nim/1.png,TEST\n"))
    assert frame["split"].tolist() == ["train", "test"]


def test_several_masks_and_missing_ones(place):
    text = 'image_path,label,mask_path\nim/0.png,1,NaN\nim/1.png,1,"[""m/1.png"", ""m/1b.png""]"\n'
    table = read_rows(written(place, text))
    assert table.frame["has_mask"].tolist() == [False, True]
    assert load_mask(table.frame["mask_path"][1]).any()
    assert [(note.kind.split(":")[0], list(note.paths)) for note in table.notes] == [
        ("anomalous images have no mask", ["im/0.png"])
    ]


def test_some_images_without_a_label_are_said(place):
    with pytest.warns(UserWarning, match=r"1 images have no label \(first: im/1\.png\)"):
        index_table(written(place, "image_path,label\nim/0.png,0\nim/1.png,\n"))


def test_a_table_to_predict_needs_images_alone(place):
    text = "image_path,label\nim/0.png,maybe\ngone.png,0\nim/0.png,1\n"
    file = written(place, text)
    with pytest.warns(UserWarning, match=r"1 rows name an image again and are left out \(first: im/0\.png\)"):
        frame = index_table(file, scored=True)
    assert frame["image_id"].tolist() == ["0", "gone"]
    with pytest.raises(DataError, match="2 missing images"):
        index_table(written(place, "image_path\nx.png\ny.png\n"), scored=True)


def test_parquet_of_nullable_types(tmp_path):
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", seed=number)
    frame = pd.DataFrame({"image_path": pd.array([f"{n}.png" for n in range(3)], "string")})
    frame["label"] = pd.array([0, 1, None], "Int64")
    frame["mask_path"] = pd.array([None] * 3, "string")
    frame["score"] = pd.array([0.5, None, 1.5], "Float64")
    frame["split"] = pd.Categorical(["test"] * 3)
    frame["when"] = pd.to_datetime(["2026-01-01", None, None])
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.warns(UserWarning, match="not read"):
        assert index_table(tmp_path / "t.parquet")["label"].tolist() == [0, 1, -1]
