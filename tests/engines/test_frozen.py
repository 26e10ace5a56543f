"""The frozen pass through another engine: the same scores, compiled once, in the record, refused where it cannot be."""

import json

import pytest
import torch
from tests_support import SMALL, write_picture

import vlad
from vlad.cli import main
from vlad.engines import frozen, has_bf16
from vlad.engines.frozen import FrozenEngine, set_engine
from vlad.errors import MethodError, OptionError
from vlad.identity import differences, scoring_identity
from vlad.testing import random_batch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def method(tiny):
    return vlad.get_method("sdp")(backbone=tiny, image_size=64, layers=[2, 4]).eval()


def score(method):
    batch = random_batch(3, 64)
    with torch.inference_mode():
        return method.score(batch["image"], batch["class_name"])


@pytest.mark.parametrize(("name", "module"), [("openvino", "openvino"), ("onnx", "onnxscript")])
def test_scores_are_those_of_torch_and_a_graph_is_compiled_once(method, name, module):
    pytest.importorskip(module, reason="the extra 'export' is not installed")
    expected, before, told = score(method), scoring_identity(method), []
    for _ in range(2):
        set_engine(method, FrozenEngine(name, tell=told.append))
        found = score(method)
        assert (found.anomaly_map - expected.anomaly_map).abs().max() < 1e-5
        assert not torch.equal(found.anomaly_map, expected.anomaly_map) or name == "onnx"
    assert ["compiled in" in line for line in told] == [True, False]
    (told_apart,) = differences(before, scoring_identity(method))
    assert told_apart.startswith("the engine (was torch, is ")
    set_engine(method, None)
    assert torch.equal(score(method).anomaly_map, expected.anomaly_map)


def test_a_damaged_graph_is_compiled_again(method, tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino", reason="the extra 'export' is not installed")
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path))
    expected = score(method)
    set_engine(method, FrozenEngine("openvino"))
    score(method)
    (graph,) = tmp_path.glob("engines/*/frozen.xml")
    graph.write_text("nothing")
    set_engine(method, FrozenEngine("openvino"))
    assert (score(method).anomaly_map - expected.anomaly_map).abs().max() < 1e-5
    assert "compiled again" in capsys.readouterr().err


def test_bf16_is_near_where_the_cpu_has_it_and_refused_where_not(method, monkeypatch):
    with pytest.raises(OptionError, match="fp32 alone"):
        FrozenEngine("onnx", "bf16")
    if has_bf16():
        expected = score(method).anomaly_map
        set_engine(method, FrozenEngine("torch", "bf16"))
        off = (score(method).anomaly_map - expected).abs().max() / (expected.max() - expected.min())
        assert 0 < off < 0.1
    monkeypatch.setattr(frozen, "has_bf16", lambda: False)
    with pytest.raises(OptionError, match="no bfloat16"):
        FrozenEngine("torch", "bf16")


def test_a_method_without_a_frozen_pass_is_refused(tiny):
    method = vlad.get_method("visualad")(backbone=tiny, image_size=64, **SMALL["visualad"])
    with pytest.raises(MethodError, match="no frozen pass"):
        set_engine(method, FrozenEngine("torch"))
    assert method.engine is None


def test_predict_with_an_engine_tells_it(tiny, tmp_path, capsys):
    pytest.importorskip("openvino", reason="the extra 'export' is not installed")
    write_picture(tmp_path / "photos" / "0.png", seed=0)
    small = ["--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]"]
    rest = ["--data.num_workers", "0", "--heatmaps.enabled", "false", "--output", str(tmp_path / "run")]
    given = ["predict", str(tmp_path / "photos"), "--model", "sdp", *small, *rest]
    assert main([*given, "--engine", "openvino", "--trainer.accelerator", "cpu"]) == 0
    assert "engine: openvino" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["engine"].startswith("openvino ")
    result = vlad.load("sdp", engine="openvino", backbone=tiny, image_size=64, layers=[2, 4])
    assert result.predict(tmp_path / "photos" / "0.png").score is not None


def test_a_decision_belongs_to_the_engine_that_it_was_made_with(tiny, tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino", reason="the extra 'export' is not installed")
    monkeypatch.chdir(tmp_path)
    for number in range(22):
        write_picture(tmp_path / "good" / f"{number}.png", seed=number)
    small = ["--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]"]
    made = ["calibrate", "sdp", "good/", *small, "--accelerator", "cpu", "--output", "d.json"]
    assert main([*made, "--engine", "openvino", "--data.num_workers", "0"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert "--engine openvino" in line
    again = ["predict", "good/0.png", "--model", "sdp", *small, "--decision", "d.json", "--data.num_workers", "0"]
    again += ["--heatmaps.enabled", "false", "--report.enabled", "false", "--trainer.accelerator", "cpu"]
    assert main([*again, "--engine", "openvino"]) == 0
    assert main(again) == 1
    assert "engine" in capsys.readouterr().err
