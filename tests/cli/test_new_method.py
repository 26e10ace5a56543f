"""``vlad new-method``: what it writes can be installed, passes its own tests, and is found by its name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import write_mvtec

from vlad.cli import main

pytestmark = pytest.mark.slow

PIP = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--no-compile"]


def run(*arguments, path="", cwd=None):
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_installed_passes_its_tests_and_is_tested_by_its_name(tmp_path, tiny):
    package, site = tmp_path / "plug-ins" / "contrast", tmp_path / "site"
    assert main(["new-method", "My-Contrast", "--output", str(package)]) == 0
    run(*PIP, "--target", site, package)
    assert "3 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", path=site, cwd=package)
    listed = {row["name"]: row for row in json.loads(run("-m", "vlad", "methods", "--json", path=site))}
    assert listed["my_contrast"]["class_path"] == "my_contrast.MyContrast"
    assert listed["my_contrast"]["summary"].startswith("Likeness of each patch")
    write_mvtec(tmp_path / "data" / "mvtec_ad", ("bottle",))
    model = ["--model", "my-contrast", "--model.backbone", tiny, "--model.image_size", "64"]
    data = ["--data.root", "data", "--data.test", "mvtec_ad", "--data.num_workers", "0"]
    said = run("-m", "vlad", "test", *model, *data, path=site, cwd=tmp_path)
    assert "bottle" in said
    (tested,) = (tmp_path / "runs" / "my_contrast").glob("*_test_*")
    assert (tested / "test_metrics.csv").is_file()


def test_what_it_writes_is_formatted_and_linted(tmp_path):
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed: pip install 'vlad[lint]'")
    assert main(["new-method", "my_method", "--output", str(tmp_path / "m")]) == 0
    settings = ["--no-cache", "--line-length", "120"]
    for command in (["format", "--check"], ["check", "--select", "E,F,W,I,UP,B"]):
        done = subprocess.run(
            [ruff, *command, *settings], cwd=tmp_path / "m", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sdp", "a method is named 'sdp' already"),
        ("SDP-Plus", "a method is named 'sdp_plus' already"),
        ("torch", "a Python package is named 'torch' already"),
        ("json", "a Python package is named 'json' already"),
        ("class", "'class' is a word of Python's"),
        ("2clip", "'2clip' cannot be a method's name"),
        ("../up", "'../up' cannot be a method's name"),
        ("über", "'über' cannot be a method's name"),
        ("", "'' cannot be a method's name"),
        ("a" * 61, "cannot be a method's name"),
    ],
)
def test_names_that_cannot_be_are_refused(name, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-method", name]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert main(["new-method", "mine"]) == 0  # an empty folder is filled
    before = {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("nowhere")
    for target in ("mine", "file", "link"):
        assert main(["new-method", "other", "--output", target]) == 1
        assert "nothing was overwritten" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "file", "link"}


def test_a_folder_that_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("text")
    assert main(["new-method", "mine", "--output", str(tmp_path / "file" / "mine")]) == 1
    assert "cannot write" in capsys.readouterr().err
