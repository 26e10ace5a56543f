"""The published numbers that ship: every line is sound, and tables agree with themselves."""

import re
from collections import defaultdict

import pytest

from vlad.datamodules.catalog import get_record, list_datasets
from vlad.errors import DataError
from vlad.metrics.protocols import PROTOCOLS
from vlad.results import PUBLISHED, published, select
from vlad.results.literature import METRICS, PublishedValue, read_published

ELSEWHERE = {"cvc_300", "rsdd"}  # data sets that are not in the catalogue
HEADER = ",".join(PublishedValue._fields)
LINE = "adaclip,,visa,,0,image_auroc,85.8,,paper,AdaCLIP,mvtec_ad,ViT-L-14-336,518,adaclip,"


def test_every_line_names_what_there_is():
    values = published()
    assert len(values) > 1500
    known = set(list_datasets()) | ELSEWHERE
    for one in values:
        assert one.dataset in known, one
        assert set(filter(None, one.trained_on.split("+"))) <= known, one
        assert one.evaluation in {"", *PROTOCOLS}, one
        assert re.fullmatch(r"[a-z0-9_]+", one.method), one
        if one.category:
            assert one.category in get_record(one.dataset).categories, one
        for text in (one.source, one.note, one.variant, one.encoder):
            assert text == text.strip(), one
    assert {one.metric for one in values} == set(METRICS)


def test_no_number_is_there_twice():
    keys = [(*one.report, one.trained_on, one.category, one.metric) for one in published()]
    assert len(keys) == len(set(keys))


def test_file_is_tidy():
    text = PUBLISHED.read_text(encoding="utf-8")
    assert "\r" not in text
    assert '""' not in text  # no cell needs quotes within quotes, or is quoted and empty


def test_categories_average_to_the_number_of_their_data_set():
    of_categories = defaultdict(dict)
    for one in published():
        if one.category:
            of_categories[one.method, one.variant, one.dataset, one.shots, one.metric][one.category] = one.value
    compared = 0
    for (method, variant, dataset, shots, metric), by_name in of_categories.items():
        if set(by_name) != set(get_record(dataset).categories):
            continue
        mean = sum(by_name.values()) / len(by_name)
        found = select(published(), method=method, dataset=dataset, metric=metric, shots=shots)
        assert min(abs(one.value - mean) for one in found if one.variant == variant) < 0.07, (method, dataset, metric)
        compared += 1
    assert compared > 35


def test_adaclip_on_visa_stands_at_several_values():
    found = select(published(), method="adaclip", dataset="visa", metric="image_auroc")
    assert [(one.value, one.reported_by) for one in found[:2]] == [(85.8, "paper"), (83.9, "paper")]
    assert {(one.value, one.source.split(",")[0]) for one in found[2:]} >= {
        (83.9, "BaoIAD"),
        (81.7, "UniADet README (gaobb/UniADet)"),
    }
    assert len({(one.trained_on, one.source) for one in found}) == len(found)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("method,value\nadaclip,1\n", "must have the columns method, variant"),
        (f"{HEADER}\n{LINE.replace('85.8', 'high')}\n", "line 2: could not convert"),
        (f"{HEADER}\n{LINE.replace('85.8', '858')}\n", "line 2: value 858.0 is not in per cent"),
        (f"{HEADER}\n{LINE.replace('image_auroc', 'auroc')}\n", "line 2: unknown metric 'auroc'"),
        (f"{HEADER}\n{LINE.replace('paper', 'hearsay')}\n", "reporter 'hearsay'"),
        (f"{HEADER}\n{LINE.replace('visa', '')}\n", "dataset and source must be given"),
        (f"{HEADER}\n{LINE.rpartition(',')[0]}\n", "line 2: not 15 cells"),
    ],
)
def test_unsound_files_are_refused(tmp_path, text, told):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match=re.escape(told)):
        read_published(tmp_path / "p.csv")
