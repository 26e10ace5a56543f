"""The report of a run, from a real trainer."""

import json
import re
import shutil
from urllib.parse import unquote

import pandas as pd
import pytest
from callbacks.test_heatmaps import Brightness, Forget, Refining, own, trainer
from callbacks.test_predictions import Brightness as Method
from lightning.pytorch import LightningModule
from trees import small_data

from vlad.callbacks import Evaluator, HeatMaps, Predictions, Report, Results
from vlad.errors import DataError, MethodError, OptionError
from vlad.types import Prediction

pytestmark = pytest.mark.filterwarnings("ignore")


def facts(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    (content,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', text, re.DOTALL)
    media = [
        one
        for block in re.findall(r'<script type="application/json" id="media-\d+">(.*?)</script>', text, re.DOTALL)
        for one in json.loads(block)
    ]
    return json.loads(content), media, text


def run_test(folder, data, *callbacks, method=Brightness):
    trainer(folder, Results(), Evaluator(), *callbacks).test(method(), data, verbose=False)


def predict(folder, data, *callbacks):
    folder.mkdir(exist_ok=True)
    trainer(folder, Predictions(progress=False), *callbacks).predict(Method(), data, return_predictions=False)


def test_a_test_leaves_a_page_without_opening_an_image_again(mvtec, tmp_path, capsys):
    out = tmp_path / "run"
    run_test(out, small_data(mvtec, test="mvtec_ad"), Report(), Forget(mvtec / "mvtec_ad"), method=Refining)
    found, media, text = facts(out)
    scores = pd.read_csv(out / "test_scores.csv", float_precision="round_trip")
    assert found["rows"]["score"] == scores["image_score"].tolist()
    assert found["rows"]["label"] == scores["label"].tolist()
    assert [group["name"] for group in found["groups"]] == ["bottle", "metal_nut"]
    assert set(found["groups"][0]["curves"]) == {"roc", "pr", "pro"}
    assert found["thumbnails"] == len(media) == 12
    assert all(one[0] and one[1] for one in media)
    assert [bool(one[4]) for one in media] == [label == 1 for label in found["rows"]["label"]]
    assert found["rows"]["panel"] == [""] * 12
    assert "Metrics of the initial maps in per cent" in text
    assert "<td>bottle</td>" in text
    assert not (out / "parts").exists()
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out


def test_heat_maps_are_linked_and_share_their_colours(mvtec, tmp_path):
    out = tmp_path / "run"
    run_test(out, small_data(mvtec, test="mvtec_ad"), HeatMaps(height=64), Report())
    found, _, _ = facts(out)
    assert found["rows"]["panel"][0] == "heatmaps/mvtec_ad/bottle/test/broken/000.png"
    assert all((out / panel).is_file() for panel in found["rows"]["panel"])
    scale = json.loads((out / "heatmaps/scale.json").read_text())
    assert found["groups"][0]["scale"] == [scale["floor"], scale["low"], scale["high"]]


def test_images_are_ordered_by_how_differently_another_run_ranks_them(mvtec, tmp_path):
    with pytest.raises(DataError, match="first is not there"):
        Report(against=str(tmp_path / "first"))
    data = small_data(mvtec, test="mvtec_ad")
    run_test(tmp_path / "first", data)
    run_test(tmp_path / "same", data, Report(against=str(tmp_path / "first")))
    rows = facts(tmp_path / "same")[0]["rows"]
    assert rows["above"] == rows["other_above"]
    assert all(0 <= share <= 1 for share in rows["above"])
    scores = pd.read_csv(tmp_path / "first/test_scores.csv").assign(image_score=lambda frame: -frame["image_score"])
    (tmp_path / "turned").mkdir()
    scores.to_csv(tmp_path / "turned/test_scores.csv", index=False)
    run_test(tmp_path / "against", data, Report(against=str(tmp_path / "turned")))
    found = facts(tmp_path / "against")[0]
    assert found["against"] == str(tmp_path / "turned")
    assert found["rows"]["above"] == rows["above"] != found["rows"]["other_above"]
    scores.iloc[1:].to_csv(tmp_path / "turned/test_scores.csv", index=False)
    with pytest.raises(DataError, match="have not tested the same images"):
        run_test(tmp_path / "others", data, Report(against=str(tmp_path / "turned")))
    assert (tmp_path / "others/test_scores.csv").is_file()


def test_limit_keeps_counts_and_drops_thumbnails(mvtec, tmp_path, monkeypatch):
    monkeypatch.setattr("vlad.report.store._HIGHEST", 1)
    out = tmp_path / "run"
    run_test(out, small_data(mvtec, test="mvtec_ad"), Report(limit=3))
    found, media, _ = facts(out)
    assert len(found["rows"]["score"]) == 12
    assert 3 <= found["thumbnails"] < 12
    best = max(range(12), key=lambda i: found["rows"]["score"][i])
    assert media[best]


def test_originals_are_copied_where_that_is_asked_for(mvtec, tmp_path):
    out = tmp_path / "run"
    run_test(out, small_data(mvtec, test="mvtec_ad"), Report(copy=True))
    found, _, _ = facts(out)
    assert found["rows"]["link"][0] == "originals/mvtec_ad/bottle/test/broken/000.png"
    shutil.rmtree(mvtec / "mvtec_ad")
    assert all((out / link).is_file() for link in found["rows"]["link"])


def test_a_prediction_is_continued_with_its_thumbnails(tmp_path):
    out = tmp_path / "run"
    data = own(tmp_path, a=10, b=200)
    (tmp_path / "own/broken.png").write_bytes(b"no image")
    predict(out, small_data(predict=data), Report())
    found, media, text = facts(out)
    names = dict(zip(found["rows"]["name"], found["rows"]["score"], strict=True))
    assert names["a"] < names["b"]
    assert names["broken"] is None
    assert "broken" in "".join(found["rows"]["error"])
    assert (found["verb"], found["thumbnails"]) == ("predict", 2)
    assert "Could not be scored" in text
    own(tmp_path, c=120)
    predict(out, small_data(predict=data), Report())
    found, media, _ = facts(out)
    assert found["thumbnails"] == 3
    assert sum(bool(one) for one in media) == 3


def test_no_page_where_none_is_wanted(mvtec, tmp_path):
    out = tmp_path / "run"
    data = small_data(mvtec, test="mvtec_ad")
    run_test(out, data, Report(enabled=False))
    assert not (out / "report.html").exists()
    assert data.preview_height == 0
    with pytest.raises(OptionError, match="report.limit is 0"):
        Report(limit=0)


def test_without_an_evaluator_a_page_of_a_test_is_refused(mvtec, tmp_path):
    with pytest.raises(MethodError, match=r"needs vlad.callbacks.Evaluator"):
        trainer(tmp_path / "run", Report()).test(Brightness(), small_data(mvtec, test="mvtec_ad"), verbose=False)


def test_images_without_a_score_are_failures(mvtec, tmp_path):
    class Odd(LightningModule):
        def test_step(self, batch):
            values = batch["image"].mean(1)
            scores = values.amax((1, 2))
            scores[0] = float("nan")
            return Prediction(values, scores, values)

    out = tmp_path / "run"
    run_test(out, small_data(mvtec, test="mvtec_ad", batch_size=12), Report(), method=Odd)
    found, _, _ = facts(out)
    assert found["rows"]["score"].count(None) == 1
    assert found["rows"]["error"][0].startswith("the method's score or map is not finite")


def test_thumbnails_are_found_whatever_files_are_called(tmp_path):
    out = tmp_path / "run"
    data = own(tmp_path, a=10)
    for name in ("=1+1", "two\nlines", "<b>", "'", "ä"):
        shutil.copyfile(tmp_path / "own/a.png", tmp_path / f"own/{name}.png")
    predict(out, small_data(predict=data), Report(copy=True))
    found, media, _ = facts(out)
    assert found["thumbnails"] == 6
    assert all(media)
    assert {"=1+1", "<b>", "'", "ä"} < set(found["rows"]["name"])
    assert all((out / unquote(link)).is_file() for link in found["rows"]["link"])
