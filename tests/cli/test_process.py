"""What needs processes of its own: two ranks, the installed command, and a third party's plug-in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tests_support import write_mvtec

pytestmark = pytest.mark.slow

PLUGIN = Path(__file__).parents[1] / "plugin"


@pytest.fixture
def vlad(tmp_path, tiny):
    write_mvtec(tmp_path / "mvtec_ad", count=3)
    (tmp_path / "mvtec_ad/bottle/test/good/002.png").unlink()  # 11 images: two ranks must pad

    def vlad(*arguments, path="", check=True, run=("-m", "vlad")):
        environment = {**os.environ, "PYTHONPATH": path, "VLAD_PLUGINS": ""}
        command = [sys.executable, *run, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return vlad


def options(tiny, method, *, layers=True):
    model = ["--model", method, "--model.backbone", tiny, "--model.image_size", "64"]
    return [
        *model,
        *(["--model.layers", "[2,4]"] if layers else []),
        "--data.root",
        ".",
        "--data.num_workers",
        "0",
        "--trainer.enable_progress_bar",
        "false",
    ]


TWO = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]


def test_two_processes_give_the_metrics_of_one(vlad, tiny, tmp_path):
    test = ["test", *options(tiny, "sdp"), "--data.test", "mvtec_ad", "--data.batch_size", "1"]  # one way of rounding
    vlad(*test)
    vlad(*test, *TWO)
    one, two = sorted(path for path in (tmp_path / "runs/sdp").iterdir() if path.is_dir())
    assert json.loads((one / "test_metrics.json").read_text()) == json.loads((two / "test_metrics.json").read_text())
    pd.testing.assert_frame_equal(pd.read_csv(one / "test_scores.csv"), pd.read_csv(two / "test_scores.csv"))
    assert len(list(two.glob("heatmaps/*/**/*.png"))) == 11
    assert (one / "heatmaps/scale.json").read_text() == (two / "heatmaps/scale.json").read_text()


@pytest.mark.parametrize(("method", "settings"), [("sdp_plus", []), ("aa_clip", ["--model.text_epochs", "1"])])
def test_two_processes_train(vlad, tiny, tmp_path, method, settings):
    """Also where a stage of the training leaves some of what is trained alone."""
    train = ["--data.train", "mvtec_ad", "--trainer.max_epochs", "2", *TWO]
    vlad("fit", *options(tiny, method), *settings, *train)
    assert len(list((tmp_path / "runs" / method).glob("*/checkpoints/*.ckpt"))) == 2


def test_nothing_of_two_processes_is_left_running(vlad, tiny, tmp_path):
    """A thread of Gloo's that outlives the command may abort Python's end."""
    script = tmp_path / "command.py"  # each process is started by this file's path
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom vlad.cli import main\nstatus = main()\n"
        'threads = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]\n'
        'sys.exit(status or any("gloo" in thread for thread in threads))\n'
    )
    vlad("fit", *options(tiny, "sdp_plus"), "--data.train", "mvtec_ad", "--trainer.max_epochs", "1", *TWO, run=[script])


def test_two_processes_predict_each_picture_once(vlad, tiny, tmp_path):
    vlad("predict", "mvtec_ad/bottle/test", *options(tiny, "sdp"), *TWO)
    assert len(pd.read_csv(next(tmp_path.glob("runs/sdp/*/predictions.csv")))) == 5


def test_an_error_in_a_process_is_one_line(vlad, tiny, tmp_path):
    (tmp_path / "mvtec_ad/bottle/test/good/001.png").write_bytes(b"x")
    done = vlad("test", *options(tiny, "sdp"), "--data.test", "mvtec_ad", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("vlad test: 1 file cannot be used")
    assert "mvtec_ad/bottle/test/good/001.png" in line


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_process_fails_all_end_and_the_last_line_is_the_cause(vlad, tiny, tmp_path, rank):
    script = tmp_path / "command.py"
    script.write_text(
        "import os, sys\nfrom vlad.cli import main\nfrom vlad.errors import DataError\n"
        "from vlad.methods.loops import Loops\nstep = Loops.training_step\n"
        "def training_step(self, batch, number):\n"
        f"    if number == 1 and self.global_rank == {rank}: raise DataError('the disk is broken')\n"
        "    return step(self, batch, number)\n"
        "Loops.training_step = training_step\nsys.exit(main())\n"
    )
    fit = ["fit", *options(tiny, "sdp_plus"), "--data.train", "mvtec_ad", "--data.batch_size", "1"]
    done = vlad(*fit, "--trainer.max_epochs", "50", *TWO, run=[script], check=False)
    assert done.returncode == 1
    suffix = " (process 1)" if rank else ""
    assert done.stderr.strip().splitlines()[-1] == f"vlad fit: the disk is broken{suffix}"
    assert "Traceback" not in done.stderr


def test_help_and_print_config(vlad, tiny):
    out = vlad("fit", "--model.help", "sdp_plus").stdout
    assert "--model.lr" in out
    printed = vlad("test", *options(tiny, "sdp"), "--data.test", "mvtec_ad", "--print_config").stdout
    assert "class_path: vlad.methods.sdp.SDP" in printed


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The third party's distribution, built and installed by pip, without a network, in a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    subprocess.run([*command, "--target", str(target), str(PLUGIN)], check=True, capture_output=True)
    return str(target)


def test_plugin_is_listed_fitted_and_tested_by_its_short_name(vlad, plugin, tiny, tmp_path):
    listed = {row["name"]: row for row in json.loads(vlad("methods", "--json", path=plugin).stdout)}
    assert listed["mean_cosine"]["from"] == "vlad_mean 0.3"
    assert "prototype" in listed["mean_cosine"]["summary"]
    vlad("fit", *options(tiny, "mean-cosine", layers=False), "--data.train", "mvtec_ad", path=plugin)
    (run,) = (path for path in (tmp_path / "runs/mean_cosine").iterdir() if path.is_dir())
    data = ["--data.root", ".", "--data.test", "mvtec_ad", "--data.num_workers", "0"]
    assert "metal_nut" in vlad("test", "--ckpt_path", str(run), *data, path=plugin).stdout
    config = tmp_path / "exp.yaml"
    config.write_text(f"model: {{class_path: mean_cosine, backbone: '{tiny}'}}\ndata: {{root: ., test: mvtec_ad}}\n")
    vlad("test", "--config", "exp.yaml", "--allow-untrained", path=plugin)


def test_plugin_passes_the_conformance_suite(plugin, tiny, monkeypatch):
    monkeypatch.syspath_prepend(plugin)
    from vlad_mean import MeanCosine

    from vlad.testing import check_method

    check_method(MeanCosine, backbone=tiny)


def test_broken_plugin_is_named_and_breaks_nothing(vlad, plugin, tiny):
    assert "brokenclip" in vlad("methods", path=plugin).stdout
    done = vlad("test", "--model", "brokenclip", "--data.test", "x", path=plugin, check=False)
    assert done.returncode == 1
    assert "method 'brokenclip' (vlad_mean.broken.Broken, from vlad_mean 0.3) failed to import" in done.stderr
    assert "No module named 'a_package_that_is_not_there'" in done.stderr
    assert "Traceback" not in done.stderr
    vlad("test", *options(tiny, "sdp"), "--data.test", "mvtec_ad", path=plugin)
