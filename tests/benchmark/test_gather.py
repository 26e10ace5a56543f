"""Tables of finished cells: mean and standard deviation over seeds, published numbers, what is missing."""

import json

import pytest

from vlad.benchmark import Cell, Plan, gather, tables
from vlad.benchmark.gather import COLUMNS, rows
from vlad.benchmark.run import result_file
from vlad.results.tables import render


def cell(name="sdp", dataset="mvtec_ad", shots=0, seed=0):
    return Cell(name, name, dataset, shots, seed, {"data": {}, "seed_everything": seed})


def finish(folder, cell, stages=None, **mean):
    result_file(folder, cell).parent.mkdir(parents=True, exist_ok=True)
    category = {"dataset": cell.dataset, "category": "bottle", "normal": 2, "anomalous": 3, **mean}
    content = {**cell.describe(), "mean": mean, "categories": [category], "stages": stages or {}, "seconds": {}}
    result_file(folder, cell).write_text(json.dumps(content))


def test_mean_and_deviation_are_over_seeds_with_n_minus_1(tmp_path):
    cells = [cell(seed=seed) for seed in range(3)] + [cell("winclip", seed=0)]
    for one, value in zip(cells, (0.5, 0.6, 0.7, 0.9), strict=True):
        finish(tmp_path, one, image_auroc=value, pixel_auroc=value / 2)
    plan = Plan("t", cells, ["image_auroc", "pixel_aupro", "pixel_auroc"])
    (table,) = tables(plan, gather(plan, tmp_path))
    assert table.title == "t: mvtec_ad"
    assert table.columns == ["method", "seeds", "I-AUROC", "P-AUROC"]
    assert table.texts() == [["sdp", "3", "60.0 ± 10.0", "30.0 ± 5.0"], ["winclip", "1", "90.0", "45.0"]]
    latex = render(table, "latex")
    assert r"\textbf{90.0}" in latex
    assert r"\underline{60.0 $\pm$ 10.0}" in latex


def test_what_is_missing_is_told_and_a_seed_without_a_value_gives_none(tmp_path):
    cells = [cell(seed=seed) for seed in range(3)]
    finish(tmp_path, cells[0], image_auroc=0.5)
    finish(tmp_path, cells[2], image_auroc=None)
    plan = Plan("t", cells, ["image_auroc"])
    found = gather(plan, tmp_path)
    assert found.missing == [cells[1].key]
    assert tables(plan, found)[0].texts() == [["sdp", "2", "-"]]


def test_published_numbers_stand_below_with_the_difference(tmp_path):
    one = cell("adaclip", "visa")
    finish(tmp_path, one, image_auroc=0.8, pixel_auroc=0.9)
    plan = Plan("t", [one], ["image_auroc", "pixel_auroc"], published=True)
    (table,) = tables(plan, gather(plan, tmp_path))
    texts = table.texts()
    assert texts[0] == ["adaclip", "1", "80.0", "90.0"]
    assert texts[1] == ["  the paper [1]", "", "85.8 (-5.8)", "95.5 (-5.5)"]
    assert len(texts) == 6  # the literature has five
    assert table.notes[0] == "[1] AdaCLIP, arXiv 2407.15795, Table 1: trained on mvtec_ad+colondb"
    assert not table.marks  # one method is neither best nor second


def test_shots_and_stages_are_rows(tmp_path):
    cells = [cell(shots=shots) for shots in (0, 4)]
    for one in cells:
        finish(tmp_path, one, stages={"initial": {"image_auroc": 0.4}}, image_auroc=0.5)
    plan = Plan("t", cells, ["image_auroc"], stages=True)
    assert tables(plan, gather(plan, tmp_path))[0].texts() == [
        ["sdp, initial", "0", "1", "40.0"],
        ["sdp", "0", "1", "50.0"],
        ["sdp, initial", "4", "1", "40.0"],
        ["sdp", "4", "1", "50.0"],
    ]


def test_numbers_are_tidy(tmp_path):
    one = cell()
    finish(tmp_path, one, stages={"initial": {"image_auroc": 0.4}}, image_auroc=0.5, pixel_ap=None)
    lines = [dict(zip(COLUMNS, row, strict=True)) for row in rows(gather(Plan("", [one], []), tmp_path))]
    assert [(line["category"], line["stage"], line["metric"], line["value"]) for line in lines] == [
        ("", "", "image_auroc", 0.5),
        ("", "initial", "image_auroc", 0.4),
        ("bottle", "", "image_auroc", 0.5),
    ]


@pytest.mark.parametrize("metric", ["image_fpr_at_0.95"])
def test_rates_of_false_alarms_are_not_ranked(tmp_path, metric):
    cells = [cell(), cell("winclip")]
    for one in cells:
        finish(tmp_path, one, **{metric: 0.5, "image_auroc": 0.5})
    plan = Plan("t", cells, ["image_auroc", metric])
    assert {column for _, column in tables(plan, gather(plan, tmp_path))[0].marks} == {2}
