"""Every record and layout, on a little tree of each: which images, in which split, with which label and mask."""

import json
from importlib import metadata
from pathlib import Path

import pytest
from tests_support import write_picture
from trees import ELSEWHERE, TREES, build, write_mask_file

from vlad.datamodules import catalog
from vlad.datamodules.catalog import get_protocol, get_record, list_datasets, list_protocols
from vlad.datamodules.index import index_record

CASES = [(name, number) for name, trees in TREES.items() for number in range(len(trees))]


def test_every_record_has_a_tree():
    assert {*TREES, *ELSEWHERE} == set(list_datasets())


@pytest.mark.parametrize(("name", "number"), CASES, ids=[f"{name}-{number}" for name, number in CASES])
def test_layout(name, number, tmp_path):
    tree, record = TREES[name][number], get_record(name)
    build(tmp_path, tree)
    if name == "headct":
        (tmp_path / "labels.csv").unlink(missing_ok=True)
    frame = index_record(record, tmp_path)
    seen = {}
    for row in frame.to_dict("records"):
        path = Path(row["image_path"]).relative_to(tmp_path).as_posix()
        path += f"#{row['row_crop'].split('/')[0]}" if row["row_crop"] else ""
        mask = Path(row["mask_path"]).relative_to(tmp_path).as_posix() if row["mask_path"] else ""
        seen[path] = (row["category"], row["split"], row["label"], mask)
    expected = {path: row for path, row in tree.items() if isinstance(row, tuple)}
    if "pixel" not in record.levels:
        expected = {path: (*row[:3], "") for path, row in expected.items()}
        seen = {path: (*row[:3], "") for path, row in seen.items()}
        assert not frame["has_mask"].any()
    elif record.mask_threshold == 0 or name == "magnetic_tile":
        assert (frame["has_mask"] == ((frame["label"] == 0) | (frame["mask_path"] != ""))).all()
    if name == "ksdd" and number == 0:  # which normal ones test is drawn
        assert frame["split"].value_counts().to_dict() == {"train": 3, "test": 3}
        seen = {path: (row[0], None, *row[2:]) for path, row in seen.items()}
    clean = {path: (*row[:3], row[3].rstrip("/")) for path, row in expected.items()}
    assert seen == clean
    assert frame["image_id"].is_unique or len(set(zip(frame["category"], frame["image_id"], strict=True))) == len(frame)
    assert not set(frame["category"]) - set(record.categories)


@pytest.mark.parametrize("nested", [True, False])
def test_real_iad(nested, tmp_path):
    folder = tmp_path / ("realiad_jsons/realiad_jsons" if nested else "realiad_jsons")
    folder.mkdir(parents=True)
    ok = {"category": "usb", "anomaly_class": "OK", "image_path": "OK/S1/a_C1.jpg", "mask_path": None}
    bad = {
        "category": "usb",
        "anomaly_class": "AK",
        "image_path": "NG/AK/S2/b_C2.jpg",
        "mask_path": "NG/AK/S2/b_C2_mask.png",
    }
    (folder / "usb.json").write_text(json.dumps({"meta": {}, "train": [ok], "test": [bad, ok]}))
    (folder / "toy.json").write_text(json.dumps({"meta": {}, "train": [ok], "test": []}))  # not downloaded
    (folder / "usb_sv.json").write_text("{}")
    write_picture(tmp_path / "realiad_512/usb/OK/S1/a_C1.jpg")
    write_picture(tmp_path / "realiad_512/usb/NG/AK/S2/b_C2.jpg")
    write_mask_file(tmp_path / "realiad_512/usb/NG/AK/S2/b_C2_mask.png")
    frame = index_record(get_record("real_iad"), tmp_path)
    assert list(zip(frame["category"], frame["split"], frame["label"], strict=True)) == [
        ("usb", "test", 1),
        ("usb", "test", 0),
        ("usb", "train", 0),
    ]
    assert frame["mask_path"][0].endswith("realiad_512/usb/NG/AK/S2/b_C2_mask.png")
    assert frame["has_mask"].all()


@pytest.mark.parametrize("name", list_protocols())
def test_protocols_name_known_sets(name):
    protocol = get_protocol(name)
    assert protocol["title"]
    for item in [*protocol.get("train", []), *protocol["test"]]:
        record = get_record(item if isinstance(item, str) else item["name"])
        if isinstance(item, dict):
            assert set(item.get("class_names", {})) <= set(record.categories)


class Point:
    """An installed entry point."""

    def __init__(self, name, target):
        self.name, self.value, self.target = name, "package:attribute", target

    def load(self):
        return self.target


def test_records_of_other_packages(tmp_path, monkeypatch):
    head = 'title = "T"\ndomain = "industrial"\nlevels = ["image"]\nfolders = []\n[categories]\na = "a"\n'
    layout = '[[layouts]]\nname = "l"\nimage = ".*"\n'
    (tmp_path / "bolts.toml").write_text('name = "bolts"\n' + head + layout)
    (tmp_path / "taken.toml").write_text('name = "mvtec_ad"\n' + head + layout)
    (tmp_path / "broken.toml").write_text("name =")
    names = ("bolts", "taken", "broken", "missing")
    points = [Point(name, str(tmp_path / f"{name}.toml")) for name in names]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points)
    catalog._records.cache_clear()
    try:
        with pytest.warns(UserWarning, match="data set '(broken|missing)' .* is left out") as caught:
            assert "bolts" in list_datasets()
        assert len(caught) == 2
        assert get_record("mvtec_ad").title == "MVTec AD"
    finally:
        monkeypatch.undo()
        catalog._records.cache_clear()
