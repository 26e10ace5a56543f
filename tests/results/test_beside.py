"""Published numbers beside a run's own."""

import pytest

from vlad.datamodules.catalog import get_record
from vlad.results import RunFacts, beside, describe_beside, render

VISA = list(get_record("visa").categories)
FACTS = RunFacts("adaclip", 0, "ViT-L-14-336-quickgelu", 518)


def rows(categories, dataset="visa", **metrics):
    return [{"dataset": dataset, "category": name, "normal": 962, "anomalous": 1200, **metrics} for name in categories]


def test_means_are_compared_with_every_source():
    tested = [{**row, "normal": 0, "anomalous": 0} for row in rows(VISA, image_auroc=0.8)]
    tested[0] |= {"normal": 962, "anomalous": 1200}
    found = [one for one in beside(FACTS, tested) if not one.published.category]
    assert [round(one.difference, 1) for one in found] == [-5.8, -3.9, -3.9, -1.7, -5.8]
    assert all(one.ours == pytest.approx(80.0) for one in found)
    assert {one.differs for one in found} == {""}
    (table,) = describe_beside(found, ["image_auroc", "unknown"])
    text = render(table)
    assert [line.split()[-2:] for line in text.splitlines()[3:5]] == [["85.8", "(-5.8)"], ["83.9", "(-3.9)"]]
    assert "[4] UniADet README (gaobb/UniADet): re-run or quoted; protocol not stated" in text


def test_what_differs_is_told():
    facts = RunFacts("anomalyclip", 0, "vlad-tiny", 96, "mvtec", "random")
    found = beside(facts, rows(VISA, pixel_aupro=0.5, image_auroc=0.5))
    paper = {one.published.metric: one for one in found if one.published.reported_by == "paper"}
    images = "25944 of 2162 images"
    same = f"random weights; encoder vlad-tiny, not ViT-L-14-336; 96 px, not 518; {images}"
    assert paper["image_auroc"].differs == same
    assert "PRO counted as mvtec, not anomalyclip" in paper["pixel_aupro"].differs


def test_part_of_a_data_set_is_compared_by_category():
    found = beside(FACTS, rows(["candle"], image_auroc=0.9))
    assert [(one.published.category, one.published.value) for one in found] == [("candle", 96.0)]
    (table,) = describe_beside(found, ["image_auroc"])
    assert table.columns[0] == "published on visa/candle (ours less theirs)"


def test_other_shots_and_methods_are_not_compared():
    assert not beside(RunFacts("adaclip", 4), rows(VISA, image_auroc=0.9))
    assert not beside(RunFacts("own", 0), rows(VISA, image_auroc=0.9))
    assert beside(RunFacts("winclip", 4), rows(VISA, image_auroc=0.9))[0].published.value == 87.3


def test_undefined_values_are_left_out():
    assert not beside(FACTS, rows(VISA, image_auroc=float("nan")))


def test_methods_that_learn_from_normal_images_are_compared():
    found = beside(RunFacts("clip_ada"), rows(VISA, image_auroc=0.9))
    assert [one.published.value for one in found] == [89.3]
