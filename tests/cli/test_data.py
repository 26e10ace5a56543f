import json
import os

import pandas as pd
import pytest
from tests_support import write_mask, write_mvtec, write_picture
from trees import TREES, build, small_data

from vlad.cli import main
from vlad.datamodules import AnomalyDataModule
from vlad.datamodules.catalog import list_datasets
from vlad.datamodules.custom import index_table
from vlad.datamodules.folder import read_folder
from vlad.datamodules.index import COLUMNS
from vlad.datamodules.masks_of import split_masks
from vlad.datamodules.sources import Locations, as_sources
from vlad.errors import DataError


@pytest.fixture
def root(tmp_path):
    return write_mvtec(tmp_path / "mvtec_ad", ("bottle",))


def test_list_and_info(capsys):
    assert main(["data", "list", "--json"]) == 0
    assert [record["name"] for record in json.loads(capsys.readouterr().out)] == list_datasets()
    for name in list_datasets():
        assert main(["data", "info", name]) == 0
        assert "licence" in capsys.readouterr().out
    assert main(["data", "protocols"]) == 0
    assert "train: mvtec_ad, colondb" in capsys.readouterr().out


def test_get_without_a_direct_link_tells_the_steps(tmp_path, capsys):
    assert main(["data", "get", "mpdd", "--root", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "github.com/stepanje/MPDD" in out
    assert f"vlad data check mpdd {tmp_path}/mpdd" in out
    assert main(["data", "get", "synthetic", "--root", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []


def test_get_asks_for_the_licence_and_never_overwrites(root, capsys):
    assert main(["data", "get", "btad", "--root", str(root.parent)]) == 1
    assert "accept the licence with --yes" in capsys.readouterr().err
    assert main(["data", "get", "mvtec_ad", "--root", str(root.parent), "--yes"]) == 1
    assert "exists already" in capsys.readouterr().err


def test_check(root, capsys):
    assert main(["data", "check", "mvtec_ad", str(root)]) == 1
    out = capsys.readouterr().out
    assert "WRONG: 14 x categories that are missing\n  cable\n" in out
    assert "bottle train normal: 3 here, 209 officially" in out
    assert main(["data", "check", "mvtec_ad", str(root), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["sound"] is False
    assert main(["data", "check", "folder", str(root / "bottle")]) == 0
    assert "9 images: sound" in capsys.readouterr().out
    same = f"folder={root / 'bottle' / 'test'}"
    assert main(["data", "check", "folder", str(root / "bottle"), "--against", same]) == 0


def test_row_crops_and_thresholds_survive_a_table(tmp_path):
    write_picture(tmp_path / "ksdd/kos01/Part0.jpg")
    write_mask(tmp_path / "ksdd/kos01/Part0_label.bmp")
    output = tmp_path / "index.csv"
    assert main(["data", "index", str(tmp_path / "ksdd"), "--name", "ksdd", "-o", str(output)]) == 0
    table = index_table(output)
    assert table["row_crop"].tolist() == ["0/3", "1/3", "2/3"]
    assert table["image_id"].is_unique


@pytest.mark.parametrize("file", ["index.csv", "index.jsonl", "index.parquet"])
def test_index_as_a_table_is_read_back(root, tmp_path, file, capsys):
    output = tmp_path / file
    assert main(["data", "index", str(root), "--name", "mvtec_ad", "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"9 images in {output}\n"
    data, original = AnomalyDataModule(test=str(output)), AnomalyDataModule(root=str(root.parent), test="mvtec_ad")
    data.setup("test")
    original.setup("test")
    frame = data.frames["test"]
    assert tuple(frame.columns) == COLUMNS
    assert frame["label"].tolist() == [1, 1, 1, 0, 0, 0]
    assert frame["image_id"].tolist()[0] == "test/broken/000"
    pd.testing.assert_frame_equal(frame, original.frames["test"])


def test_paths_of_a_table_start_from_its_own_folder(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    for output in ("index.csv", "elsewhere/index.csv"):
        assert main(["data", "index", root.name, "--name", "mvtec_ad", "-o", output]) == 0
        data = AnomalyDataModule(test=str(root.parent / output))
        data.setup("test")
        assert len(data.frames["test"]) == 6
        assert all((root.parent / path).is_file() for path in data.frames["test"]["image_path"])


def test_masks_that_are_folders_survive_a_table(tmp_path):
    build(tmp_path / "mvtec_loco", TREES["mvtec_loco"][0])
    output = tmp_path / "index.csv"
    assert main(["data", "index", str(tmp_path / "mvtec_loco"), "--name", "mvtec_loco", "-o", str(output)]) == 0
    data = small_data(test=str(output))
    data.setup("test")
    dataset = data.dataset("test")
    assert [bool(dataset[row]["mask"].any()) for row in range(2)] == [False, True]
    assert [bool(dataset[row]["has_mask"]) for row in range(2)] == [True, True]


def test_a_table_of_an_older_version_is_read(tmp_path):
    write_picture(tmp_path / "ksdd/kos01/Part0.jpg")
    write_mask(tmp_path / "ksdd/kos01/Part0_label.bmp")
    assert main(["data", "index", str(tmp_path / "ksdd"), "--name", "ksdd", "-o", str(tmp_path / "index.csv")]) == 0
    table = pd.read_csv(tmp_path / "index.csv", keep_default_na=False)
    old = {"image_id": "key", "defect_type": "species", "row_crop": "band"}
    table.rename(columns=old).to_csv(tmp_path / "old.csv", index=False)
    with pytest.warns(
        UserWarning, match=r"species is defect_type now, band is row_crop now, key is image_id now"
    ) as told:
        read = index_table(tmp_path / "old.csv")
    assert len(told) == 1
    pd.testing.assert_frame_equal(read, index_table(tmp_path / "index.csv"))


def test_a_key_of_ones_own_is_no_old_table(root, recwarn):
    (root / "t.csv").write_text("image_path,key\nbottle/test/good/000.png,7\n")
    assert index_table(root / "t.csv")["image_id"].tolist() == ["bottle/test/good/000"]
    assert [str(one.message).rpartition(": ")[2] for one in recwarn.list] == ["key"]  # is not read


def test_meta_json_there_and_back(root, capsys):
    assert main(["data", "index", str(root), "--name", "mvtec_ad", "-o", str(root / "meta.json")]) == 0
    meta = json.loads((root / "meta.json").read_text())
    assert len(meta["train"]["bottle"]) == 3
    assert meta["test"]["bottle"][0] == {
        "img_path": "bottle/test/broken/000.png",
        "mask_path": "bottle/ground_truth/broken/000_mask.png",
        "cls_name": "bottle",
        "specie_name": "broken",
        "anomaly": 1,
    }
    frames = []
    for _ in range(2):  # read from meta.json, then from the folders
        data = AnomalyDataModule(root=str(root.parent), test="mvtec_ad")
        data.setup("test")
        frames.append(data.frames["test"])
        (root / "meta.json").unlink(missing_ok=True)
    assert frames[0].equals(frames[1])
    main(["data", "index", str(root), "--name", "mvtec_ad", "-o", str(root / "meta.json")])
    assert main(["data", "index", str(root / "meta.json"), "-o", str(root / "again.csv")]) == 0
    assert len(pd.read_csv(root / "again.csv")) == 9


def test_meta_json_of_another_machine(root):
    """Absolute paths, other cases of the phases, as AnomalyCLIP's scripts write them."""
    lines = [{"img_path": "/home/someone/mvtec_ad/bottle/test/good/000.png", "mask_path": "", "cls_name": "bottle",
              "specie_name": "good", "anomaly": 0}]  # fmt: skip
    (root / "meta.json").write_text(json.dumps({"Train": {}, "Test": {"bottle": lines}}))
    data = AnomalyDataModule(root=str(root.parent), test="mvtec_ad")
    data.setup("test")
    assert data.frames["test"]["image_path"].tolist() == [str(root / "bottle/test/good/000.png")]


def test_own_record_by_path(tmp_path):
    write_picture(tmp_path / "bolts/fine/a.png")
    write_picture(tmp_path / "bolts/torn/b.png", seed=1)
    record = tmp_path / "bolts.toml"
    record.write_text(
        'name = "bolts"\ntitle = "Bolts"\ndomain = "industrial"\nlevels = ["image"]\nfolders = ["bolts"]\n'
        '[categories]\nbolt = "bolt"\n[[layouts]]\nname = "ours"\n'
        "image = '(?P<defect_type>[^/]+)/(?P<stem>[^/]+)'\nnormal = [\"fine\"]\n"
    )
    data = AnomalyDataModule(root=str(tmp_path), test=str(record))
    data.setup("test")
    assert list(zip(data.frames["test"]["category"], data.frames["test"]["label"], strict=True)) == [
        ("bolt", 0),
        ("bolt", 1),
    ]
    assert main(["data", "check", str(record), str(tmp_path / "bolts")]) == 0


def own(root):
    for i in range(2):
        write_picture(root / f"good/{i}.png", seed=i)
        write_picture(root / f"bad/{i}.png", seed=9 + i)
        write_mask(root / f"masks/{i}.png")
    return root


def test_check_says_what_was_taken_for_what(tmp_path, capsys):
    root = own(tmp_path / "parts")
    assert main(["data", "check", str(root)]) == 0  # the kind may be left out
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["parts", "test", "2", "2", "0", "2"]
    assert lines[4].split() == ["bad", "parts", "test", "anomalous", "2", "2", "0.png", "masks/0.png"]
    assert lines[-1] == "4 images: sound"
    assert main(["data", "check", "folder", str(root), "--list"]) == 0
    assert str(root / "good/1.png") in capsys.readouterr().out
    assert main(["data", "check", str(root), "--list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 4
    (root / "masks/1.png").unlink()
    (root / "masks/7.png").write_bytes((root / "masks/0.png").read_bytes())
    assert main(["data", "check", str(root)]) == 1
    out = capsys.readouterr().out
    assert "WRONG: 1 x anomalous images have no mask: their pixels are left out\n  bad/1.png" in out
    assert "WRONG: 1 x masks belong to no image\n  masks/7.png" in out
    assert out.splitlines()[-1].startswith("4 images: something is wrong, 2 files are left out")


def test_check_of_masks_of_another_size_names_both(tmp_path, capsys):
    root = own(tmp_path / "parts")
    write_mask(root / "masks/0.png", (20, 18))
    assert main(["data", "check", str(root)]) == 1
    assert f"mask {root / 'masks/0.png'} is 20x18 pixels, its image 40x36" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["index.csv", "index.tsv", "index.jsonl", "index.parquet"])
@pytest.mark.parametrize("absolute", [True, False])
def test_what_index_writes_of_a_folder_is_read_from_anywhere(tmp_path, file, absolute, monkeypatch, capsys):
    root = own(tmp_path / "work/parts")
    write_mask(root / "masks/0_mask_2.png")  # several masks of one image
    write_picture(root / "good/a, b;\u202f\u00e9 'c'.png", seed=77)
    original = read_folder(root).frame
    monkeypatch.chdir(tmp_path / "work")
    given = str(root) if absolute else "parts"
    assert main(["data", "index", given, "-o", f"../lists/{file}"]) == 0
    monkeypatch.chdir("/")
    assert main(["data", "check", "table", str(tmp_path / "lists" / file)]) == 0
    read = index_table(tmp_path / "lists" / file)
    for column in ("image_path", "mask_path"):
        read[column] = [json.dumps([os.path.realpath(one) for one in split_masks(cell)]) for cell in read[column]]
        original[column] = [
            json.dumps([os.path.realpath(one) for one in split_masks(cell)]) for cell in original[column]
        ]
    pd.testing.assert_frame_equal(read, original)


def test_names_that_are_not_utf8_are_written_into_csv_and_read_back(tmp_path, capsys):
    root = own(tmp_path / "parts")
    write_picture(root / os.fsdecode(b"good/caf\xe9.png"))
    assert main(["data", "index", str(root), "-o", str(tmp_path / "i.csv")]) == 0
    assert (tmp_path / "i.csv").read_text().count(r"/parts/good/caf\xe9.png'") == 1
    assert main(["data", "check", str(tmp_path / "i.csv")]) == 0
    capsys.readouterr()
    assert main(["data", "index", str(root), "-o", str(tmp_path / "i.jsonl")]) == 1
    assert "1 names of files cannot be written into a .jsonl file" in capsys.readouterr().err
    assert not (tmp_path / "i.jsonl").exists()
    assert main(["data", "check", str(root)]) == 0


def test_notes_are_lines(tmp_path, capsys):
    for name in ("good/0.png", "scratch/0.png"):
        write_picture(tmp_path / "parts" / name)
    assert main(["data", "index", str(tmp_path / "parts"), "-o", str(tmp_path / "i.csv")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {tmp_path}/parts: 1 images beside good ones are taken for anomalous: scratch")


@pytest.mark.parametrize("name", ["t.csv", "T.CSV", "t.jsonl", "t.json"])
def test_tables_as_data_test_and_predict(tmp_path, name):
    root = own(tmp_path / "parts")
    rows = [{"image_path": f"parts/{kind}/{i}.png", "label": kind} for kind in ("good", "bad") for i in range(2)]
    text = json.dumps(rows) if name.endswith("json") else "\n".join(json.dumps(row) for row in rows)
    if name.lower().endswith("csv"):
        text = pd.DataFrame(rows).to_csv(index=False)
    (tmp_path / name).write_text(text)
    for given in (str(tmp_path / name), tmp_path / name, {"name": str(tmp_path / name)}, [str(tmp_path / name)]):
        data = AnomalyDataModule(test=given)
        data.setup("test")
        assert data.frames["test"]["label"].tolist() == [0, 0, 1, 1]
    found = Locations().index_predict([str(tmp_path / name), str(root / "good")])
    assert len(found.frame) == 4
    assert len(found.ignored["given twice"]) == 2


def test_a_record_finds_its_data_beside_itself(tmp_path):
    write_picture(tmp_path / "bolts/fine/a.png")
    (tmp_path / "bolts.toml").write_text(
        'name = "bolts"\ntitle = "Bolts"\ndomain = "industrial"\nlevels = ["image"]\nfolders = ["bolts"]\n'
        '[categories]\nbolt = "bolt"\n[[layouts]]\nname = "ours"\n'
        "image = '(?P<defect_type>[^/]+)/(?P<stem>[^/]+)'\nnormal = [\"fine\"]\n"
    )
    data = AnomalyDataModule(test=str(tmp_path / "bolts.toml"))
    data.setup("test")
    assert data.frames["test"]["label"].tolist() == [0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("here/parts", "data folder here/parts does not exist"),
        (5, "a data source is a name, a path or a mapping with a name, not 5"),
        ({"root": "x"}, "needs a name"),
    ],
)
def test_what_is_no_source(given, message):
    with pytest.raises(DataError, match=message):
        as_sources(given)
