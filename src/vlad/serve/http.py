"""The service's addresses: ``/predict``, ``/map``, ``/health``, ``/ready``, ``/metrics``."""

# Without postponed annotations: FastAPI reads those of the handlers, whose types are imported within a function.
import asyncio
import hashlib
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlad.errors import VladError
from vlad.serve.uploads import Refused, decode, read_upload
from vlad.serve.worker import Busy, Closed, Worker

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vlad.detector import Detector, Result
    from vlad.serve.counters import Counters

__all__ = ["Limits", "answer_of", "build", "identity_of"]


@dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes:
        upload: Bytes of an image file.
        seconds: Until its body has come.
    """

    upload: int = 32 << 20
    seconds: float = 30.0


def identity_of(detector: "Detector") -> dict[str, Any]:
    """Returns what tells the model from others: names for people, and a digest of all that scores depend on."""
    from vlad import __version__
    from vlad.identity import scoring_identity

    method = detector.method
    identity = scoring_identity(method, data=detector.data_options())
    text = json.dumps(identity, sort_keys=True, default=str)
    return {
        "method": type(method).__name__,
        "backbone": None if method.backbone is None else method.backbone.name,
        "image_size": detector.preprocess.size,
        "identity": hashlib.sha256(text.encode()).hexdigest()[:16],
        "vlad": __version__,
    }


def answer_of(result: "Result", model: dict[str, Any]) -> dict[str, Any]:
    """Returns what is said of an image: plain JSON values, None where nothing is known."""
    row = result.row()
    height, width = result.original_size
    return {
        "score": row["image_score"],
        "decision": row["decision"],
        "p_value": row["p_value"],
        "threshold": row["threshold"],
        "map_max": row["map_max"],
        "anomalous_area": row["anomalous_area"],
        "regions": row["regions"],
        "class_name": result.class_name,
        "width": width,
        "height": height,
        "model": model,
    }


def build(worker: Worker, limits: Limits, counters: "Counters") -> "FastAPI":
    """Returns the application.

    Args:
        worker: What scores.
        limits: What a request may cost.
        counters: What ``/metrics`` tells.
    """
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import JSONResponse

    # no pages of documentation: they would load scripts from elsewhere
    app = FastAPI(title="vlad", docs_url=None, redoc_url=None)
    model = identity_of(worker.detector)
    decoding = asyncio.Semaphore(os.cpu_count() or 1)

    async def score(request: Request) -> "Result":
        with worker.place():
            async with asyncio.timeout(limits.seconds):
                upload = await read_upload(request, limits.upload)
            async with decoding:
                image = await asyncio.to_thread(decode, upload, worker.detector.reading)
            result = await asyncio.wrap_future(worker.submit(image, upload.class_name))
        if result.error:
            raise Refused(422, result.error)
        return result

    @app.middleware("http")
    async def count(request: Request, go_on: Any) -> Response:
        """Turns refusals into short answers, and counts."""
        start = time.perf_counter()
        headers: dict[str, str] = {}
        try:
            response: Response = await go_on(request)
        except Exception as error:
            status, reason = _status(error)
            if isinstance(error, Busy):
                headers["Retry-After"] = str(error.seconds)
            if status in {408, 413, 429}:  # its body was not read to the end
                headers["Connection"] = "close"
            response = JSONResponse({"error": reason}, status, headers)
        if request.url.path in {"/predict", "/map"}:
            counters.request(request.url.path, response.status_code, time.perf_counter() - start)
        return response

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        """Scores an image: its bytes as the body, or a form with one file; ``class_name`` as parameter or field."""
        result = await score(request)
        counters.decided(result.decision)
        return JSONResponse(answer_of(result, model))

    @app.post("/map", response_class=Response)
    async def heat_map(request: Request, longest: int = 0) -> Response:
        """Scores an image and draws its map over it: a PNG, at most ``longest`` pixels long; 0 for its own size."""
        result = await score(request)
        counters.decided(result.decision)
        content = await asyncio.to_thread(_png, result, longest)
        told = {"X-Vlad-Score": repr(result.score), "X-Vlad-Decision": result.decision}
        return Response(content, media_type="image/png", headers=told)

    @app.get("/health")
    async def health() -> Response:
        """200 while the process works."""
        return JSONResponse({"status": "ok", "model": model})

    @app.get("/ready")
    async def ready() -> Response:
        """200 while images are taken, else 503."""
        state = "ready" if worker.alive and not worker.full else "busy" if worker.alive else "stopping"
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters in the text format of Prometheus."""
        content, kind = counters.text()
        return Response(content, media_type=kind)

    return app


def _status(error: Exception) -> tuple[int, str]:
    """Returns the HTTP status of what went wrong, and the reason in one line."""
    if isinstance(error, Refused):
        return error.status, str(error)
    if isinstance(error, Busy):
        return 429, str(error)
    if isinstance(error, Closed):
        return 503, "the service is stopping"
    if isinstance(error, TimeoutError):
        return 408, "the image did not come in time"
    if isinstance(error, VladError):
        from vlad.cli.messages import one_line

        return 422, one_line(error)
    from starlette.requests import ClientDisconnect

    if isinstance(error, ClientDisconnect):
        return 400, "the client has gone"
    import traceback

    traceback.print_exception(error)
    return 500, f"this is a defect of vlad: {type(error).__name__}"


def _png(result: "Result", longest: int) -> bytes:
    import numpy as np

    from vlad.drawing.png import encode_png

    return encode_png(np.asarray(result.overlay(longest=longest if longest > 0 else None)))
