"""What is released: a wheel and a source distribution, built without a network, that work by themselves."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import vlad

ROOT = Path(__file__).parents[1]
MOST = {"wheel": 4_500_000, "sdist": 5_000_000}  # bytes; docs/install.md states the sizes


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source distribution, in a folder of their own."""
    pytest.importorskip("hatchling", reason="the extra test is not installed")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_works_by_itself(built, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(built[0]) as wheel:  # a pure wheel is installed by unpacking it
        wheel.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site), "VLAD_PLUGINS": "vlad"}

    def run(*arguments):
        command = [sys.executable, "-m", "vlad", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    where = "import vlad, sys; print(vlad.__file__)"
    said = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert Path(said.stdout.decode().strip()).is_relative_to(site)
    assert run("--version") == f"vlad {vlad.__version__}\n"
    assert {row["name"] for row in json.loads(run("methods", "--json"))} >= {"sdp", "winclip", "patch_memory"}
    assert "mvtec_ad" in run("datasets")
    run("new-method", "mine")  # the templates are in it
    assert (tmp_path / "mine" / "src" / "mine" / "__init__.py").is_file()


def test_what_is_in_the_wheel(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
        (metadata,) = (wheel.read(name).decode() for name in names if name.endswith("METADATA"))
        entries = wheel.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert {name.split("/")[0] for name in names} == {"vlad", f"vlad-{vlad.__version__}.dist-info"}
    assert not [
        name for name in names if re.search(r"(^|/)(tests?|benchmarks|experiments|docs)/", name.split("templates")[0])
    ]
    assert {"vlad/py.typed", "vlad/clip/vlad_tiny/open_clip_model.safetensors", "vlad/report/assets/page.html"} <= set(
        names
    )
    tree = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/vlad").rglob("*") if path.is_file()}
    assert {name for name in tree if "__pycache__" not in name} == {name for name in names if name.startswith("vlad/")}
    assert f"Version: {vlad.__version__}" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "vlad = vlad.cli:command" in entries
    assert built[0].stat().st_size < MOST["wheel"]


def test_what_is_in_the_source_distribution(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "constraints.txt",
        "src/vlad/__init__.py",
    } <= names
    assert not {name.split("/")[0] for name in names} & {".venv", "runs", "demo", ".git", "dist", "tests", "benchmarks"}
    assert not [name for name in names if name.startswith("docs/_build")]
    assert built[1].stat().st_size < MOST["sdist"]


def test_the_sizes_are_those_that_the_page_states(built):
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    stated = float(re.search(r"wheel \| ([\d.]+) MB", page)[1])
    assert abs(built[0].stat().st_size / 1e6 - stated) < 0.4
    tiny = float(re.search(r"is ([\d.]+) MB", page)[1])
    with zipfile.ZipFile(built[0]) as wheel:
        inside = sum(one.compress_size for one in wheel.infolist() if "vlad_tiny" in one.filename)
    assert abs(inside / 1e6 - tiny) < 0.3
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert int(re.search(r"direct dependencies \| (\d+)", page)[1]) == len(project["dependencies"])


def test_one_version_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == vlad.__version__
    assert f"## {vlad.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_extra_is_told_of_and_those_of_make_test_are_marked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    part = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- install -->")[2].partition("<!-- end")[0]
    told = {}
    for names, _, answer in re.findall(r"^\| (`.+?) \| (.+?) \| (yes|no) \|$", part, re.MULTILINE):
        told.update(dict.fromkeys(re.findall(r"`(\w+)`", names), answer))
    installed = re.search(r'"\.\[([\w,]+)\]"\n\t@touch', (ROOT / "Makefile").read_text(encoding="utf-8"))[1].split(",")
    assert told == {extra: "yes" if extra in installed else "no" for extra in project["optional-dependencies"]}
