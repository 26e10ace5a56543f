"""Runs the service: bound before anything heavy is loaded, stopped in order."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vlad.errors import OptionError
from vlad.signals import handling

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["bind", "is_loopback", "serve"]


def bind(host: str, port: int) -> socket.socket:
    """Takes an address and does not listen there yet.

    Raises:
        OptionError: It cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise OptionError(
            f"--host {host}: {error.strerror or error}; give 127.0.0.1, or an address of yours"
        ) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        bound.close()
        cause = getattr(error, "strerror", None) or str(error)
        raise OptionError(f"--host {host} --port {port}: {cause}; choose another --port (0 for a free one)") from error
    return bound


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address.

    Examples:
        >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0")]
        [True, True, True, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    app: FastAPI,
    bound: socket.socket,
    listening: Callable[[], None],
    stopping: Callable[[], None],
    *,
    patience: int = 30,
) -> bool:
    """Serves until SIGTERM or SIGINT comes, then answers what was let in.

    Args:
        app: The application.
        bound: The socket, bound.
        listening: Is called when requests are taken.
        stopping: Is called when nothing new is to be taken any more.
        patience: Seconds that answers in flight are waited for.

    Returns:
        Whether all requests were answered.
    """
    import uvicorn

    class Server(uvicorn.Server):
        whole = True

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leaves signals to vlad: uvicorn would raise them again at the end, and the status be no 0."""
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Tells who waits that it listens."""
            await super().startup(sockets)
            listening()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Tells the worker first, and sees whether all were answered in time."""
            stopping()
            start = time.monotonic()
            await super().shutdown(sockets)
            self.whole = time.monotonic() - start < patience

    config = uvicorn.Config(
        app,
        log_level="critical",  # defects are printed where they become answers
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=patience,
    )
    server = Server(config)

    def stop(number: int, frame: Any) -> None:
        server.should_exit = True

    with handling(stop):
        server.run(sockets=[bound])
    return server.whole
