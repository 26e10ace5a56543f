"""Tables in every format: marks, escapes, alignment."""

import csv
import io
import json

import pytest

from vlad.errors import OptionError
from vlad.results.tables import Table, heading, number, render

TABLE = Table(
    ["method", "I-AUROC"],
    [["a|b_<i>", number(90.04, 1.26)], ["c", number(95.0)], ["d", number(None)], ["e", number(95.0)], ["f", number(1)]],
    frozenset({1}),
    frozenset({1}),
    "50 % & more",
    ["why"],
    frozenset({4}),
)


def test_text():
    assert render(TABLE).splitlines() == [
        "50 % & more",
        "method      I-AUROC",
        "-------------------",
        "a|b_<i>  90.0 ± 1.3",
        "c              95.0",
        "d                 -",
        "e              95.0",
        "-------------------",
        "f               1.0",
        "- why",
    ]


def test_markdown_marks_the_best_and_the_second():
    lines = render(TABLE, "markdown").splitlines()
    assert lines[:4] == ["**50 % &amp; more**", "", "| method | I-AUROC |", "| --- | ---: |"]
    assert lines[4:9] == [
        "| a\\|b_&lt;i&gt; | <u>90.0 ± 1.3</u> |",
        "| c | **95.0** |",
        "| d | - |",
        "| e | **95.0** |",
        "| f | 1.0 |",
    ]


def test_latex_is_booktabs():
    text = render(TABLE, "latex")
    assert r"\caption{50 \% \& more}" in text
    assert r"a|b\_<i> & \underline{90.0 $\pm$ 1.3} \\" in text
    assert r"c & \textbf{95.0} \\" in text
    assert text.index(r"\toprule") < text.index("method") < text.index(r"\midrule") < text.index(r"\bottomrule")
    assert text.count(r"\midrule") == 2
    assert text.splitlines()[0] == r"% needs \usepackage{booktabs}"


def test_html_is_escaped():
    text = render(TABLE, "html")
    assert "<td>a|b_&lt;i&gt;</td>" in text
    assert '<td class="n"><b>95.0</b></td>' in text.replace("class=n", 'class="n"')
    assert "<i>" not in text


def test_csv_and_json_hold_the_same():
    rows = list(csv.DictReader(io.StringIO(render(TABLE, "csv"))))
    assert rows == json.loads(render(TABLE, "json"))
    assert rows[0] == {"method": "a|b_<i>", "I-AUROC": "90.0 ± 1.3"}


def test_one_row_is_neither_best_nor_second():
    assert "**" not in render(Table(["m", "v"], [["a", number(1.0)]], frozenset({1}), frozenset({1})), "markdown")


def test_headings_are_short_for_ours_alone():
    assert [heading(name) for name in ("pixel_aupro", "pixel_aupro_0.05", "missed")] == [
        "P-PRO",
        "P-PRO@0.05",
        "missed",
    ]


def test_unknown_formats_are_refused():
    with pytest.raises(OptionError, match="no table format is named 'tex'; did you mean text or latex"):
        render(TABLE, "tex")
