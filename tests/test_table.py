"""Tables that are written: one line a row, nothing that is computed or reaches the terminal, and read back equal."""

import csv

import numpy as np
import pandas as pd
import pytest
from faults.hostile import HOSTILE

from vlad.datamodules.tables import read_table
from vlad.table import cell, plain_text, write_frame, write_table


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_hostile_names_are_one_line_each_and_read_back(suffix, tmp_path):
    names = [name for name in HOSTILE if name] + [
        " a",
        "$'x'",
        "$x",
        "'=1",
        "'a'",
        "tab\t",
        "\\n",
        "a\\",
        "\ufeffa",
        "-x",
        "@x",
    ]
    file = write_table(
        tmp_path / f"t{suffix}", ["image_path", "n"], enumerate_(names), "\t" if suffix == ".tsv" else ","
    )
    content = file.read_bytes()
    assert len(content.splitlines()) == len(content.split(b"\n")) - 1 == len(names) + 1
    assert not set(content) & (set(range(32)) - {9, 10})
    table = read_table(file)
    assert table["image_path"].tolist() == names
    assert table["n"].tolist() == [str(number) for number in range(len(names))]


def enumerate_(names):
    return ((name, number) for number, name in enumerate(names))


@pytest.mark.parametrize(
    "text", ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "'=1", "-", "=HYPERLINK()"]
)
def test_no_cell_is_computed(text, tmp_path):
    assert cell(text)[0] in "'$"
    assert plain_text(cell(text)) == text


def test_numbers_keep_every_digit_and_nothing_is_empty(tmp_path):
    frame = pd.DataFrame({"a": np.float32([0.1, -2.5]), "b": [1, None], "c": ["-0.5", None], "d": [True, False]})
    frame["e"] = pd.array([3, None], "Int64")
    lines = list(csv.reader(write_frame(tmp_path / "t.csv", frame).open(newline="")))
    assert lines[0] == list("abcde")
    assert np.float32(lines[1][0]) == np.float32(0.1)
    assert lines[1][1:] == ["1.0", "-0.5", "True", "3"]
    assert lines[2][1:] == ["", "", "False", ""]
    assert cell(0.1 + 0.2) == "0.30000000000000004"
    assert cell([{"x": 1}]) == '[{"x": 1}]'
