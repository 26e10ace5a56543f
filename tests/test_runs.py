"""Run folders: named, made when a run has really started, by one run alone, and found again."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from lightning.pytorch.loggers import Logger
from tests_support import write_picture

import vlad
from vlad.cli import main
from vlad.cli.loggers import expand_logger, expand_logger_text
from vlad.errors import OptionError, OutputError, WeightsError
from vlad.published import find_checkpoint
from vlad.runs import RunLogger, TensorBoard, WandB, data_name, resolve_run
from vlad.runs.loggers import Deferred
from vlad.runs.pointers import RECORD, point_to, run_name, slug, write_latest

QUIET = ["--trainer.enable_progress_bar", "false", "--data.num_workers", "0"]
NO_MAPS = ["--heatmaps.enabled", "false"]


@pytest.fixture
def here(mvtec, tiny, monkeypatch):
    """A folder with a small data set to run in; returns the options of a small method."""
    monkeypatch.chdir(mvtec)
    return ["--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]", *QUIET]


# -- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("parts/photos/", "photos"),
        ("photos/one image.png", "one-image"),
        ("in/*.png", "in"),
        ("mvtec_ad", "mvtec_ad"),
        (["mvtec_ad", "visa", "btad"], "mvtec_ad+2"),
        ({"name": "headct", "root": "/data"}, "headct"),
        (SimpleNamespace(name=None, root="/data/parts"), "parts"),
        ("Prüfteile (März)", "Prufteile-Marz"),
        ("写真", ""),
        (None, ""),
        ([], ""),
        ("x" * 300, "x" * 40),
        (["y" * 300, "b"], "y" * 38 + "+1"),
    ],
)
def test_the_name_of_data(given, name):
    assert data_name(given) == name


def test_data_in_the_folder_itself_have_its_name(tmp_path, monkeypatch):
    (tmp_path / "cam1").mkdir()
    monkeypatch.chdir(tmp_path / "cam1")
    assert data_name(".") == data_name("../cam1/") == data_name("*.png") == "cam1"


def test_a_run_is_named_by_date_verb_and_data():
    assert run_name("predict", "photos") == f"{date.today().isoformat()}_predict_photos"
    assert run_name("fit") == f"{date.today().isoformat()}_fit"
    assert slug("../../etc") == "etc"


# -- making the folder -----------------------------------------------------------------------------------------


def test_nothing_is_made_before_the_run_begins(tmp_path):
    logger = RunLogger(tmp_path / "runs", "sdp", "r")
    assert logger.log_dir == str(tmp_path / "runs/sdp/r")
    logger.experiment.log_metrics({"a": 1.0})  # Lightning asks for it before it looks at data
    logger.log_hyperparams({"sigma": 4.0, "_class_path": "x", "_instantiator": "y"})
    logger.save()
    logger.finalize("failed")
    assert not (tmp_path / "runs").exists()
    folder = logger.begin()
    assert folder == logger.begin() == tmp_path / "runs/sdp/r"
    assert yaml.safe_load((folder / "hparams.yaml").read_text()) == {"sigma": 4.0}  # without internals
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.save()
    assert (folder / "metrics.csv").read_text().split() == ["loss,step", "1.0,0"]


def test_a_row_of_metrics_makes_the_folder_and_log_false_leaves_the_log_out(tmp_path):
    logger = RunLogger(tmp_path, "sdp", "r")
    logger.log_metrics({"loss": 1.0}, step=0)
    assert (tmp_path / "sdp/r").is_dir()
    silent = RunLogger(tmp_path, "sdp", "s", log=False)
    silent.log_hyperparams({"sigma": 4.0})
    silent.log_metrics({"loss": 1.0}, step=0)
    assert not (tmp_path / "sdp/s").exists()
    assert list(silent.begin().iterdir()) == []


def test_runs_that_are_started_at_once_never_share_a_folder(tmp_path):
    loggers = [RunLogger(tmp_path / "runs", "sdp", "r") for _ in range(16)]
    assert len({logger.log_dir for logger in loggers}) == 1  # all have looked before any has made its own
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(RunLogger.begin, loggers))
    assert {path.name for path in made} == {"r", *(f"r_{i}" for i in range(2, 17))}


def test_a_named_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("old").mkdir()
    Path("old/file").touch()
    Path("empty").mkdir()
    with pytest.raises(OptionError, match="--output old holds files already"):
        RunLogger(output="old")
    with pytest.raises(OptionError, match=r"--output old/file is a file; name a folder"):
        RunLogger(output="old/file", resumes=True)
    assert RunLogger(output="empty").begin() == Path("empty")
    assert RunLogger(output="a/b/").begin() == Path("a/b")
    resumed = RunLogger(output="old", resumes=True)
    assert (resumed.begin(), resumed.made) == (Path("old"), False)
    assert (resumed.log_dir, resumed.version) == ("old", "old")
    resumed.discard()
    assert Path("old/file").exists()
    assert not list(tmp_path.rglob("latest"))


def test_a_folder_that_cannot_be_made_is_told_ahead(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be made: .*file is no folder; name a folder .* by --output"):
        RunLogger(tmp_path / "file", "sdp", "r")
    logger = RunLogger(tmp_path / "runs", "sdp", "r")
    (tmp_path / "runs").touch()
    with pytest.raises(OutputError, match=r"cannot be made: .*runs"):
        logger.begin()


def test_a_run_that_has_done_nothing_is_discarded(tmp_path):
    first = RunLogger(tmp_path / "runs", "sdp", "r")
    first.begin()
    (first.folder / "test_scores.csv").touch()
    second = RunLogger(tmp_path / "runs", "sdp", "r")
    second.begin()
    for name in ("run.json", "test.yaml", "parts/lock"):
        (second.folder / name).parent.mkdir(exist_ok=True)
        (second.folder / name).touch()
    second.discard()
    assert not second.folder.exists()
    assert resolve_run(tmp_path / "runs/latest") == resolve_run(tmp_path / "runs/sdp/latest") == first.folder
    first.discard()  # it holds results
    assert first.folder.exists()
    alone = RunLogger(tmp_path / "other", "sdp", "r")
    alone.begin()
    alone.discard()
    assert not (tmp_path / "other").exists()


# -- pointers --------------------------------------------------------------------------------------------------


def test_latest_names_the_newest_run(tmp_path, capsys):
    for name in ("a", "b"):
        RunLogger(tmp_path / "runs", "sdp", name).begin()
    RunLogger(tmp_path / "runs", "adaclip", "c").begin()
    assert (tmp_path / "runs/latest").read_text() == "adaclip/c\n"
    assert (tmp_path / "runs/sdp/latest").read_text() == "b\n"
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    latest = tmp_path / "moved/latest"
    assert resolve_run(latest) == resolve_run(str(latest)) == tmp_path / "moved/adaclip/c"
    assert capsys.readouterr().err == f"{latest}: {tmp_path / 'moved/adaclip/c'}\n"  # said once
    (tmp_path / "moved/adaclip/c").rmdir()
    with pytest.raises(WeightsError, match="latest names the run adaclip/c, which is not there"):
        find_checkpoint(latest)
    latest.write_text("")
    with pytest.raises(WeightsError, match=r"names the run \(none\)"):
        resolve_run(latest)
    latest.write_bytes(b"\xff\xfe")
    with pytest.raises(WeightsError, match="latest cannot be read"):
        resolve_run(latest)
    with pytest.raises(WeightsError, match="nix/latest does not exist: no run has been made there yet"):
        find_checkpoint(tmp_path / "nix/latest")
    assert resolve_run(tmp_path / "x.ckpt") == tmp_path / "x.ckpt"


def test_somebodys_own_link_named_latest_stays(tmp_path):
    (tmp_path / "runs/sdp/x").mkdir(parents=True)
    (tmp_path / "runs/latest").symlink_to("sdp/x")
    RunLogger(tmp_path / "runs", "sdp", "r").begin()
    assert (tmp_path / "runs/latest").is_symlink()
    assert resolve_run(tmp_path / "runs/latest").resolve() == tmp_path / "runs/sdp/x"


def test_a_test_stands_for_the_checkpoint_that_it_was_given(tmp_path):
    fit, test = tmp_path / "runs/sdp/fit", tmp_path / "runs/sdp/test"
    (fit / "checkpoints").mkdir(parents=True)
    test.mkdir()
    for name in ("a", "b"):
        (fit / f"checkpoints/{name}.ckpt").touch()
    record = {"verb": "test", "checkpoint": point_to(fit / "checkpoints/a.ckpt", test)}
    assert record["checkpoint"]["run"] == "../fit"
    (test / RECORD).write_text(json.dumps(record))
    write_latest(tmp_path / "runs", test)
    assert find_checkpoint(tmp_path / "runs/latest") == fit / "checkpoints/a.ckpt"  # that one, not the newest
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    assert find_checkpoint(tmp_path / "copy/latest") == tmp_path / "copy/sdp/fit/checkpoints/a.ckpt"
    shutil.move(test, tmp_path / "alone")
    assert find_checkpoint(tmp_path / "alone") == fit / "checkpoints/a.ckpt"
    (fit / "checkpoints/a.ckpt").unlink()
    with pytest.raises(WeightsError, match=r"was given the checkpoint .*a\.ckpt, which is gone"):
        find_checkpoint(tmp_path / "alone")
    for damaged in ("", "[]", '{"verb": "fit", "checkpoint": {}}', '{"checkpoint": null}'):
        (tmp_path / "alone" / RECORD).write_text(damaged)
        with pytest.raises(WeightsError, match="holds no checkpoints"):
            find_checkpoint(tmp_path / "alone")


# -- loggers ---------------------------------------------------------------------------------------------------


def test_short_names_of_loggers(monkeypatch):
    monkeypatch.setattr("vlad.cli.loggers.find_spec", lambda name: name)
    assert expand_logger("tensorboard") == {"class_path": "vlad.runs.TensorBoard"}
    assert expand_logger_text("tensorboard") == "vlad.runs.TensorBoard"
    assert expand_logger_text("my.Logger") == "my.Logger"
    assert [expand_logger_text(text) for text in ("csv", "true", "false", "null")] == ["true", "true", "false", "null"]
    wandb = {"class_path": "vlad.runs.WandB", "init_args": {"project": "parts", "offline": True}}
    assert expand_logger({"class_path": "wandb", "project": "parts", "offline": True}) == wandb
    assert json.loads(expand_logger_text("[csv, wandb]")) == [{"class_path": "vlad.runs.WandB"}]
    with pytest.raises(OptionError, match="no 'tensorbord'; did you mean tensorboard"):
        expand_logger("tensorbord")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_told_in_one_line(name, here, monkeypatch, capsys):
    monkeypatch.setattr("vlad.cli.loggers.find_spec", lambda _: None)
    assert main(["test", "--model", "sdp", *here, "--data.test", "mvtec_ad", "--trainer.logger", name]) == 2
    expected = f"vlad test: trainer.logger {name} needs the package {name}: pip install 'vlad[{name}]'\n"
    assert capsys.readouterr().err == expected
    monkeypatch.setattr("vlad.runs.loggers.find_spec", lambda _: None)
    with pytest.raises(OptionError, match="needs the package"):
        {"tensorboard": TensorBoard, "wandb": WandB}[name]()


class Remembering(Logger):
    """Remembers what it was told."""

    name = version = "r"

    def __init__(self):
        super().__init__()
        self.told = []

    def log_hyperparams(self, params):
        self.told.append(params)

    def log_metrics(self, metrics, step=None):
        self.told.append((metrics, step))


class Late(Deferred):
    def make(self, folder):
        self.folder = folder
        return Remembering()


def test_other_loggers_wait_for_the_run_folder(tmp_path):
    logger = Late()
    logger.experiment.add_scalar("a", 1)
    logger.log_hyperparams({"sigma": 1, "_internal": 2})
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    assert (logger.name, logger.version) == (None, None)
    logger.open(tmp_path)
    logger.log_metrics({"a": 2.0}, 1)
    assert logger._inner.told == [{"sigma": 1}, ({"a": 2.0}, 1)]
    assert logger.folder == tmp_path


def test_tensorboard_writes_into_the_run_folder(here):
    pytest.importorskip("tensorboard")
    command = ["fit", "--model", "sdp_plus", *here, "--data.root", ".", "--data.train", "mvtec_ad"]
    assert main([*command, "--trainer.max_epochs", "1", "--trainer.logger", "tensorboard"]) == 0
    folder = resolve_run("runs/latest")
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    assert (folder / "metrics.csv").exists()


# -- starts that fail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["test", "--model", "sdp", "--data.test", "nowhere"],
        ["predict", "nowhere", "--model", "sdp"],
        ["predict", "photos", "--model", "sdp", "--references", "broken"],
        ["predict", "photos", "--model", "sdp", "--references", "nowhere"],
        ["predict", "photos", "--model", "patch_memory"],
        ["test", "--model", "sdp_plus", "--data.root", ".", "--data.test", "mvtec_ad"],
        ["test", "--model", "sdp_plus", "--data.root", ".", "--data.test", "mvtec_ad", "--shots", "1"],
        ["fit", "--model", "sdp_plus", "--data.train", "nowhere"],
        ["fit", "--model", "sdp", "--data.root", ".", "--data.train", "mvtec_ad"],
        ["fit", "--model", "sdp_plus", "--data.root", ".", "--data.train", "mvtec_ad", "--ckpt_path", "x.ckpt"],
        ["test", "--ckpt_path", "runs/latest", "--data.root", ".", "--data.test", "mvtec_ad"],
    ],
)
def test_a_start_that_fails_leaves_no_folder(arguments, here, tmp_path):
    write_picture(Path("photos/1.png"))
    Path("broken").mkdir()
    Path("broken/1.png").write_bytes(b"x")
    Path("x.ckpt").write_bytes(b"x")
    before = sorted(tmp_path.rglob("*"))
    options = here if "--model" in arguments else QUIET
    assert main([*arguments, *options, *(NO_MAPS if arguments[0] != "fit" else [])]) in {1, 2}
    assert sorted(tmp_path.rglob("*")) == before


def test_there_is_no_folder_while_references_are_fitted(here, monkeypatch):
    """What kills a run before it has really started leaves nothing, then."""
    fit = vlad.get_method("sdp").fit_references
    looked = []

    def look(self, batches):
        looked.append(Path("runs").exists())
        return fit(self, batches)

    monkeypatch.setattr(vlad.get_method("sdp"), "fit_references", look)
    assert main(["test", "--model", "sdp", *here, "--data.root", ".", "--data.test", "mvtec_ad", "--shots", "1"]) == 0
    assert looked == [False]
    assert (resolve_run("runs/latest") / "references.csv").exists()


def test_a_run_that_fails_in_its_first_batch_leaves_no_folder(here, monkeypatch):
    def fail(*_, **__):
        raise OptionError("the method fails")

    monkeypatch.setattr(vlad.get_method("sdp"), "compare", fail)
    for command in (["test", "--data.root", ".", "--data.test", "mvtec_ad"], ["predict", "mvtec_ad/bottle/test/good"]):
        assert main([*command, "--model", "sdp", *here]) == 2
        assert not Path("runs").exists()


# -- several processes -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_process_follows_when_another_run_has_taken_the_name(here, tmp_path):
    """The name is known before the folder is made; here another run makes it in between."""
    script = tmp_path / "command.py"  # each process is started by this file's path
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom vlad.cli import main\nfrom vlad.runs import RunLogger\n"
        "begin = RunLogger.begin\n"
        "def late(self):\n"
        "    if self.folder is None:\n        Path(self.log_dir).mkdir(parents=True)\n"
        "    return begin(self)\n"
        "RunLogger.begin = late\nsys.exit(main())\n"
    )
    two = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    train = ["--data.root", ".", "--data.train", "mvtec_ad", "--trainer.max_epochs", "1"]
    command = [sys.executable, str(script), "fit", "--model", "sdp_plus", *here, *train, *two]
    environment = {**os.environ, "VLAD_PLUGINS": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = sorted(path for path in Path("runs/sdp_plus").iterdir() if path.is_dir())
    assert [run.name for run in runs] == [run_name("fit", "mvtec_ad"), run_name("fit", "mvtec_ad") + "_2"]
    assert list(runs[0].iterdir()) == []
    assert {path.name for path in runs[1].iterdir()} == {
        *("checkpoints", "fit.yaml", "hparams.yaml", "metrics.csv", "run.json")
    }
    assert f"checkpoint: {runs[1]}/checkpoints/" in done.stdout
