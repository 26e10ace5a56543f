"""The service by HTTP: answers equal predict's, and what is wrong gets a short reason."""

import io

import numpy as np
import pytest
from PIL import Image

import vlad
from vlad.serve import Worker

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")


def encoded(kind="PNG", size=(50, 40), seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def detector(tiny):
    options = {"backbone": tiny, "pretrained": None, "image_size": 64, "layers": [2, 4], "max_pixels": 10_000}
    detector = vlad.load("sdp", class_name="bolt", **options)
    draw = np.random.default_rng(1)
    detector.calibrate([draw.integers(0, 255, (40, 50, 3), np.uint8) for _ in range(10)], false_alarm_rate=0.2)
    return detector


@pytest.fixture
def service(detector):
    from fastapi.testclient import TestClient

    from vlad.serve.counters import Counters
    from vlad.serve.http import Limits, build

    worker = Worker(detector, max_batch=1, max_queue=2)
    client = TestClient(build(worker, Limits(upload=20_000), Counters()))
    client.worker = worker
    yield client
    worker.close()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("form", [False, True])
def test_an_answer_is_what_predict_says_of_the_file(service, detector, tmp_path, kind, form):
    exif = Image.Exif()
    exif[274] = 6  # turned
    content = encoded(kind, exif=exif)
    file = tmp_path / f"image.{kind.lower()}"
    file.write_bytes(content)
    expected = detector.predict(file, batch_size=1)
    given = {"files": {"image": (file.name, content)}} if form else {"content": content}
    answer = service.post("/predict", **given)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["score"] == expected.score
    row = expected.row()
    assert {name: found[name] for name in ("decision", "p_value", "threshold", "map_max", "regions")} == {
        name: row[name] for name in ("decision", "p_value", "threshold", "map_max", "regions")
    }
    assert (found["width"], found["height"]) == (40, 50)
    assert found["class_name"] == "bolt"
    assert found["model"]["method"] == "SDP"
    assert len(found["model"]["identity"]) == 16


def test_the_class_name_is_a_parameter_or_a_field(service, detector):
    content = encoded()
    expected = detector.predict(Image.open(io.BytesIO(content)), class_name="bolt")
    by_address = service.post("/predict?class_name=bolt", content=content).json()
    by_field = service.post("/predict", files={"any": content}, data={"class_name": "bolt"}).json()
    assert by_address["score"] == by_field["score"] == expected.score


def test_the_map_is_the_overlay(service, detector):
    content = encoded()
    answer = service.post("/map", content=content)
    expected = detector.predict(Image.open(io.BytesIO(content)))
    assert answer.headers["content-type"] == "image/png"
    assert float(answer.headers["x-vlad-score"]) == expected.score
    assert answer.headers["x-vlad-decision"] == expected.decision
    drawn = Image.open(io.BytesIO(answer.content))
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected.overlay()))
    small = service.post("/map?longest=25", content=content)
    assert Image.open(io.BytesIO(small.content)).size == (25, 20)


def pages():
    buffer = io.BytesIO()
    Image.new("L", (9, 9)).save(buffer, format="TIFF", save_all=True, append_images=[Image.new("L", (9, 9))])
    return buffer.getvalue()


FIELD = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'
FORM = {"content-type": "multipart/form-data"}
BOUNDARY = {"content-type": "multipart/form-data; boundary=x"}
REFUSED = {
    "nothing": (400, "no image", {}),
    "no image": (422, "no known image format", {"content": b"hello"}),
    "cut off": (422, "cannot read image", {"content": encoded()[:3000]}),
    "pages": (422, "2 pages", {"content": pages()}),
    "pixels": (422, "--max-pixels 10100", {"content": encoded("JPEG", (101, 100), quality=5)}),
    "too large": (413, "20,000 bytes", {"content": b"x" * 20_001}),
    "too large, in pieces": (413, "20,000 bytes", {"content": (b"x" * 999 for _ in range(99))}),
    "too large a file": (413, "20,000 bytes", {"files": {"a": b"x" * 20_001}}),
    "no boundary": (400, "the form cannot be read", {"content": b"x", "headers": FORM}),
    "broken form": (400, "the form", {"content": b"--y\r\n\r\nabc", "headers": BOUNDARY}),
    "no file": (400, "no file", {"content": FIELD, "headers": BOUNDARY}),
    "two files": (400, "Too many files", {"files": [("a", encoded()), ("b", encoded())]}),
    "empty class": (400, "class_name", {"content": encoded(), "params": {"class_name": " "}}),
    "long class": (400, "class_name", {"content": encoded(), "params": {"class_name": "x" * 201}}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_gets_a_status_and_a_short_reason(service, name):
    status, reason, given = REFUSED[name]
    answer = service.post("/predict", **given)
    assert answer.status_code == status, answer.text
    assert reason in answer.json()["error"]
    assert len(answer.json()["error"]) < 300
    assert service.worker.pending == 0


def test_a_full_queue_says_when_to_come_again(service):
    with service.worker.place(), service.worker.place():
        answer = service.post("/predict", content=encoded())
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert service.get("/ready").status_code == 503
        assert service.get("/health").status_code == 200
    assert service.get("/ready").status_code == 200
    assert service.post("/predict", content=encoded()).status_code == 200


def test_a_service_that_stops_takes_nothing(service):
    service.worker.stop_taking()
    assert service.post("/predict", content=encoded()).status_code == 503
    assert service.get("/ready").json() == {"status": "stopping"}


def test_metrics_count_answers_batches_and_decisions(service):
    decision = service.post("/predict", content=encoded()).json()["decision"]
    service.post("/predict", content=b"hello")
    answer = service.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = set(answer.text.splitlines())
    assert 'vlad_requests_total{path="/predict",status="200"} 1.0' in lines
    assert 'vlad_requests_total{path="/predict",status="422"} 1.0' in lines
    assert f'vlad_decisions_total{{decision="{decision}"}} 1.0' in lines
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)


def test_no_page_loads_anything_from_elsewhere(service):
    assert service.get("/docs").status_code == service.get("/redoc").status_code == 404
    assert "/predict" in service.get("/openapi.json").json()["paths"]
