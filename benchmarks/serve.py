"""`vlad serve` under load: requests lost, latency, memory, a malformed upload, SIGTERM with requests in flight.

    python benchmarks/serve.py --requests 10000 --clients 32

The service and its clients share the machine. Its detector is SDP on vlad-tiny at 96 px, the images are JPEGs of 128
px; every answer is compared with the score that `Detector.predict` gives.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

MODEL = {"backbone": "vlad-tiny", "image_size": 96}


def jpegs(count: int) -> list[bytes]:
    """Returns JPEGs of smooth noise."""
    found = []
    for seed in range(count):
        small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((128, 128), Image.Resampling.BICUBIC).save(buffer, format="JPEG")
        found.append(buffer.getvalue())
    return found


def expected(images: list[bytes]) -> list[float]:
    """Returns the scores that predict gives, one image at a time."""
    import vlad

    detector = vlad.load("sdp", **MODEL)
    return [detector.predict(Image.open(io.BytesIO(image)), batch_size=1).score for image in images]


def resident(process: int) -> int:
    """Returns the resident MiB of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) // 1024


class Client(threading.Thread):
    """Sends one image after another over one connection, and notes what came back."""

    def __init__(self, port: int, images: list[bytes], numbers: range) -> None:
        super().__init__()
        self.port, self.images, self.numbers = port, images, numbers
        self.answers: dict[int, tuple[int, float, float]] = {}  # number -> status, seconds, score

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        for number in self.numbers:
            start = time.perf_counter()
            try:
                connection.request("POST", "/predict", self.images[number % len(self.images)])
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                continue
            score = json.loads(content).get("score", float("nan"))
            self.answers[number] = (answer.status, time.perf_counter() - start, score)
        connection.close()


def load(port: int, images: list[bytes], count: int, clients: int) -> dict[int, tuple[int, float, float]]:
    """Sends ``count`` requests from ``clients`` threads."""
    threads = [Client(port, images, range(first, count, clients)) for first in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {number: answer for thread in threads for number, answer in thread.answers.items()}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    images = jpegs(16)
    scores = expected(images)
    model = [part for name, value in MODEL.items() for part in (f"--model.{name}", str(value))]
    command = [sys.executable, "-m", "vlad", "serve", "sdp", *model, "--port", "0", "--max-batch", "16"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        port = next(int(found[1]) for line in process.stdout if (found := re.search(r"at http://\S+:(\d+)", line)))
        run(process, port, images, scores, options.requests, options.clients)


def run(
    process: subprocess.Popen, port: int, images: list[bytes], scores: list[float], count: int, clients: int
) -> None:
    """Loads a running service and prints what was seen."""
    parts = [count // 100, count // 2 - count // 100, count - count // 2]  # memory is read between them
    memory, answers = [], []
    start = time.perf_counter()
    for part in parts:
        answers += load(port, images, part, clients).items()
        memory.append(resident(process.pid))
    seconds = time.perf_counter() - start
    good = [(number, spent, score) for number, (status, spent, score) in answers if status == 200]
    worst = max(abs(score / scores[number % len(scores)] - 1) for number, _, score in good)
    p50, p95, p99 = (1000 * float(np.quantile([spent for _, spent, _ in good], part)) for part in (0.5, 0.95, 0.99))

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", images[0][:500])
    refused = connection.getresponse()
    reason = json.loads(refused.read())["error"]
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    scored, batches = (
        float(re.search(rf"^{name} (\S+)", text, re.M)[1]) for name in ("vlad_images_total", "vlad_batch_images_count")
    )

    last = threading.Thread(target=lambda: flight.update(load(port, images, clients, clients)))
    flight: dict[int, tuple[int, float, float]] = {}
    last.start()
    while unanswered(port) < clients // 2 and last.is_alive():
        pass
    process.send_signal(signal.SIGTERM)
    last.join()
    status = process.wait(60)
    statuses = sorted({answer[0] for answer in flight.values()})

    print("| requests | clients | answered 200 | lost | requests/s | p50 ms | p95 ms | p99 ms | images a batch |")
    print("|---|---|---|---|---|---|---|---|---|")
    answered = f"| {count} | {clients} | {len(good)} | {count - len(answers)} | {count / seconds:.0f}"
    print(f"{answered} | {p50:.0f} | {p95:.0f} | {p99:.0f} | {scored / batches:.1f} |")
    print(f"\nresident MiB after 1, 50 and 100 %: {', '.join(map(str, memory))}")
    print(f"largest relative distance from Detector.predict at batch size 1: {worst:.1e}")
    print(f"a JPEG cut off: status {refused.status}, {reason}")
    print(f"SIGTERM with {clients} requests sent: {len(flight)} answered, statuses {statuses}; exit status {status}")
    print(f"CPU cores: {os.cpu_count()}, load before: {os.getloadavg()[2]:.1f}")


def unanswered(port: int) -> int:
    """Returns how many requests have no answer yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return int(float(re.search(r"^vlad_pending (\S+)", text, re.M)[1]))


if __name__ == "__main__":
    main()
