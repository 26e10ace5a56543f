"""``vlad serve`` as a process: it starts, answers, and stops in order."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from vlad.cli import main

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")


@pytest.fixture
def start(tmp_path, tiny):
    running = []

    def start(*options):
        model = ["sdp", "--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]"]
        command = [sys.executable, "-m", "vlad", "serve", *model, "--port", "0", *options]
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        for line in process.stdout:
            found = re.search(r"at (http://\S+)", line)
            if found:
                return process, found[1]
        raise AssertionError(f"it ended with {process.wait()}")

    yield start
    for process in running:
        process.kill()
        process.wait()


def png(seed=0):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 60, 3), np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_sigterm_stops_it_once_all_that_was_let_in_is_answered(start, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(png())
    # the batch waits for an eighth image: when the signal comes, all are in the queue
    process, address = start("--max-wait", "60000", "--max-batch", "8", "--watch", "in", "--output", "out")
    with ThreadPoolExecutor(7) as pool, httpx.Client(base_url=address, timeout=60) as client:
        answers = [pool.submit(client.post, "/predict", content=png(seed)) for seed in range(6)]
        while not re.search(r"^vlad_pending 6\.0$", client.get("/metrics").text, re.MULTILINE):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        statuses = [answer.result().status_code for answer in answers]
    assert process.wait(60) == 0
    assert statuses == [200] * 6
    assert "all requests were answered" in process.stdout.read()
    assert (tmp_path / "out/predictions.csv").read_text().startswith("path,")


def test_wrong_options_are_told_before_anything_is_loaded(capsys, tmp_path):
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    for options, status, text in (
        (["sdp", "--port", port], 2, "in use"),
        (["sdp", "--port", "99999"], 2, "--port"),
        (["sdp", "--host", "nowhere.invalid"], 2, "--host nowhere.invalid"),
        (["sdp", "--max-queue", "0"], 2, "--max-queue"),
        (["sdp", "--max-upload", "0"], 2, "--max-upload"),
        (["sdp", "--watch", str(tmp_path)], 2, "--output"),
        (["sdp", "--port", "0", "--data.batch_size", "3"], 2, "--data.batch_size"),
        (["sdpp", "--port", "0"], 1, "did you mean sdp"),
        (["runs/nothing/here", "--port", "0"], 1, "does not exist"),
    ):
        assert main(["serve", *options]) == status, options
        assert text in capsys.readouterr().err
    taken.close()


def test_methods_that_cannot_be_served_are_refused(capsys, tiny):
    model = ["--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]"]
    for method, text in (("musc", "transductive"), ("sdp_plus", "trained"), ("patch_memory", "--references")):
        assert main(["serve", method, "--port", "0", *model]) == 1
        assert text in capsys.readouterr().err
