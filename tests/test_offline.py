"""Weights in a folder: what was downloaded, with digests; what the folder lacks is not downloaded."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from tests_support import write_picture

import vlad
from vlad import offline
from vlad.cli import main
from vlad.clip.loading import _find_weights
from vlad.encoders import load_encoder
from vlad.errors import WeightsError
from vlad.published import Published

TOWER = "timm:vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has the weights of a small tower, and counts the downloads."""
    torch.manual_seed(0)
    file = tmp_path / "model.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), file)
    asked = []

    def download(repository, name, **_):
        asked.append(name)
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def get(tmp_path, *more):
    return main(["weights", "get", "patch_memory", "--backbone", TOWER, "--output", str(tmp_path / "weights"), *more])


def test_a_run_takes_its_weights_from_the_folder(hub, tmp_path, capsys):
    assert get(tmp_path) == 0
    assert main(["weights", "check", str(tmp_path / "weights")]) == 0
    assert "1 weights files, all as they were downloaded" in capsys.readouterr().out
    there = len(hub)
    for name in ("a", "b"):
        write_picture(tmp_path / "good" / f"{name}.png")
    words = ["--model", "patch_memory", "--model.backbone", TOWER, "--model.pretrained", "null"]
    words += ["--model.image_size", "64", "--model.layers", "[1]", "--references", str(tmp_path / "good")]
    words += ["--weights-dir", str(tmp_path / "weights"), "--output", str(tmp_path / "out"), "--data.num_workers", "0"]
    assert main(["predict", str(tmp_path / "good/a.png"), *words, "--allow-overlap"]) == 0, capsys.readouterr().err
    assert len(hub) == there
    digest = next(iter(offline.read_manifest(tmp_path / "weights").values()))["sha256"]
    assert digest in (tmp_path / "out/run.json").read_text()


def test_what_the_folder_lacks_is_not_downloaded(hub, tmp_path, monkeypatch):
    get(tmp_path)
    monkeypatch.setenv(offline.VARIABLE, str(tmp_path / "weights"))
    there = len(hub)
    with pytest.raises(WeightsError, match=r"holds no timm:.*small.*vlad weights get METHOD"):
        load_encoder("timm:vit_small_patch14_dinov2.lvd142m", text=False)
    with pytest.raises(WeightsError, match="holds no open_clip:ViT-B-32:openai"):
        _find_weights("ViT-B-32", "ViT-B-32", "openai", "openai")
    with pytest.raises(WeightsError, match="holds no model:some/repository/w.pth"):
        Published("some/repository", "w.pth", "0").fetch()
    assert len(hub) == there


def test_a_damaged_copy_is_refused(hub, tmp_path, monkeypatch, capsys):
    get(tmp_path)
    (entry,) = offline.read_manifest(tmp_path / "weights").values()
    file = tmp_path / "weights" / entry["file"]
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert main(["weights", "check", str(tmp_path / "weights")]) == 1
    assert "is not the one that weights.json tells of" in capsys.readouterr().err
    monkeypatch.setenv(offline.VARIABLE, str(tmp_path / "weights"))
    with pytest.raises(WeightsError, match="damaged"):
        vlad.load("patch_memory", backbone=TOWER, pretrained=None, image_size=64, layers=[1])
    monkeypatch.delenv(offline.VARIABLE)
    assert get(tmp_path) == 0  # and made whole again
    assert main(["weights", "check", str(tmp_path / "weights")]) == 0


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 2, "files": {}}', '{"format": 1, "files": {"k": {"file": "../x", "sha256": ""}}}']
)
def test_a_folder_of_something_else_is_refused(content, tmp_path, capsys):
    (tmp_path / offline.MANIFEST).write_text(content)
    assert main(["predict", str(tmp_path), "--weights-dir", str(tmp_path)]) == 1
    assert offline.MANIFEST in capsys.readouterr().err


def test_the_option_is_refused_where_no_weights_are_loaded(capsys):
    assert main(["methods", "--weights-dir", "x"]) == 2
    assert "has no effect here" in capsys.readouterr().err


def test_a_method_of_vlad_tiny_needs_nothing(tmp_path, capsys):
    assert main(["weights", "get", "sdp", "--backbone", "vlad-tiny", "--output", str(tmp_path / "w")]) == 0
    assert "nothing to download" in capsys.readouterr().out
    assert json.loads((tmp_path / "w/weights.json").read_text())["files"] == {}
