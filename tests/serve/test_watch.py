"""A watched folder: whole files, once, whatever happens."""

import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import vlad
from vlad.errors import OptionError
from vlad.serve import Worker
from vlad.serve.watch import Watch
from vlad.store import StoreError


@pytest.fixture(scope="module")
def detector(tiny):
    return vlad.load("sdp", backbone=tiny, pretrained=None, image_size=64, layers=[2, 4], class_name="bolt")


@pytest.fixture
def worker(detector):
    worker = Worker(detector)
    yield worker
    worker.close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in/line 2").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "line 2/b.jpg")):
        write(tmp_path / "in" / name, seed)
    return tmp_path / "in"


def write(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), np.uint8)).save(path)


def table(output):
    return pd.read_csv(output / "predictions.csv", keep_default_na=False, dtype=str).set_index("image_id")


def test_files_are_scored_once_and_as_predict_scores_them(folder, tmp_path, detector, worker):
    watch = Watch(folder, tmp_path / "out", detector)
    assert [watch.look(worker) for _ in range(3)] == [0, 2, 0]  # a second look must find them as they were
    write(folder / "c.png", 7)
    assert [watch.look(worker) for _ in range(3)] == [0, 1, 0]
    watch.close()
    found = table(tmp_path / "out")
    assert list(found.index) == ["a.png", "line 2/b.jpg", "c.png"]
    expected = {name: detector.predict(folder / name, batch_size=1).score for name in found.index}
    assert found["image_score"].astype(float).to_dict() == pytest.approx(expected, rel=1e-5)


def test_files_that_are_still_written_wait(folder, tmp_path, detector, worker):
    content = (folder / "a.png").read_bytes()
    for name in ("a.png", "line 2/b.jpg"):
        (folder / name).unlink()
    for name in ("x.png.part", "x.tmp", ".x.png", "~x.png"):
        (folder / name).write_bytes(content)
    (folder / "empty.png").touch()
    file = folder / "slow.png"
    file.write_bytes(content[:100])
    watch = Watch(folder, tmp_path / "out", detector)
    assert watch.look(worker) == 0
    file.write_bytes(content[:200])
    assert watch.look(worker) == 0
    file.write_bytes(content)
    assert [watch.look(worker) for _ in range(3)] == [0, 1, 0]
    watch.close()
    assert list(table(tmp_path / "out").index) == ["slow.png"]


def test_what_was_scored_or_refused_is_not_tried_again_by_the_next_run(folder, tmp_path, detector, worker):
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    told = []
    first = Watch(folder, tmp_path / "out", detector, told=told.append)
    with pytest.raises(StoreError, match="another run"):
        Watch(folder, tmp_path / "out", detector)
    first.look(worker)
    assert first.look(worker) == 3
    first._store.close()  # as a kill leaves it: no table
    assert sorted(told) == ["failed", "scored", "scored"]
    second = Watch(folder, tmp_path / "out", detector)
    assert [second.look(worker) for _ in range(2)] == [0, 0]
    write(folder / "bad.png", 3)  # it comes again, whole
    write(folder / "a.png", 4)
    os.utime(folder / "a.png", ns=(1, 1))
    assert [second.look(worker) for _ in range(3)] == [0, 2, 0]
    second.close()
    found = table(tmp_path / "out")
    assert list(found.index) == ["a.png", "bad.png", "line 2/b.jpg"]
    assert set(found["error"]) == {""}
    assert float(found.loc["a.png", "image_score"]) == pytest.approx(detector.predict(folder / "a.png").score, rel=1e-5)


def test_a_bad_file_has_its_reason(folder, tmp_path, detector, worker):
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    watch = Watch(folder, tmp_path / "out", detector)
    watch.look(worker)
    watch.look(worker)
    watch.close()
    row = table(tmp_path / "out").loc["bad.png"]
    assert "bad.png" in row["error"]
    assert row["image_score"] == ""


def test_results_made_otherwise_are_not_added_to(folder, tmp_path, detector, tiny):
    Watch(folder, tmp_path / "out", detector).close()
    other = vlad.load("sdp", backbone=tiny, pretrained=None, image_size=64, layers=[2, 4], class_name="nut", decision=1)
    with pytest.raises(StoreError, match="class_name .was bolt, is nut"):
        Watch(folder, tmp_path / "out", other)
    with pytest.raises(OptionError, match="is no folder"):
        Watch(tmp_path / "nowhere", tmp_path / "out", detector)
