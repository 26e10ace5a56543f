"""A method as a file: what it says is what vlad says, what is beside it is true, and what is off is not written."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import SMALL, write_picture

import vlad
from vlad.cli import main
from vlad.decision.conformal import conformal_threshold
from vlad.engines import has_bf16
from vlad.engines.mixed import attention_products
from vlad.engines.pt2 import load_program
from vlad.errors import DataError, MethodError, OptionError, WeightsError
from vlad.export import ExportedModel
from vlad.export.graph import refusal

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
EXAMPLE = Path(__file__).parents[2] / "examples" / "run_exported.py"


def settings(tiny):
    return ["--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]"]


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """SDP as an ONNX file for two classes."""
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    folder = tmp_path_factory.mktemp("exported")
    names = ["--class-name", "bottle", "metal nut"]
    assert main(["export", "sdp", *settings(tiny), *names, "--format", "onnx", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    file = tmp_path_factory.mktemp("photos") / "0.png"
    write_picture(file, seed=3)
    return file


def own(tiny, class_name, path):
    return vlad.load("sdp", backbone=tiny, image_size=64, layers=[2, 4]).predict(path, class_name=class_name)


@pytest.mark.parametrize("name", ["bottle", "metal nut"])
def test_a_file_says_what_vlad_says_of_its_class(exported, tiny, photo, name):
    model = ExportedModel.load(exported / f"{name}.json", threads=1)
    result = own(tiny, name, photo)
    anomaly_map, score = model.predict(Image.open(photo))
    assert np.abs(anomaly_map - result.raw_map).max() < 1e-5 * np.ptp(result.raw_map) + 1e-6
    assert score == pytest.approx(result.score, abs=1e-5)
    three = np.stack([model.prepare(Image.open(photo))] * 3)
    maps, scores = model(three)
    assert maps.shape == (3, 64, 64)
    assert scores == pytest.approx([score] * 3, abs=1e-5)
    with pytest.raises(DataError, match=r"takes images \(N, 3, 64, 64\)"):
        model(np.zeros((1, 3, 32, 32), np.float32))


def test_the_sidecar_tells_what_is_needed(exported):
    facts = json.loads((exported / "bottle.json").read_text())
    assert (facts["format"], facts["engine"], facts["precision"]) == (1, "onnx", "fp32")
    assert facts["class_name"] == "bottle"
    assert facts["input"] == {"name": "image", "shape": ["batch", 3, 64, 64], "dtype": "float32"}
    assert facts["preprocess"]["resize"] == "squash"
    assert facts["smoothing"] == {"sigma": 8.0, "in_graph": True}
    assert facts["check"]["images"] == 4
    assert 0 < facts["check"]["map"]["of_range"] < 1e-3
    assert facts["decision"] is None
    assert "--calibrate" in facts["decision_note"]
    assert facts["backbone"]["fingerprint"]


def test_another_file_is_refused(exported, tmp_path):
    for name in ("bottle.json", "bottle.onnx"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    with (tmp_path / "bottle.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(WeightsError, match="another SHA-256"):
        ExportedModel.load(tmp_path)
    facts = json.loads((tmp_path / "bottle.json").read_text())
    facts["files"] = {"../bottle.onnx": ""}
    (tmp_path / "bottle.json").write_text(json.dumps(facts))
    with pytest.raises(WeightsError, match="is damaged"):
        ExportedModel.load(tmp_path)
    with pytest.raises(WeightsError, match="2 exports"):
        ExportedModel.load(exported)


def test_the_example_needs_neither_vlad_nor_torch(exported, tiny, photo, tmp_path):
    assert len(EXAMPLE.read_text().splitlines()) <= 40
    code = (
        f"import sys, runpy; sys.argv = ['x', {str(exported / 'bottle.json')!r}, {str(photo)!r}, 'heat.png'];"
        f"runpy.run_path({str(EXAMPLE)!r}); assert not {{'torch', 'vlad'}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    result = own(tiny, "bottle", photo)
    assert float(done.stdout.split()[1]) == pytest.approx(result.score, abs=1e-5)
    assert np.abs(np.load(tmp_path / "heat.npy") - result.raw_map).max() < 1e-5
    assert Image.open(tmp_path / "heat.png").size == Image.open(photo).size


def test_references_and_a_decision_go_into_an_openvino_file(tiny, tmp_path, capsys):
    pytest.importorskip("openvino", reason="the extra 'export' is not installed")
    for number in range(22):
        write_picture(tmp_path / ("references" if number < 2 else "good") / f"{number}.png", seed=number)
    given = ["--references", str(tmp_path / "references"), "--calibrate", str(tmp_path / "good")]
    output = ["--format", "openvino", "--output", str(tmp_path / "out")]
    assert main(["export", "patch_memory", *settings(tiny), *given, *output]) == 0
    assert "decision: anomalous from" in capsys.readouterr().out
    model = ExportedModel.load(tmp_path / "out", threads=1)
    assert sorted(model.facts["files"]) == ["model.bin", "model.xml"]
    scores = [model.predict(Image.open(tmp_path / "good" / f"{number}.png"))[1] for number in range(2, 22)]
    rule = model.facts["decision"]["categories"]["object"]
    assert rule["threshold"] == pytest.approx(conformal_threshold(sorted(scores), 0.05), abs=1e-6)
    assert model.facts["decision"]["identity"]["engine"].startswith("exported ")
    detector = vlad.load("patch_memory", backbone=tiny, image_size=64, layers=[2, 4])
    detector.fit_references(tmp_path / "references")
    assert scores[0] == pytest.approx(detector.predict(tmp_path / "good" / "2.png").score, abs=1e-5)


def test_a_torch_file_holds_no_code(tiny, tmp_path):
    assert main(["export", "sdp", *settings(tiny), "--format", "torch", "--output", str(tmp_path)]) == 0
    model = ExportedModel.load(tmp_path)
    assert model(np.zeros((3, 3, 64, 64), np.float32))[0].shape == (3, 64, 64)
    with zipfile.ZipFile(model.file) as before, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as after:
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, content.replace(b'"use_pickle": false', b'"use_pickle": true', 1))
    with pytest.raises(WeightsError, match=r"data/weights/.* in it could run code"):
        load_program(tmp_path / "evil.pt2")


def test_eight_bits_are_measured_and_refused_beyond_the_bound(tiny, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    low = ["--format", "onnx", "--precision", "int8", "--output", str(tmp_path / "out")]
    assert main(["export", "sdp", *settings(tiny), *low, "--tolerance", "1e-9"]) == 1
    assert "nothing is written" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
    for number in range(6):
        write_picture(tmp_path / "set" / ("good" if number % 2 else "bad") / f"{number}.png", seed=number)
    labelled = ["--check", str(tmp_path / "set"), "--tolerance", "1", "--max-loss", "100"]
    assert main(["export", "sdp", *settings(tiny), *low, *labelled]) == 0
    assert "image_auroc" in capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    (accuracy,) = facts["accuracy"].values()
    assert set(accuracy["before"]) >= {"image_auroc"}
    assert facts["check"]["map"]["of_range"] > 1e-6  # eight bits leave a trace


@pytest.mark.skipif(not has_bf16(), reason="this CPU has no bfloat16 arithmetic")
@pytest.mark.parametrize("format_name", ["torch", "openvino"])
def test_bfloat16_is_near_and_the_head_is_exact(tiny, tmp_path, format_name):
    if format_name == "openvino":
        pytest.importorskip("openvino", reason="the extra 'export' is not installed")
    low = ["--format", format_name, "--precision", "bf16", "--tolerance", "0.05", "--output", str(tmp_path)]
    assert main(["export", "sdp", *settings(tiny), *low]) == 0
    model = ExportedModel.load(tmp_path, threads=1)
    assert 1e-6 < model.facts["check"]["map"]["of_range"] < 0.05
    assert model(np.zeros((3, 3, 64, 64), np.float32))[0].shape == (3, 64, 64)


def test_calibrated_eight_bits_leave_attention_alone(tiny, tmp_path):
    openvino = pytest.importorskip("openvino", reason="the extra 'export' is not installed")
    for number in range(4):
        write_picture(tmp_path / "good" / f"{number}.png", seed=number)
    low = ["--format", "openvino", "--precision", "int8", "--quantise-images", str(tmp_path / "good")]
    assert main(["export", "sdp", *settings(tiny), *low, "--tolerance", "0.5", "--output", str(tmp_path / "out")]) == 0
    model = openvino.Core().read_model(tmp_path / "out" / "model.xml")
    quantised = {
        one.get_friendly_name()
        for one in model.get_ops()
        if one.get_type_name() == "MatMul"
        and any(port.get_source_output().get_node().get_type_name() == "FakeQuantize" for port in one.inputs())
    }
    assert len(quantised) >= 4  # both blocks' first projection and MLP
    assert not quantised & set(attention_products(model))
    assert not any(name.startswith("head/") for name in quantised)
    off = json.loads((tmp_path / "out" / "model.json").read_text())["check"]["map"]["of_range"]
    assert 1e-6 < off < 0.5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--format", "onnx", "--precision", "bf16"], "ONNX Runtime"),
        (["--format", "openvino", "--precision", "int8"], "--quantise-images"),
        (["--format", "onnx", "--quantise-images", "good"], "leave it out"),
        (["--format", "onnx", "--image-size", "large"], "HxW"),
    ],
)
def test_what_does_not_go_together_is_told_first(given, words, tmp_path, capsys):
    assert main(["export", "sdp", *given, "--output", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_quantisation_images_serve_one_purpose(tiny, tmp_path):
    import pandas as pd

    from vlad.export.calibrate import refuse_known
    from vlad.export.check import CheckSet

    files = [str(tmp_path / "good" / f"{number}.png") for number in range(3)]
    for number, file in enumerate(files):
        write_picture(Path(file), seed=number)
    frame = pd.DataFrame({"image_path": files[:1], "row_crop": "", "frame": -1})
    refuse_known(frame, [], "", "object", None)
    with pytest.raises(OptionError, match="--calibrate takes too"):
        refuse_known(frame, [], str(tmp_path / "good"), "object", None)
    with pytest.raises(OptionError, match="--check measures"):
        refuse_known(frame, [CheckSet("set", iter, True, files)], "", "object", None)


def test_methods_that_cannot_be_exported_say_why(tiny):
    def method(name, **more):
        return vlad.get_method(name)(backbone=tiny, image_size=64, **{**SMALL[name], **more})

    assert "transductive" in refusal(method("musc"))
    assert "--model.as_published false" in refusal(method("sdp", image_fusion="minmax"))
    assert "--model.refinement" in refusal(method("clip_ada"))
    assert refusal(method("sdp")) == ""


def test_a_graph_of_fixed_batch_is_no_graph(tiny):
    from vlad.engines.convert import capture

    class Fixed(torch.nn.Module):
        def forward(self, images):
            return (images * torch.ones(len(images), 1, 1, 1),)

    with pytest.raises(MethodError, match="torch.export cannot trace it"):
        capture(Fixed(), torch.zeros(2, 3, 4, 4))
