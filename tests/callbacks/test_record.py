"""The record of a run: what it was, how it goes, and what it points to."""

import contextlib
import json
import shlex
from pathlib import Path

import pandas as pd
import pytest
import yaml

import vlad
from vlad.cli import main
from vlad.errors import OptionError
from vlad.runs import resolve_run

QUIET = ["--trainer.enable_progress_bar", "false", "--data.num_workers", "0"]
FIT = ["fit", "--data.root", ".", "--data.train", "mvtec_ad", "--trainer.max_epochs", "3"]
TEST = ["test", "--data.root", ".", "--data.test", "mvtec_ad", "--heatmaps.enabled", "false"]


@pytest.fixture
def here(mvtec, tiny, monkeypatch):
    monkeypatch.chdir(mvtec)
    return ["--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]", *QUIET]


def record(folder=None):
    return json.loads(((folder or resolve_run("runs/latest")) / "run.json").read_text())


def test_the_record_of_a_test(here, tiny):
    command = [*TEST, "--model", "sdp", *here]
    assert main(command) == 0
    found = record()
    assert found["status"] == "finished"
    assert found["started"] <= found["ended"]
    assert found["command"] == ["vlad", *command]
    assert shlex.split(found["command_line"]) == found["command"]
    assert found["working_folder"] == str(Path.cwd())
    assert found["verb"] == "test"
    assert found["checkpoint"] is None
    counts = {"categories": 2, "images": 12, "normal": 6, "anomalous": 6, "unlabelled": 0}
    assert found["data"]["test"] == [{"dataset": "mvtec_ad", **counts}]
    assert found["method"]["class_path"] == "vlad.methods.sdp.SDP"
    assert {"torch", "lightning", "numpy"} <= set(found["packages"])
    assert found["threads"] >= 1
    assert found["device"]
    options = yaml.safe_load((resolve_run("runs/latest") / "hparams.yaml").read_text())
    assert (options["sigma"], options["backbone"]) == (8.0, tiny)
    assert not [name for name in options if name.startswith("_")]


def test_it_is_there_while_the_run_goes(here, monkeypatch):
    states = []
    compare = vlad.get_method("sdp").compare

    def look(self, *args, **kwargs):
        states.append(record()["status"])
        return compare(self, *args, **kwargs)

    monkeypatch.setattr(vlad.get_method("sdp"), "compare", look)
    assert main([*TEST, "--model", "sdp", *here]) == 0
    assert set(states) == {"running"}


@pytest.mark.parametrize(
    ("error", "status"), [(OptionError("no more"), "failed"), (KeyboardInterrupt(), "stopped"), (OSError(), "failed")]
)
def test_a_run_that_ends_early_says_so(here, monkeypatch, error, status):
    compare = vlad.get_method("sdp").compare
    calls = []

    def fail(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 1:
            raise error
        return compare(self, *args, **kwargs)

    monkeypatch.setattr(vlad.get_method("sdp"), "compare", fail)
    with contextlib.suppress(OSError):  # no error of ours: the program would show its traceback
        main([*TEST, "--model", "sdp", *here, "--data.batch_size", "2"])
    assert record()["status"] == status
    assert record()["error"] == (str(error) or type(error).__name__)


def test_a_test_points_to_its_fit(here):
    assert main([*FIT, "--model", "sdp_plus", *here]) == 0
    fit = resolve_run("runs/latest")
    assert record()["checkpoint"] is None
    for given in ("runs/latest", str(fit), "runs/latest"):  # the last time the newest run is a test
        assert main([*TEST, *QUIET, "--ckpt_path", given]) == 0
        link = record()["checkpoint"]
        assert (resolve_run("runs/latest") / link["run"]).resolve() == fit.resolve()
        assert Path(link["path"]).is_file()
    assert vlad.load("runs/latest").method.origin == "fit"
    weights = ["--model.weights", str(fit)]
    assert main([*TEST, "--model", "sdp_plus", *here, *weights]) == 0
    assert record()["checkpoint"]["run"] == f"../{fit.name}"


def test_means_of_the_losses_are_logged_whatever_the_steps(here):
    assert main([*FIT, "--model", "sdp_plus", *here, "--trainer.log_every_n_steps", "1000"]) == 0
    table = pd.read_csv(resolve_run("runs/latest") / "metrics.csv")
    assert table["epoch"].tolist() == [0, 1, 2]
    assert table[["train/loss_epoch", "train/focal_epoch", "train/dice_epoch"]].notna().all().all()
    terms = table["train/focal_epoch"] + table["train/dice_epoch"]
    assert table["train/loss_epoch"].tolist() == pytest.approx(terms.tolist(), rel=1e-5)


def test_next_is_said_where_it_works(here, capsys):
    assert main([*FIT, "--model", "sdp_plus", *here]) == 0
    assert "next:" not in capsys.readouterr().out  # nothing to test on is known
    Path("other").mkdir()
    for test, said in (("mvtec_ad", False), ("headct", False), ("[{name: mvtec_ad, categories: [metal_nut]}]", True)):
        Path("c.yaml").write_text(f"data: {{root: ., train: {{name: mvtec_ad, categories: [bottle]}}, test: {test}}}")
        assert main(["fit", "--config", "c.yaml", "--trainer.max_epochs", "1", "--model", "sdp_plus", *here]) == 0
        out = capsys.readouterr().out
        assert ("next:" in out) == said  # trained on, not there, all right
    command = shlex.split(out.partition("next: ")[2].strip())
    assert command[:4] == ["vlad", "test", "--ckpt_path", str(resolve_run("runs/latest"))]
    assert main(command[1:]) == 0
    assert record()["data"]["test"][0]["images"] == 6
