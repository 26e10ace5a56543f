"""The page as a file: escaped, self-contained, written piece by piece."""

import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from report.pages import HOSTILE, kept, write_report

from vlad.report import Group, MediaStore, Page, Row, encode_media, write_page
from vlad.report.media import LEVELS
from vlad.report.store import Kept, media_key
from vlad.results.tables import Table


def facts(path):
    text = path.read_text(encoding="utf-8")
    (content,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', text, re.DOTALL)
    return json.loads(content)


def test_nothing_is_fetched(tmp_path):
    text = write_report(tmp_path, [(0, "a", 0, 0.1), (0, "b", 1, 0.9)]).read_text()
    without_data = re.sub(r'"(?:[A-Za-z0-9+/=]{80,})"', '""', text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", without_data)
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', without_data)
    assert "%%" not in without_data


def test_hostile_names_stay_text(tmp_path):
    rows = [Row(0, name, f"x/{name}.png", 0, float(i), error="") for i, name in enumerate(HOSTILE)]
    table = Table(["<b>name</b>"], [[HOSTILE[0]]], notes=[HOSTILE[1]])
    card = {"<i>": [(HOSTILE[2], HOSTILE[1])]}
    path = write_report(
        tmp_path, rows, (HOSTILE[0],), card=card, tables={"<u>": [table]}, notes=[HOSTILE[1]]
    )  # fmt: skip
    text = path.read_text(encoding="utf-8")
    assert text.count("<script") == 3  # thumbnails, facts, scripts
    assert "<img src=x" not in text
    for tag in ("<b>name", "<u>", "<i>"):
        assert tag not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert facts(path)["rows"]["name"][0] == HOSTILE[0]
    assert "\n" not in "".join(facts(path)["rows"]["name"])  # a line break is shown, not made


def test_links_are_relative_and_percent_encoded(tmp_path):
    out = tmp_path / "run"
    odd = tmp_path / "im ages" / "50%#?.png"
    rows = [Row(0, "a", str(odd), 0, 0.1), Row(0, "b", str(tmp_path / "scan.tiff"), 0, 0.2)]
    page = Page("t", "test", "", [Group("g")], {}, {})
    found = facts(write_page(out / "report.html", page, rows, lambda: [None, None]))
    assert found["rows"]["link"] == ["../im%20ages/50%25%23%3F.png", "../scan.tiff#other"]
    assert found["thumbnails"] == 0


def test_maps_keep_their_maximum_and_what_was_not_inspected():
    values = torch.full((100, 200), 0.25)
    values[50, 100] = 2.0
    values[:, :20] = -torch.inf
    media = encode_media(np.zeros((100, 200, 3), np.uint8), values, None)
    assert (media.low, round(media.low + media.step * (LEVELS - 1), 6)) == (0.25, 2.0)
    import base64
    import io

    from PIL import Image

    codes = np.asarray(Image.open(io.BytesIO(base64.b64decode(media.map))))
    assert codes.shape == (32, 64)
    assert codes.max() == LEVELS
    assert (codes[:, :6] == 0).all()
    assert (codes[:, 10:] > 0).all()
    assert media.mask == ""


def test_flat_and_empty_maps_are_thumbnails_too():
    image = np.zeros((10, 10, 3), np.uint8)
    assert encode_media(image, torch.zeros(4, 4), None).step == 0
    assert encode_media(image, torch.full((4, 4), -torch.inf), None).map == ""
    assert encode_media(image, torch.tensor([[3e38, -3e38], [0, 0]]), None).low == pytest.approx(-3e38)


def test_store_keeps_the_first_and_the_highest():
    store = MediaStore(Path("unused"), limit=2)
    store._highest = [5.0] * 1000
    assert [store.wants(score) for score in (1.0, 1.0, 1.0, 6.0)] == [True, True, False, True]


def test_the_newest_thumbnails_count_and_a_cut_line_does_not(tmp_path):
    key = media_key("c", "a", "a.png")
    for rank, maximum in ((0, 1.0), (1, 2.0)):
        store = MediaStore(tmp_path, rank=rank)
        store.add([(f"{key}{rank}", kept()._replace(maximum=maximum))])
        store.close()
    store.join()
    store = MediaStore(tmp_path)
    store.add([(f"{key}1", kept()._replace(maximum=3.0))])
    store.close()
    with (tmp_path / "parts/report-0.jsonl").open("a") as file:
        file.write('{"key": "cut')
    store.join()
    places = store.places()
    assert [one.maximum for one in store.read([places[f"{key}0"], None, places[f"{key}1"]]) if one] == [1.0, 3.0]
    assert isinstance(next(iter(store.read(places.values()))), Kept)
    store.clear()
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("count", [3000])
def test_memory_does_not_grow_with_thumbnails(tmp_path, count):
    thumbnail = kept(size=(300, 300))
    assert len(thumbnail.media.image) > 5000
    rows = [Row(0, str(i), "a.png", 0, 0.5) for i in range(count)]
    page = Page("t", "test", "", [Group("g")], {}, {})
    tracemalloc.start()
    path = write_page(tmp_path / "report.html", page, rows, lambda: (thumbnail for _ in rows))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 5000 * count
    assert peak < path.stat().st_size / 3
