"""Regions of a map: 8-connected, in the image's own pixels."""

import json

import numpy as np
import pytest

from vlad.decision import Region, Verdict
from vlad.decision.regions import find_regions


def put(size=(8, 8), **values):
    anomaly_map = np.zeros(size, np.float32)
    for place, value in values.items():
        anomaly_map[tuple(int(part) for part in place[1:].split("_"))] = value
    return anomaly_map


def test_pixels_that_touch_at_a_corner_are_one_region():
    regions, area = find_regions(put(_1_1=1.0, _2_2=2.0, _2_4=1.5), 1.0, (8, 8))
    assert regions == [Region(1, 1, 2, 2, 2, 2.0), Region(4, 2, 1, 1, 1, 1.5)]
    assert area == 3


def test_the_threshold_itself_belongs_to_a_region():
    assert find_regions(put(_0_0=0.5), 0.5, (8, 8))[1] == 1
    assert find_regions(put(_0_0=0.5), float(np.nextafter(np.float32(0.5), np.float32(1))), (8, 8)) == ([], 0)


def test_boxes_are_in_the_images_own_pixels_and_hold_the_whole_region():
    regions, area = find_regions(put(_1_1=1.0, _1_2=1.0), 0.5, (100, 50))  # 12.5 by 6.25 pixels each
    assert regions == [Region(6, 12, 13, 13, round(2 * 12.5 * 6.25), 1.0)]
    assert area == 156


def test_a_region_at_the_lower_right_ends_with_what_was_seen():
    regions, _ = find_regions(put(_7_7=1.0), 0.5, (37, 53))
    assert (regions[0].x + regions[0].w, regions[0].y + regions[0].h) == (53, 37)


def test_an_image_smaller_than_its_map_has_boxes_of_a_pixel_at_least():
    regions, area = find_regions(put(_7_7=1.0, _0_0=2.0), 0.5, (2, 2))
    assert regions == [Region(0, 0, 1, 1, 1, 2.0), Region(1, 1, 1, 1, 1, 1.0)]
    assert area == 1


def test_small_regions_are_left_out_by_their_share_of_the_map():
    anomaly_map = put(_0_0=9.0, _4_4=1.0, _4_5=1.0)
    assert len(find_regions(anomaly_map, 0.5, (8, 8), min_area=1 / 64)[0]) == 2
    assert find_regions(anomaly_map, 0.5, (8, 8), min_area=2 / 64) == ([Region(4, 4, 2, 1, 2, 1.0)], 2)
    assert find_regions(anomaly_map, 0.5, (8, 8), min_area=3 / 64) == ([], 0)


def test_nan_is_no_region():
    assert find_regions(put(_3_3=np.nan), 0.5, (8, 8)) == ([], 0)


@pytest.mark.parametrize("seed", range(5))
def test_areas_and_peaks_agree_with_a_plain_search(seed):
    anomaly_map = np.random.default_rng(seed).random((24, 31), dtype=np.float32)
    regions, area = find_regions(anomaly_map, 0.6, (24, 31))
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(anomaly_map >= 0.6), strict=True)}
    expected = []
    while left:
        pending, found = [left.pop()], []
        while pending:
            y, x = pending.pop()
            found.append((y, x))
            near = {(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            pending += near
        ys, xs = zip(*found, strict=True)
        peak = float(max(anomaly_map[place] for place in found))
        expected.append(Region(min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1, len(found), peak))
    assert sorted(regions) == sorted(expected)
    assert area == sum(region.area for region in expected)
    assert [region.score for region in regions] == sorted((region.score for region in regions), reverse=True)


def test_a_row_is_json_and_exact():
    score = float(np.float32(0.1))
    cells = Verdict("normal", 1 / 3, score, 4, (Region(1, 2, 3, 4, 5, score),)).columns()
    assert json.loads(cells["regions"]) == [{"x": 1, "y": 2, "w": 3, "h": 4, "area": 5, "score": score}]
    assert Verdict().columns() == dict.fromkeys(cells)
    assert Verdict("normal", 0.5, 0.5, 0).columns()["regions"] == "[]"
