"""A server for the tiny GGUF artifact, in a thread, with its engine in a child process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread

import httpx2
import pytest

from mcpmq.artifact import Artifact
from mcpmq.serving.api import Api, make_app
from mcpmq.serving.engine_process import EngineProcess
from mcpmq.serving.http_server import make_server, open_socket
from mcpmq.serving.limits import LIMITS, Limits
from mcpmq.serving.server import ServerOptions, running_model
from tests.serving.requests import Served

CONTEXT = 512


@contextmanager
def serving(artifact: Artifact, limits: Limits = LIMITS, key: str | None = None) -> Iterator[Served]:
    """Serve an artifact on a free port until the end of the block."""
    options = ServerOptions(port=0, context=CONTEXT, threads=1, key=key)
    with (
        open_socket(options.host, options.port) as listening,
        running_model(artifact, options, limits) as (engine, model),
    ):
        server = make_server(make_app(Api(model, engine, options.slots, limits), key=key, local=True))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        with httpx2.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60) as client:
            yield Served(client, engine)
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def served(tiny_exports: list[Artifact]) -> Iterator[Served]:
    """A server without a key."""
    with serving(tiny_exports[0], replace(LIMITS, body_nbytes=1 << 20, pixels=1_000_000, queue=2)) as found:
        yield found


@pytest.fixture
def client(served: Served) -> httpx2.Client:
    """A client of the server."""
    return served.client


@pytest.fixture
def engine(served: Served) -> EngineProcess:
    """The engine of the server."""
    return served.engine
