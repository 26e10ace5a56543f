"""One thread for all: batches, their answers, the end."""

import threading

import numpy as np
import pytest
from PIL import Image

import vlad
from vlad.errors import MethodError
from vlad.serve import Busy, Closed, Worker


def images(count, seed=0):
    draw = np.random.default_rng(seed)
    return [Image.fromarray(draw.integers(0, 255, (40, 50, 3), np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def detector(tiny):
    return vlad.load("sdp", backbone=tiny, pretrained=None, image_size=64, layers=[2, 4], class_name="bolt")


def test_what_waits_together_is_scored_together_and_answered_in_order(detector):
    sizes = []
    worker = Worker(detector, max_batch=4, max_wait=5.0, on_batch=lambda count, seconds: sizes.append(count))
    given = images(8)
    answers = [worker.submit(image) for image in given]
    results = [answer.result(30) for answer in answers]
    worker.close()
    assert sizes == [4, 4]
    alone = [detector.predict(image, batch_size=1) for image in given]
    np.testing.assert_allclose([one.score for one in results], [one.score for one in alone], rtol=1e-5)
    assert len({one.score for one in results}) == 8


def test_an_image_alone_has_the_score_of_predict_to_the_last_bit(detector):
    worker = Worker(detector, max_batch=1)
    for image in images(3):
        found, expected = worker.submit(image, "nut").result(30), detector.predict(image, class_name="nut")
        assert found.score == expected.score
        np.testing.assert_array_equal(found.map, expected.map)
    worker.close()


def test_an_image_at_fault_fails_alone(tiny):
    references = {"bolt": images(2, 1), "nut": images(2, 2)}
    detector = vlad.load("sdp", backbone=tiny, pretrained=None, image_size=64, layers=[2, 4], references=references)
    worker = Worker(detector, max_batch=3, max_wait=5.0)
    names = ("bolt", "cog", "nut")
    good, bad, other = (worker.submit(image, name) for image, name in zip(images(3), names, strict=True))
    with pytest.raises(MethodError, match="no references of 'cog'"):
        bad.result(30)
    assert good.result(30).score is not None
    assert other.result(30).score is not None
    worker.close()


def test_places_are_counted_and_given_back(detector):
    worker = Worker(detector, max_queue=2)
    with worker.place(), worker.place():
        assert worker.full
        with pytest.raises(Busy) as busy, worker.place():
            pass
        assert busy.value.seconds >= 1
    assert worker.pending == 0
    worker.close()


def test_the_end_comes_after_the_last_answer(detector):
    worker = Worker(detector, max_batch=2)
    answers = [worker.submit(image) for image in images(9)]
    worker.stop_taking()
    with pytest.raises(Closed), worker.place():
        pass
    late = worker.submit(images(1)[0])  # it had its place before
    worker.close()
    assert all(answer.done() and answer.result().score is not None for answer in [*answers, late])
    with pytest.raises(Closed):
        worker.submit(images(1)[0])
    assert not any(thread.name == "vlad-serve" and thread is worker._thread for thread in threading.enumerate())


def test_texts_of_made_up_classes_do_not_pile_up(detector, monkeypatch):
    monkeypatch.setattr("vlad.serve.worker._NAMES", 4)
    worker = Worker(detector, max_batch=1)
    for number in range(12):
        worker.submit(images(1)[0], f"class {number}").result(30)
    worker.close()
    assert len(detector.method._texts._known) <= 5


def test_methods_that_do_not_score_image_by_image_are_refused(tiny):
    options = {"backbone": tiny, "pretrained": None, "image_size": 64, "layers": [2, 4]}
    with pytest.raises(MethodError, match="transductive"):
        Worker(vlad.load("musc", **options))
    with pytest.raises(MethodError, match="reference images and has none"):
        Worker(vlad.load("patch_memory", **options))
