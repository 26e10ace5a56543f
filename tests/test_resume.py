"""A training that was interrupted goes on where its newest whole checkpoint says, with its own config."""

import os

import pytest
import torch
import yaml
from tests_support import write_picture

from vlad.checkpoint import read_checkpoint
from vlad.cli import main
from vlad.errors import WeightsError
from vlad.runs.pointers import newest_first
from vlad.runs.resume import config_of, resume_point, run_meant

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def fitted(tmp_path, monkeypatch, tiny):
    """Two runs of three epochs: one whole; one whose last epoch is not done, its checkpoints from the first."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        write_picture(tmp_path / f"own/{'bad' if number % 2 else 'good'}/{number}.png", (32, 32), seed=number)

    def fit(*options):
        model = ["--model", "sdp_plus", "--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]"]
        data = ["--data.train", "own/", "--data.batch_size", "2", "--data.num_workers", "0"]
        return main(["fit", *model, *data, *QUIET, *options])

    return fit


def tensors(run):
    return read_checkpoint(newest_first(run)[0])["state_dict"]


def test_a_run_goes_on_with_its_config_to_the_same_weights(fitted, tmp_path, capsys):
    assert fitted("--trainer.max_epochs", "3", "--output", "whole") == 0
    newest, before = newest_first(tmp_path / "whole")
    whole = tensors(tmp_path / "whole")
    newest.write_bytes(newest.read_bytes()[:5000])
    capsys.readouterr()
    assert main(["fit", "--ckpt_path", "whole", *QUIET, "--output", "again"]) == 0
    out = capsys.readouterr().out
    assert f"{newest.relative_to(tmp_path)} cannot be read as weights" in out
    assert f"going on from {before.relative_to(tmp_path)}" in out
    again = tensors(tmp_path / "again")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert yaml.safe_load((tmp_path / "again/fit.yaml").read_text())["trainer"]["max_epochs"] == 3
    before.write_bytes(b"")
    assert main(["fit", "--ckpt_path", "whole", *QUIET]) == 1
    assert f"vlad fit: {before.relative_to(tmp_path)} cannot be read as weights" in capsys.readouterr().err


def test_last_is_the_newest_run(fitted, tmp_path, capsys):
    assert main(["fit", "--ckpt_path", "last", *QUIET]) == 1
    assert "runs/latest does not exist: no run has been made there yet" in capsys.readouterr().err
    assert fitted("--trainer.max_epochs", "1") == 0
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", *QUIET]) == 0
    _, second = sorted((tmp_path / "runs/sdp_plus").glob("*_fit_own*"))
    assert {file.name for file in newest_first(second)} == {"epoch=1-step=6.ckpt"}


def test_a_run_without_checkpoints_stands_for_the_one_that_it_went_on_from(fitted, tmp_path):
    assert fitted("--trainer.max_epochs", "1", "--output", "a") == 0
    (tmp_path / "b").mkdir()
    config = yaml.safe_load((tmp_path / "a/fit.yaml").read_text())
    (tmp_path / "b/fit.yaml").write_text(yaml.safe_dump(config | {"ckpt_path": "a"}))
    assert resume_point("b")[0] == newest_first(tmp_path / "a")[0].relative_to(tmp_path)


def test_weights_alone_are_no_state_of_a_training(fitted, tmp_path):
    assert fitted("--trainer.max_epochs", "1", "--output", "a") == 0
    assert main(["export-weights", "a", "-o", "w.safetensors"]) == 0
    with pytest.raises(WeightsError, match="holds weights and no state of a training: give it as --model.weights"):
        resume_point("w.safetensors")


def test_a_config_that_is_found_runs_no_code_of_others(tmp_path):
    (tmp_path / "fit.yaml").write_text("model: {class_path: vlad.methods.sdp.SDP}\noutput: x\nckpt_path: y\n")
    assert yaml.safe_load(config_of(tmp_path)) == {"model": {"class_path": "vlad.methods.sdp.SDP"}}
    (tmp_path / "fit.yaml").write_text("trainer: {callbacks: [{class_path: os.system}]}\n")
    with pytest.raises(WeightsError, match=r"names os.system, which is no part of vlad: if you trust it, .*--config"):
        config_of(tmp_path)
    assert config_of(tmp_path / "none") == ""


def test_a_file_may_be_called_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_meant("last", "runs") == os.path.join("runs", "latest")
    (tmp_path / "last").mkdir()
    assert run_meant("last", "runs") == "last"
