import csv
import json
import subprocess
import sys
import textwrap

import pytest

from vlad.errors import OutputError
from vlad.store import COLUMNS, RowStore, StoreError


def row(key, score=0.5, error="", **other):
    return {"key": key, "path": f"{key}.png", "image_score": score, "error": error, "size": 1, "mtime_ns": 2} | {
        "digest": "d",
        **other,
    }


def table(store, keys):
    seen = []
    store.write_table(keys, store.folder / "t.csv", seen.append)
    with open(store.folder / "t.csv", newline="") as file:
        return list(csv.DictReader(file)), seen


def test_nothing_is_made_before_the_first_row(tmp_path):
    store = RowStore(tmp_path / "out")
    assert store.states() == {}
    assert not (tmp_path / "out").exists()
    store.append([])
    assert not (tmp_path / "out").exists()


def test_the_table_has_the_order_of_the_keys_whoever_wrote_the_rows(tmp_path):
    first, second = RowStore(tmp_path), RowStore(tmp_path)
    first.append([row("b"), row("d")])
    second.append([row("a", 0.1 + 0.2), row("c", regions=[{"x": 1}])])
    lines, seen = table(first, "abcd")
    assert [line["path"] for line in lines] == ["a.png", "b.png", "c.png", "d.png"]
    assert list(lines[0]) == list(COLUMNS)
    assert float(lines[0]["image_score"]) == 0.1 + 0.2
    assert json.loads(lines[2]["regions"]) == [{"x": 1}]
    assert [one["key"] for one in seen] == list("abcd")


def test_a_later_row_replaces_an_earlier_one_also_after_joining(tmp_path):
    first = RowStore(tmp_path)
    first.append([row("a", 1.0), row("b", 2.0)])
    first.join()
    assert sorted(path.name for path in first.parts.iterdir()) == ["rows.jsonl"]
    second = RowStore(tmp_path)
    second.append([row("a", 3.0)])
    assert [one["image_score"] for one in second.rows("ab")] == [3.0, 2.0]
    second.join()
    assert [one["image_score"] for one in RowStore(tmp_path).rows("ab")] == [3.0, 2.0]
    assert len((first.parts / "rows.jsonl").read_text().splitlines()) == 2


def test_a_line_that_was_cut_off_is_not_there(tmp_path):
    store = RowStore(tmp_path)
    store.append([row("a"), row("b")])
    (file,) = store.parts.glob("rows-*.jsonl")
    file.write_bytes(file.read_bytes()[:-5])
    assert list(RowStore(tmp_path).states()) == ["a"]
    store.append([row("c")])  # and what comes behind it in another file is
    again = RowStore(tmp_path)
    again.append([row("d")])
    assert set(again.states()) >= {"a", "d"}


def test_a_name_that_is_not_utf8_is_written_readably(tmp_path):
    store = RowStore(tmp_path)
    store.append([row("a", path="caf\udce9.png")])
    lines, _ = table(store, "a")
    assert lines[0]["path"] == r"$'caf\xe9.png'"


def test_one_run_at_a_time(tmp_path):
    store = RowStore(tmp_path / "out")
    store.lock()
    code = f"""
    from pathlib import Path
    from vlad.store import RowStore
    RowStore(Path({str(tmp_path / "out")!r})).lock()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert "another run is writing" in done.stderr
    store.close()
    assert not subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True).returncode


def test_other_settings_are_refused_and_named(tmp_path):
    store = RowStore(tmp_path)
    store.begin({"method": "a.B", "options": {"sigma": 4, "tuple": (1, 2)}})
    store.check({"method": "a.B", "options": {"sigma": 4, "tuple": (1, 2)}})
    with pytest.raises(StoreError, match=r"sigma \(was 4, is 8\); the method \(was a.B, is a.C\)"):
        store.check({"method": "a.C", "options": {"sigma": 8, "tuple": (1, 2)}})


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(StoreError, match=r"holds no results of vlad predict that can be continued \(holiday.jpg\)"):
        RowStore(tmp_path).check({})


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', '{"format": 99, "settings": {}}'])
def test_damaged_settings_are_refused(tmp_path, text):
    store = RowStore(tmp_path)
    store.append([row("a")])
    (store.parts / "settings.json").write_text(text)
    with pytest.raises(StoreError, match="choose another --output"):
        store.check({})


def test_what_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*; a file has the name of the folder"):
        RowStore(tmp_path / "file").append([row("a")])


def test_a_damaged_row_is_not_there(tmp_path):
    store = RowStore(tmp_path)
    store.append([row("a", 0.25), row("b", 0.5)])
    store.join()
    file = store.parts / "rows.jsonl"
    file.write_bytes(file.read_bytes().replace(b"0.25", b"0.75"))
    again = RowStore(tmp_path)
    assert list(again.states()) == ["b"]
    assert [one["image_score"] for one in again.rows("ab")] == [0.5]
