import json
import math

import numpy as np
import pytest
import torch
from callbacks.test_heatmaps import Brightness, Broken, Together, own, predict, run_test
from PIL import Image
from tests_support import write_picture
from trees import MEAN, STD, small_data

from vlad.callbacks.maps import RawMaps, join_lists
from vlad.drawing import read_map
from vlad.errors import OptionError, OutputError
from vlad.journal import Journal
from vlad.types import Preprocess


def index(folder):
    return [json.loads(line) for line in (folder / "maps/index.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", [run_test, predict])
@pytest.mark.parametrize("kind", ["npy", "png16"])
def test_every_image_has_its_map_at_its_own_size(tmp_path, stage, kind):
    sizes = {"good/a": (50, 30), "bad/b": (31, 77), "bad/c": (8, 8)}
    for name, size in sizes.items():
        write_picture(tmp_path / f"own/{name}.png", size)
    folder = str(tmp_path / "own")
    stage(tmp_path / "run", small_data(test=folder, predict=folder), RawMaps(kind))
    lines = index(tmp_path / "run")
    assert {line["image_id"]: (line["width"], line["height"]) for line in lines} == sizes
    for line in lines:
        values = read_map(tmp_path / "run/maps" / line["file"])
        assert values.shape == (line["height"], line["width"])
        assert values.max() == pytest.approx(line["high"], rel=1e-6)
        assert line["path"].endswith(f"{line['image_id']}.png")
        if line["image_id"] == "bad/c":  # 8 x 8 noise at 32 x 32 and back again
            with Image.open(line["path"]) as image:
                pixels = np.asarray(image.convert("RGB")) / 255
            expected = ((pixels - MEAN) / STD).mean(-1)
            assert np.corrcoef(values.ravel(), expected.ravel())[0, 1] > 0.9
    assert not (tmp_path / "run/parts").exists()


def test_what_the_method_has_not_seen_goes_on_as_the_edge(tmp_path):
    write_picture(tmp_path / "own/a.png", (128, 96))
    keep = Preprocess(98, MEAN, STD, aspect="keep", multiple=14)
    predict(tmp_path, small_data(predict=str(tmp_path / "own"), preprocess=keep), RawMaps("npy"))
    (line,) = index(tmp_path)
    values = read_map(tmp_path / "maps" / line["file"])
    assert values.shape == (96, 128)
    assert (values[:, 125:] == values[:, 124:125]).all()  # of 128 columns it saw 124
    assert (values[:, 120] != values[:, 121]).any()


def test_sets_that_are_scored_together_have_maps_too(mvtec, tmp_path):
    run_test(tmp_path / "run", small_data(mvtec, test="mvtec_ad"), RawMaps("png16"), method=Together)
    assert len(index(tmp_path / "run")) == len(list((tmp_path / "run/maps").rglob("*.png"))) == 12


def test_no_maps_by_default(tmp_path):
    predict(tmp_path / "run", small_data(predict=own(tmp_path, a=20)), RawMaps())
    assert not list((tmp_path / "run").glob("*"))


def test_unknown_formats_are_refused():
    with pytest.raises(OptionError, match="maps.format is 'tiff': give npy or png16"):
        RawMaps("tiff")


def test_a_map_that_is_not_finite_is_not_written_and_told_once(tmp_path):
    folder = own(tmp_path, a=20, b=21, c=255)
    with pytest.warns(UserWarning, match="no raw map of .*a.png, nor of others like it: the map is not finite") as told:
        predict(tmp_path, small_data(predict=folder, batch_size=1), RawMaps("npy"), method=Broken)
    assert sum("no raw map" in str(one.message) for one in told) == 1
    assert [line["image_id"][-1] for line in index(tmp_path)] == ["c"]
    assert math.isfinite(index(tmp_path)[0]["high"])


def test_minus_infinity_where_nothing_was_inspected(tmp_path):
    class Half(Brightness):
        def predict_step(self, batch):
            batch["roi"] = torch.ones(len(batch["path"]), 32, 32, dtype=torch.bool)
            batch["roi"][:, :, 16:] = False
            return self.test_step(batch)

    predict(tmp_path, small_data(predict=own(tmp_path, a=20)), RawMaps("png16"), method=Half)
    values = read_map(tmp_path / "maps" / index(tmp_path)[0]["file"])
    assert np.isfinite(values[:, :20]).all()
    assert (values[:, 20:] == -np.inf).all()


def test_maps_are_there_as_soon_as_their_batch_is_done(tmp_path):
    class Killed(Brightness):
        def predict_step(self, batch):
            if batch["image_id"] == ["b"]:
                raise KeyError("as if killed")
            return super().predict_step(batch)

    folder = own(tmp_path, a=20, b=40)
    with pytest.raises(KeyError):
        predict(tmp_path, small_data(predict=folder, batch_size=1), RawMaps("npy"), method=Killed)
    assert [path.stem for path in (tmp_path / "maps").rglob("*.npy")] == ["a"]
    (tmp_path / "own/a.png").unlink()  # scored already
    predict(tmp_path, small_data(predict=folder, batch_size=1), RawMaps("npy"))
    assert sorted(line["image_id"] for line in index(tmp_path)) == ["a", "b"]


def test_lists_of_all_processes_are_joined_and_new_lines_replace_old_ones(tmp_path):
    for rank, rows in enumerate([[("a", 1), ("b", 1)], [("c", 1)]]):
        Journal(tmp_path / f"parts/maps-{rank}.jsonl").append({"file": name, "high": high} for name, high in rows)
    join_lists(tmp_path)
    Journal(tmp_path / "parts/maps-0.jsonl").append([{"file": "b", "high": 2}])
    join_lists(tmp_path)
    assert {line["file"]: line["high"] for line in index(tmp_path)} == {"a": 1, "b": 2, "c": 1}
    before = (tmp_path / "maps/index.jsonl").read_bytes()
    join_lists(tmp_path)
    assert (tmp_path / "maps/index.jsonl").read_bytes() == before


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    folder = own(tmp_path, a=20)
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match=r"cannot write .*maps.*: No space left"):
        predict(tmp_path / "run", small_data(predict=folder), RawMaps("npy"))
