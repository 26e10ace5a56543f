"""Every experiment file parses and runs, on little data in the sets' own layouts and with a tiny CLIP."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from tests_support import SMALL, write_mask, write_mvtec, write_picture
from trees import TREES, build

from vlad.benchmark import read_plan
from vlad.cli import main
from vlad.datamodules.catalog import get_record

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "experiments"
FILES = sorted(FOLDER.rglob("*.yaml"))
GRIDS = sorted(FOLDER.rglob("*.toml"))


def script(name):
    """Imports a script of the experiments."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, FOLDER / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path):
    write_mvtec(tmp_path / "mvtec_ad", ("bottle",), count=1)
    lines = ["object,split,label,image,mask"]
    for i, label in enumerate(("normal", "anomaly")):
        image = f"candle/Data/Images/{label.title()}/{i:03}.JPG"
        write_picture(tmp_path / "visa" / image, seed=i)
        mask = "candle/Data/Masks/Anomaly/001.png" if label == "anomaly" else ""
        lines.append(f"candle,test,{label},{image},{mask}")
    write_mask(tmp_path / "visa/candle/Data/Masks/Anomaly/001.png", value=1)
    write_picture(tmp_path / "visa/candle/Data/Images/Normal/002.JPG", seed=2)
    lines.append("candle,train,normal,candle/Data/Images/Normal/002.JPG,")
    for name in set(TREES) - {"mvtec_ad", "visa", "synthetic", "synthetic_aux"}:
        build(tmp_path / get_record(name).folders[0], TREES[name][0])
    (tmp_path / "visa/split_csv").mkdir()
    (tmp_path / "visa/split_csv/1cls.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(FOLDER)) for file in FILES])
def test_experiment(file, data, tiny, monkeypatch):
    text = file.read_text()
    command = re.match(r"# vlad (\w+)((?: --config \S+)+)( --data.root DATA)?\n", text)
    assert command is not None, "the first line is the command that runs the file"
    configs = [FOLDER.parent / name for name in command.group(2).split()[1::2]]
    assert configs[-1] == file
    assert "Expected" in text
    monkeypatch.chdir(data)
    small = [
        "--model.backbone",
        tiny,
        "--model.image_size",
        "64",
    ]
    fits = command.group(1) == "fit"
    small += ["--trainer.max_epochs", "1"] if fits else []
    method = yaml.safe_load(configs[0].read_text())["model"]["class_path"]
    small += [f"--model.{name}={value}" for name, value in SMALL[method].items()]
    if not command.group(3):  # rendered data: all the images are there, a few will do
        small += [f"--trainer.limit_{'train' if fits else 'test'}_batches", "3"]
    quiet = ["--data.num_workers", "0", "--trainer.enable_progress_bar", "false"]
    given = [argument for config in configs for argument in ("--config", str(config))]
    assert main([command.group(1), *given, "--data.root", str(data), *small, *quiet]) == 0


@pytest.mark.parametrize("file", GRIDS, ids=[str(file.relative_to(FOLDER)) for file in GRIDS])
def test_plan(file, tmp_path, capsys):
    """Every cell is a config that vlad accepts, in training and test."""
    plan = read_plan(file)
    assert file.read_text().startswith("# ")
    for cell in plan.cells:
        if cell.seed:
            continue
        for verb, config in (("test", cell.config), ("fit", cell.fit_config)):
            if not config:
                continue
            (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
            with pytest.raises(SystemExit) as end:
                main([verb, "--config", str(tmp_path / "config.yaml"), "--print_config"])
            assert end.value.code in {0, None}
            resolved = yaml.safe_load(capsys.readouterr().out)
            assert resolved["model"]["init_args"]["backbone"] == "vlad-tiny"


def test_pixel_ap_by_size(tmp_path, monkeypatch, tiny, capsys):
    """All defects together score what vlad test says; thirds are told apart."""
    write_mvtec(tmp_path / "mvtec_ad", ("bottle",), count=3)
    monkeypatch.chdir(tmp_path)
    small = [f"--model.{name}={value}" for name, value in SMALL["clip_ada"].items()]
    here = ["--model", "clip_ada", "--model.backbone", tiny, "--model.image_size", "64", *small]
    rest = ["--data.root", ".", "--data.num_workers", "0", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", *here, *rest, "--data.train", "mvtec_ad", "--trainer.max_epochs", "1"]) == 0
    run = "runs/clip_ada/latest"
    assert main(["test", "--ckpt_path", run, *rest, "--data.test", "mvtec_ad", "--heatmaps.enabled", "false"]) == 0
    (file,) = Path("runs/clip_ada").glob("*_test_*/test_metrics.json")
    content = json.loads(file.read_text())
    values, bounds = script("clip_ada/by_size.py").measure(run, "mvtec_ad", ".")
    assert values[:, 3].tolist() == pytest.approx(
        [content["stages"]["initial"]["mean"]["pixel_ap"], content["mean"]["pixel_ap"]]
    )
    assert len(bounds) == 2


def test_every_file_is_in_the_table():
    table = (FOLDER / "README.md").read_text()
    assert FILES
    assert all(f"`{file.relative_to(FOLDER)}`" in table for file in [*FILES, *GRIDS])
