"""Every experiment file parses and runs, on little data in the sets' own layouts and with a tiny CLIP."""

import re
from pathlib import Path

import pytest
import yaml
from tests_support import SMALL, write_mask, write_mvtec, write_picture

from vlad.cli import main

FOLDER = Path(__file__).parents[1] / "experiments"
FILES = sorted(FOLDER.rglob("*.yaml"))


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
    for name in ("colondb", "clinicdb"):
        write_picture(tmp_path / name / "images/1.png")
        write_mask(tmp_path / name / "masks/1.png")
    (tmp_path / "visa/split_csv").mkdir()
    (tmp_path / "visa/split_csv/1cls.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(FOLDER)) for file in FILES])
def test_experiment(file, data, tiny, monkeypatch):
    text = file.read_text()
    command = re.match(r"# vlad (\w+) --config (\S+)( --data.root DATA)?\n", text)
    assert command is not None, "the first line is the command that runs the file"
    assert command.group(2) == f"experiments/{file.relative_to(FOLDER)}"
    assert "Expected" in text
    monkeypatch.chdir(data)
    small = [
        "--model.backbone",
        tiny,
        "--model.image_size",
        "64",
        "--trainer.max_epochs",
        "1",
    ]
    method = yaml.safe_load(text)["model"]["class_path"]
    small += [f"--model.{name}={value}" for name, value in SMALL[method].items()]
    if not command.group(3):  # rendered data: all the pictures are there, a few will do
        small += ["--trainer.limit_train_batches", "3", "--trainer.limit_test_batches", "3"]
    quiet = ["--data.num_workers", "0", "--trainer.enable_progress_bar", "false"]
    assert main([command.group(1), "--config", str(file), "--data.root", str(data), *small, *quiet]) == 0


def test_every_file_is_in_the_table():
    table = (FOLDER / "README.md").read_text()
    assert FILES
    assert all(f"`{file.relative_to(FOLDER)}`" in table for file in FILES)
