"""``vlad results``: what is published, found in a moment."""

import csv
import io
import subprocess
import sys

import pytest

from vlad.cli import main
from vlad.results import PUBLISHED, published


def test_every_source_is_shown(capsys):
    assert main(["results", "--method", "AdaCLIP", "--dataset", "visa"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[2] for line in out.splitlines() if line.startswith("adaclip")] == [
        "85.8",
        "83.9",
        "83.9",
        "81.7",
        "85.8",
    ]
    assert "- [2] AdaCLIP, arXiv 2407.15795, supplement; trained on mvtec_ad; ViT-L-14-336 at 518 px" in out


def test_csv_is_the_file_and_categories_are_asked_for(capsys):
    assert main(["results", "--categories", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        assert len(rows) == len(list(csv.DictReader(file))) == len(published())
    assert main(["results", "--format", "csv", "--method", "musc", "--metric", "pixel_ap", "--shots", "0"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {(row["method"], row["metric"], row["category"]) for row in rows} == {("musc", "pixel_ap", "")}


def test_categories_are_rows(capsys):
    assert main(["results", "--method", "adaclip", "--dataset", "btad", "--categories"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("adaclip")] == ["mean", "mean", "01", "02", "03"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dataset", "mvtecad"], "no number is published of a data set 'mvtecad' here; did you mean mvtec_ad"),
        (["--method", "adaclipp"], "did you mean adaclip"),
        (["--method", "clip_ada", "--shots", "4"], "no published numbers match"),
    ],
)
def test_what_is_not_there_is_told(arguments, told, capsys):
    assert main(["results", *arguments]) in {1, 2}
    assert told in capsys.readouterr().err


def test_nothing_heavy_is_imported():
    code = (
        "from vlad.cli import main; main(['results', '--dataset', 'visa']); import sys; print('IMPORTED', *sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "pandas", "numpy", "lightning"} & set(out.rpartition("IMPORTED")[2].split())
