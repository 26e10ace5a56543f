"""What the page does, without a browser."""

import numpy as np
import pytest
from PIL import Image

import vlad
from vlad.app.bench import Bench, Choice, decide, slider_range, training_free
from vlad.errors import DataError, DecisionError, MethodError


@pytest.fixture(scope="module")
def options(tiny):
    return {"backbone": tiny, "pretrained": None, "image_size": 64, "layers": [2, 4]}


@pytest.fixture
def bench(options):
    loaded = []

    def load(name):
        loaded.append(name)
        return vlad.load(name, **options)

    bench = Bench(load)
    bench.loaded = loaded
    return bench


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(12):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed:02}.png")
    (folder / "bad.png").write_bytes(b"no image")
    return [str(file) for file in sorted(folder.glob("*.png"))]


def test_images_get_the_scores_of_predict_and_nothing_decides(bench, photos, options):
    found = bench.score([*photos[:3], photos[-1]], Choice("sdp", "bolt"))
    expected = vlad.load("sdp", **options).predict(photos[:3], class_name="bolt")
    assert [one.score for one in found.images[:3]] == pytest.approx([one.score for one in expected], rel=1e-5)
    assert [one.decision for one in found.images] == ["", "", "", ""]
    assert found.threshold is None
    assert found.images[0].overlay.size == (50, 40)
    assert "bad.png" in found.images[3].error


def test_calibration_decides_and_the_threshold_can_be_moved(bench, photos, options):
    choice = Choice("sdp", "bolt", calibration=tuple(photos[:10]), rate=0.2)
    found = bench.score(photos[10:12], choice)
    detector = vlad.load("sdp", **options, class_name="bolt")
    decision = detector.calibrate(photos[:10], false_alarm_rate=0.2)
    assert found.threshold == pytest.approx(decision.rules["bolt"].threshold, rel=1e-5)
    assert [one.decision for one in found.images] == [one.decision for one in detector.predict(photos[10:12])]
    assert "10 good parts" in found.told
    scores = sorted(one.score for one in found.images)
    moved = decide(found.images, scores[1])
    assert sorted(one.decision for one in moved) == ["anomalous", "normal"]
    low, high, value, step = slider_range(found.images, found.threshold)
    assert low < scores[0] < scores[1] < high
    assert value == found.threshold
    assert 0 < step < (high - low) / 100
    assert slider_range(found.images, None)[2] > scores[1]


def test_a_detector_is_made_once_for_a_choice(bench, photos):
    choice = Choice("patch_memory", references=tuple(photos[:2]))
    first, again = bench.score(photos[2:4], choice), bench.score(photos[2:4], choice)
    assert [one.score for one in first.images] == [one.score for one in again.images]
    bench.score(photos[2:4], choice._replace(references=tuple(photos[4:6])))
    assert bench.loaded == ["patch_memory"] * 2


def test_what_is_missing_is_told(bench, photos):
    for files, choice, kind, text in (
        ([], Choice("sdp"), DataError, "drop an image"),
        (photos[:1], Choice("patch_memory"), MethodError, "drop some as references"),
        (photos[:1], Choice("musc"), MethodError, "whole test set"),
        (photos[:1], Choice("sdp", calibration=tuple(photos[:3])), DecisionError, "give at least 19"),
        (photos[-1:], Choice("sdp"), DataError, "bad.png"),
    ):
        with pytest.raises(kind, match=text):
            bench.score(files, choice)


def test_methods_that_are_trained_are_not_offered():
    names = training_free()
    assert {"sdp", "winclip", "patch_memory"} <= set(names)
    assert not {"sdp_plus", "adaclip", "anomalyclip"} & set(names)


def test_a_decision_of_another_class_does_not_decide(photos, options, tmp_path):
    detector = vlad.load("sdp", **options, class_name="bolt")
    decision = detector.calibrate(photos[:10], false_alarm_rate=0.2).save(tmp_path / "decision.json")
    bench = Bench(lambda name: vlad.load(name, **options, decision=decision))
    with pytest.warns(UserWarning, match="no decision on images of 'nut'"):
        found = bench.score(photos[10:12], Choice("sdp", "nut"))
    assert found.threshold is None
    assert "knows images of bolt" in found.told
    assert bench.score(photos[10:12], Choice("sdp", "bolt")).threshold is not None
