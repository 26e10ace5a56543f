import os

import pytest
from tests_support import write_mvtec, write_picture
from trees import small_data

from vlad.datamodules import sources
from vlad.datamodules.cache import cached, fingerprint
from vlad.datamodules.index import COLUMNS


def indexed(root):
    data = small_data(root, test="mvtec_ad")
    data.setup("test")
    return data.frames["test"]


@pytest.fixture
def calls(monkeypatch):
    made = []
    real = sources.index_record
    monkeypatch.setattr(sources, "index_record", lambda *a, **k: made.append(1) or real(*a, **k))
    return made


def test_index_is_made_once_and_again_when_files_change(mvtec, calls):
    first = indexed(mvtec)
    second = indexed(mvtec)
    assert len(calls) == 1
    assert first.equals(second)
    assert first.dtypes.equals(second.dtypes)
    write_picture(mvtec / "mvtec_ad/bottle/test/good/099.png")
    assert len(indexed(mvtec)) == len(first) + 1
    (mvtec / "mvtec_ad/bottle/test/good/099.png").unlink()
    assert indexed(mvtec).equals(first)
    assert len(calls) == 3


def test_damaged_cache_is_made_anew(mvtec, calls, tmp_path, monkeypatch):
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path / "cache"))
    first = indexed(mvtec)
    (file,) = (tmp_path / "cache/index").iterdir()
    text = file.read_text()
    for damage in (text[: len(text) // 2], text.replace("label", "lable"), "", text.replace(",-1,", ",x,")):
        file.write_text(damage)
        assert indexed(mvtec).equals(first)
    for damage in (text.replace(",0,", ",1,", 1), text.replace("broken", "brokem"), text + "\n"):
        assert damage != text
        file.write_text(damage)
        assert indexed(mvtec).equals(first)  # a changed label is noticed
    assert indexed(mvtec).equals(first)


def test_cache_that_cannot_be_written_is_no_failure(mvtec, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path / "file"))
    assert tuple(indexed(mvtec).columns) == COLUMNS


def test_fingerprint_survives_circles_of_links(mvtec):
    os.symlink(mvtec, mvtec / "mvtec_ad" / "loop")
    before = fingerprint(mvtec)
    assert before == fingerprint(mvtec)
    (mvtec / "labels.csv").write_text("a")
    assert fingerprint(mvtec) != before


def test_fingerprint_survives_links_to_nowhere_and_odd_names(mvtec):
    os.symlink("nowhere.csv", mvtec / "gone.csv")
    os.symlink("itself.csv", mvtec / "itself.csv")
    (mvtec / os.fsdecode(b"caf\xe9.csv")).write_text("a")
    assert len(fingerprint(mvtec)) == 64


def test_cached_returns_what_was_made(tmp_path, monkeypatch):
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path / "cache"))
    write_mvtec(tmp_path / "mvtec_ad")
    frame = indexed(tmp_path)
    assert cached("other", tmp_path / "mvtec_ad", lambda: frame).equals(frame)
    assert cached("other", tmp_path / "mvtec_ad", lambda: 1 / 0).equals(frame)
