"""The HTTP server: uvicorn with time limits for connections, and without its own signal handlers."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from mcpmq.serving.limits import LIMITS, Limits
from mcpmq.system.interruption import call_on_signal

KEEP_ALIVE_SECONDS, SHUTDOWN_SECONDS = 5, 1
MAX_HEADER_NBYTES = 16 << 10


class _Protocol(H11Protocol):
    """Closes connections that neither send headers nor take their response: uvicorn has no limit for them."""

    limits = LIMITS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does not set it for a socket that was opened without a protocol number; tokens would wait 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._check_later(was_idle=False)

    def _check_later(self, *, was_idle: bool) -> None:
        self.loop.call_later(self.limits.header_seconds, self._check, was_idle)

    def _check(self, was_idle: bool) -> None:
        transport = self.transport
        is_answering = self.cycle is not None and not self.cycle.response_complete
        is_idle = transport.is_closing() or not is_answering
        if is_idle and was_idle:
            transport.abort()
        elif not (transport.is_closing() and self.cycle is None):
            self._check_later(was_idle=is_idle)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with call_on_signal(self._stop):
            yield

    def _stop(self) -> None:
        self.should_exit, self.force_exit = True, self.should_exit


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        OSError: the address is not one of this computer, or in use.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family)


def make_server(app: ASGIApp, limits: Limits = LIMITS) -> uvicorn.Server:
    """Return a server; its `run(sockets=...)` ends at a signal."""
    for name in ("uvicorn.error", "python_multipart", "asyncio"):  # which write warnings for invalid requests
        logging.getLogger(name).setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        http=type("Protocol", (_Protocol,), {"limits": limits}),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_NBYTES,
    )
    return _Server(config)
