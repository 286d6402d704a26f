"""Connections: slow clients are disconnected, and tokens are sent at once."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mcpmq.serving.http_server import make_server, open_socket
from mcpmq.serving.limits import LIMITS

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"


async def _show(request: Request) -> Response:
    return PlainTextResponse("complete")


@contextmanager
def _connection(connections: int = 256) -> Iterator[socket.socket]:
    """Serve an application that ignores bodies, and connect to it."""
    limits = replace(LIMITS, header_seconds=0.05, connections=connections)
    app = Starlette(routes=[Route("/", _show, methods=["GET", "POST"])])
    with open_socket("127.0.0.1", 0) as listening:
        server = make_server(app, limits)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        with socket.create_connection(listening.getsockname(), timeout=10) as connection:
            yield connection
        server.should_exit = True
        thread.join()


def _received(connection: socket.socket) -> bytes:
    """Return all bytes until the server closes the connection."""
    found = b""
    try:
        while part := connection.recv(4096):
            found += part
    except ConnectionResetError:
        pass
    return found


@pytest.mark.parametrize("sent", [b"", b"GET / HT", REQUEST[:-2], b"\r\n\r\n"])
def test_clients_that_send_no_headers_are_disconnected(sent: bytes) -> None:
    """A connection without a complete request is closed after the time limit."""
    with _connection() as connection:
        connection.sendall(sent)

        assert b"complete" not in _received(connection)


def test_clients_that_do_not_finish_are_disconnected() -> None:
    """After the response, the rest of a body is not awaited for ever."""
    with _connection() as connection:
        connection.sendall(BODY)

        assert b"complete" in _received(connection)


def test_several_requests_share_a_connection() -> None:
    """A client that sends the next request in time is answered."""
    with _connection() as connection:
        for _ in range(3):
            connection.sendall(REQUEST)
            found = connection.recv(4096)
            while not found.endswith(b"complete"):
                found += connection.recv(4096)
            assert found.startswith(b"HTTP/1.1 200")


def test_the_number_of_connections_is_limited() -> None:
    """Further connections get the status 503."""
    with _connection(connections=1) as connection:
        connection.sendall(REQUEST)

        assert connection.recv(4096).startswith(b"HTTP/1.1 503")
