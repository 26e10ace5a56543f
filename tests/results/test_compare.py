"""Two runs beside each other: the same images or none, differences and their intervals."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest

from vlad.cli import main
from vlad.errors import DataError, OptionError
from vlad.results.compare import compare_runs, comparison_table, disagreements, paired_difference, read_scores
from vlad.results.intervals import measure
from vlad.results.tables import render

quick = partial(compare_runs, resamples=300)


def scores(shift=1.0, seed=0, categories=("bottle", "screw")):
    """A run's scores: the second run of a seed has the same images."""
    random = np.random.default_rng(seed)
    rows = [
        {"dataset": "mvtec_ad", "category": one, "image_id": f"test/{i:03}", "path": f"{one}/{i}.png",
         "label": int(i >= 20), "image_score": shift * (i >= 20) + random.normal()}
        for one in categories for i in range(50)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_better_run_is_told_from_one_as_good():
    base, same, better = scores(0.5, 0), scores(0.5, 1), scores(2.5, 2)
    found = quick(base, better)
    assert [line.category for line in found.lines] == ["bottle", "screw", ""]
    assert all(0 < line.difference.low < line.difference.value < line.difference.high for line in found.lines)
    text = render(comparison_table(found, ("A", "B")))
    assert text.count("higher") == 4  # three lines, and the note
    again = quick(base, same)
    assert all(line.difference.low < 0 < line.difference.high for line in again.lines)
    mean = again.lines[-1]
    assert mean.second.value - mean.first.value == pytest.approx(mean.difference.value)
    assert mean.difference.high - mean.difference.low < again.lines[0].difference.high - again.lines[0].difference.low


def test_the_order_of_runs_and_rows_turns_the_sign_alone():
    first, second = scores(1.0, 0), scores(2.0, 1).sample(frac=1, random_state=0)
    one, other = quick(first, second), quick(second, first)
    values = {(line.category): line.difference.value for line in one.lines}
    assert {line.category: -line.difference.value for line in other.lines} == pytest.approx(values)


def test_equal_runs_differ_by_nothing():
    run = scores()
    for line in quick(run, run.copy(), metric="image_ap").lines:
        assert tuple(line.difference) == (0, 0, 0)


def test_no_interval_where_a_run_is_perfect():
    perfect = scores(100.0, 1)
    found = quick(scores(1.0, 0), perfect)
    assert found.fixed == ["mvtec_ad/bottle", "mvtec_ad/screw"]
    assert all(math.isnan(line.second.low) and math.isnan(line.difference.low) for line in found.lines[:2])
    assert "no interval of mvtec_ad/bottle, mvtec_ad/screw" in render(comparison_table(found, ("A", "B")))
    labels = np.array([0, 0, 1, 1])
    random = np.random.default_rng(0)
    one = paired_difference("image_auroc", np.array([0.0, 2, 1, 3]), np.arange(4.0), labels, random=random)
    assert one.value == 0.25
    assert math.isnan(one.low)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda run: run.iloc[1:],
            "not tested the same images: 1 are in one of them alone, such as mvtec_ad/bottle/test/000",
        ),
        (
            lambda run: run.assign(label=1 - run["label"]),
            "other labels of 100 images, such as mvtec_ad/bottle/test/000",
        ),
        (lambda run: pd.concat([run, run.iloc[:1]]), "the second run has mvtec_ad/bottle/test/000 twice"),
    ],
)
def test_other_images_are_refused(change, told):
    with pytest.raises(DataError, match=told):
        quick(scores(), change(scores()))


def test_what_cannot_be_compared_is_left_out_and_told():
    first, second = scores(), scores(2.0, 1)
    second.loc[3, "image_score"] = math.nan
    first.loc[first["category"] == "screw", "label"] = second.loc[second["category"] == "screw", "label"] = 0
    found = quick(first, second)
    assert (found.left_out, found.undefined) == (1, ["mvtec_ad/screw"])
    assert [line.normal for line in found.lines] == [19]
    with pytest.raises(DataError, match="no category has scored images of both kinds"):
        quick(first.assign(label=0), second.assign(label=0))


def test_arguments_are_checked():
    with pytest.raises(OptionError, match="the level 2"):
        quick(scores(), scores(), level=2)
    with pytest.raises(OptionError, match="metric is one of"):
        quick(scores(), scores(), metric="pixel_auroc")


def test_disagreements_come_first():
    first, second = scores(3.0, 0, ("bottle",)), scores(3.0, 0, ("bottle",))
    second.loc[30, "image_score"] = -9.0
    worst = disagreements(first, second).iloc[0]
    assert worst["image_id"] == "test/030"
    assert (worst["above_a"], worst["above_b"]) == (pytest.approx(0, abs=0.1), 1.0)


def test_command(tmp_path, capsys):
    for name, run in {"a": scores(1.0, 0), "b": scores(3.0, 1)}.items():
        (tmp_path / name).mkdir()
        run.to_csv(tmp_path / name / "test_scores.csv", index=False)
    a, b = (str(tmp_path / name) for name in "ab")
    assert main(["compare", a, b, "--images", str(tmp_path / "images.csv"), "--resamples", "200"]) == 0
    out = capsys.readouterr().out
    auroc = measure("image_auroc", *(scores(1.0, 0, ("bottle",))[one].to_numpy() for one in ("image_score", "label")))[
        0
    ]
    line = next(line for line in out.splitlines() if line.startswith("bottle"))
    assert line.split()[3] == f"{100 * auroc:.1f}"
    assert len(pd.read_csv(tmp_path / "images.csv")) == 100
    assert main(["compare", a, str(tmp_path)]) == 1
    assert "test_scores.csv is not there: give the run folder of a vlad test" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("dataset,category\n")
    with pytest.raises(DataError, match="has no column image_id, path, label, image_score"):
        read_scores(tmp_path / "t.csv")
