"""A method from Python in one call: by name, from a run folder, from a checkpoint."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tests_support import SMALL, save_run

import vlad
from vlad.errors import MethodError, RegistryError, WeightsError
from vlad.methods.sdp import SDP
from vlad.methods.sdp_plus import SDPPlus
from vlad.testing import random_batch


@pytest.fixture
def trained(tiny, tmp_path):
    """The run folder of a trained SDP+."""
    method = SDPPlus(backbone=tiny, image_size=64, layers=[2, 4])
    method.origin = "fit"
    return save_run(method, tmp_path / "trained")


def test_by_name_with_overrides(tiny):
    method = vlad.load("sdp", backbone=tiny, image_size=96, layers=[1, 4]).method
    assert not method.training
    assert method.requirements.preprocess.size == 96
    with pytest.raises(MethodError, match="SDP has no argument 'image_sise'; did you mean image_size"):
        vlad.load("sdp", image_sise=3)
    with pytest.raises(RegistryError, match="did you mean sdp"):
        vlad.load("sdb")


def test_a_layer_out_of_range_is_named(tiny):
    with pytest.raises(MethodError, match=r"from 1 to 4, got \[3, 6\]"):
        vlad.load("sdp", backbone=tiny, image_size=64, layers=[3, 6])


# -- untrained -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdp_plus", "adaclip", "clip_ada"])
def test_an_untrained_method_is_refused_unless_asked_for(name, tiny):
    options = {"backbone": tiny, "image_size": 64, **SMALL[name]}
    with pytest.raises(MethodError, match=r"has not been trained: .*--model\.weights .*--allow-untrained"):
        vlad.load(name, **options)
    method = vlad.get_method(name)(**options).eval()
    batch = random_batch(1, method.requirements.preprocess.size)
    with pytest.raises(MethodError, match="has not been trained"):
        method.score(batch["image"], batch["class_name"])
    with torch.no_grad():
        experiment = vlad.load(name, allow_untrained=True, **options).method
        assert experiment.score(batch["image"], batch["class_name"]).image_score.isfinite().all()


def test_a_training_free_method_needs_nothing(tiny):
    assert vlad.load("sdp", backbone=tiny, image_size=64, layers=[4]).method.origin == ""


def test_a_method_of_references_loads_by_name_and_scores_once_fitted(tiny):
    method = vlad.load("patch_memory", backbone=tiny, image_size=64).method
    batch = random_batch(2)
    with pytest.raises(MethodError, match="compares with reference images and has none: give --shots"):
        method.score(batch["image"], batch["class_name"])
    method.fit_references([batch])
    assert method.score(batch["image"], batch["class_name"]).anomaly_map.abs().max() < 1e-3


def test_an_untrained_checkpoint_is_still_untrained(tiny, tmp_path):
    """Of a method that was fitted on references, saved, and never trained."""
    method = SDPPlus(backbone=tiny, image_size=64, layers=[2, 4])
    restored = vlad.load(save_run(method, tmp_path / "run"), allow_untrained=True).method
    assert restored.origin == ""
    with pytest.raises(WeightsError, match="run is of an untrained SDPPlus"):
        vlad.load(tmp_path / "run")
    with pytest.raises(WeightsError, match="run is of an untrained SDPPlus"):
        SDPPlus(backbone=tiny, image_size=64, layers=[2, 4], weights=str(tmp_path / "run"))


# -- run folders ---------------------------------------------------------------------------------------------


def write_run(folder, method, verb="test", **config):
    """Writes the config that a run without a checkpoint of its own leaves."""
    folder.mkdir()
    model = {"class_path": f"{type(method).__module__}.{type(method).__name__}", "init_args": dict(method.hparams)}
    (folder / f"{verb}.yaml").write_text(yaml.safe_dump({"model": model, **config}))
    return folder


def test_a_training_free_run_gives_its_method(tiny, tmp_path):
    run = write_run(tmp_path / "run", SDP(backbone=tiny, image_size=64, layers=[2], sigma=3.0))
    method = vlad.load(run).method
    assert (type(method), method.layers, method.sigma) == (SDP, (2,), 3.0)
    assert vlad.load(run, sigma=1.0).method.sigma == 1.0
    with pytest.raises(MethodError, match="did you mean sigma"):
        vlad.load(run, sigmaa=1.0)


def test_a_test_run_of_a_checkpoint_gives_the_checkpoints_method(tiny, tmp_path, trained):
    run = write_run(tmp_path / "run", SDPPlus(backbone=tiny, image_size=64, layers=[2, 4]), ckpt_path=str(trained))
    method, expected = vlad.load(run).method, vlad.load(trained).method
    assert method.origin == "fit"
    assert torch.equal(method.heads[0].weight, expected.heads[0].weight)


def test_a_test_run_of_weights_gives_them_again(tiny, tmp_path, trained):
    """``weights`` is no hyper-parameter of a checkpoint, but it is in the config."""
    run = write_run(tmp_path / "run", SDPPlus(backbone=tiny, image_size=64, layers=[2, 4]))
    config = yaml.safe_load((run / "test.yaml").read_text())
    config["model"]["init_args"]["weights"] = str(trained)
    (run / "test.yaml").write_text(yaml.safe_dump(config))
    assert torch.equal(vlad.load(run).method.heads[0].weight, vlad.load(trained).method.heads[0].weight)


def test_a_test_run_of_an_untrained_method_is_refused(tiny, tmp_path):
    run = write_run(tmp_path / "run", SDPPlus(backbone=tiny, image_size=64, layers=[2, 4]))
    with pytest.raises(WeightsError, match="run is of an untrained SDPPlus.*give the folder of the fit run"):
        vlad.load(run)
    assert vlad.load(run, allow_untrained=True).method.origin == ""


def test_a_test_run_with_references_that_were_not_saved_is_refused(tiny, tmp_path, trained):
    for number, options in enumerate(({}, {"ckpt_path": str(trained)})):
        method = (SDPPlus if options else SDP)(backbone=tiny, image_size=64, layers=[2, 4])
        run = write_run(tmp_path / f"run{number}", method, **options)
        (run / "references.csv").write_text("dataset,category\n")
        with pytest.raises(WeightsError, match=r"did not save what was fitted on them: .*--references\.save true"):
            vlad.load(run)


def test_a_folder_of_anything_else_is_refused(tmp_path):
    (tmp_path / "notes.yaml").write_text("a: 1\n")
    with pytest.raises(WeightsError, match="is not a run folder: it holds neither checkpoints"):
        vlad.load(tmp_path)
    with pytest.raises(WeightsError, match=r"weights file .*none\.ckpt does not exist"):
        vlad.load(tmp_path / "none.ckpt")


def test_the_latest_run_is_found_without_links(tiny, tmp_path, capsys):
    write_run(tmp_path / "first", SDP(backbone=tiny, image_size=64, layers=[2], sigma=3.0))
    (tmp_path / "latest").write_text("first\n")
    assert vlad.load(tmp_path / "latest").method.sigma == 3.0
    assert vlad.load(str(tmp_path / "latest"), sigma=1.0).method.sigma == 1.0


def test_a_checkpoint_that_was_moved_with_its_test_is_found(tiny, tmp_path, trained):
    run = write_run(tmp_path / "run", SDPPlus(backbone=tiny, image_size=64, layers=[2, 4]), ckpt_path="/gone.ckpt")
    link = {"file": "../trained/checkpoints/epoch=0.ckpt", "path": "/gone.ckpt"}
    (run / "run.json").write_text(json.dumps({"verb": "test", "checkpoint": link}))
    assert torch.equal(vlad.load(run).method.heads[0].weight, vlad.load(trained).method.heads[0].weight)


def test_a_folder_named_like_a_method_does_not_hide_it(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sdp").mkdir()
    assert isinstance(vlad.load("sdp", backbone=tiny, image_size=64, layers=[2]).method, SDP)
    with pytest.raises(WeightsError, match="is not a run folder"):
        vlad.load("./sdp")


@pytest.mark.parametrize("path", ["runs/none", Path("none"), "none.ckpt"])
def test_a_path_that_leads_nowhere_is_told(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="none(.ckpt)? does not exist"):
        vlad.load(path)


# -- what a checkpoint cannot do -----------------------------------------------------------------------------


def test_a_checkpoint_cannot_name_a_class_that_is_no_method(trained, tmp_path, monkeypatch):
    file = trained / "checkpoints" / "epoch=0.ckpt"
    content = torch.load(file, weights_only=True)
    content["vlad"] |= {"class_path": "subprocess.Popen"}
    del content["vlad"]["checksum"]
    content["hyper_parameters"] = {"args": ["touch", str(tmp_path / "ran")]}
    torch.save(content, file)
    with pytest.raises(RegistryError, match="is not a subclass of vlad.Method"):
        vlad.load(trained)
    assert not (tmp_path / "ran").exists()


def test_a_ready_encoder_is_asked_for_again(tiny, tmp_path):
    from vlad.encoders import load_encoder

    encoder = load_encoder(tiny)
    run = save_run(SDP(backbone=encoder, image_size=64, layers=[2, 4]), tmp_path / "run")
    with pytest.raises(WeightsError, match=r"made with a ready encoder object; give it again"):
        vlad.load(run)
    assert vlad.load(run, backbone=encoder).method.backbone is encoder
