"""Serve an artifact over HTTP until a signal ends the process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import httpx2

from mcpmq.artifact import Artifact
from mcpmq.errors import EngineError
from mcpmq.runners.launcher import ENGINES
from mcpmq.serving.api import Api, make_app
from mcpmq.serving.engine_process import EngineProcess, running_engine
from mcpmq.serving.http_server import make_server, open_socket
from mcpmq.serving.limits import LIMITS, Limits
from mcpmq.serving.served_model import describe, model_name

LLAMA_SERVER = "mcpmq.serving.llama_server"
VISION_COMPONENT = "vision+projector"
SPARE_HTTP_THREADS = 4  # of llama.cpp, beside one for every slot
PREPROCESSING_NOTE = (
    "llama.cpp slices and resizes images itself: answers about images that are not square can differ from the measured"
    " ones"
)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Address, key and resources of the server."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: a free one
    slots: int = 1  # answers at a time
    context: int = 4096  # tokens of every slot
    threads: int | None = None  # None: one for every core
    key: str | None = None

    @property
    def is_local(self) -> bool:
        """Return whether only programs on this computer can connect."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False


def serve(artifact: Artifact, options: ServerOptions, show_url: Callable[[str], None]) -> None:
    """Serve an artifact until a signal; `show_url` is called when the server is ready.

    Raises:
        EngineError: the engine cannot run the artifact.
        OSError: the address cannot be used.
    """
    with open_socket(options.host, options.port) as listening, running_model(artifact, options) as (engine, model):
        api = Api(model, engine, options.slots, LIMITS)
        host = f"[{options.host}]" if ":" in options.host else options.host
        show_url(f"http://{host}:{listening.getsockname()[1]}")
        make_server(make_app(api, key=options.key, local=options.is_local)).run(sockets=[listening])


@contextmanager
def running_model(artifact: Artifact, options: ServerOptions, limits: Limits = LIMITS) -> Iterator[Any]:
    """Yield the running engine of an artifact, and the model that it serves."""
    if artifact.manifest.kind != "gguf":
        raise EngineError(f"artifacts of format `{artifact.manifest.kind}` cannot be served", "export it as gguf")
    with running_engine(LLAMA_SERVER, _llama_settings(artifact, options)) as engine:
        context = min(options.context, _trained_context(engine))
        has_vision = bool(artifact.component_files(VISION_COMPONENT))
        notes = (PREPROCESSING_NOTE,) if has_vision else ()
        name, _ = ENGINES["gguf"]
        yield engine, describe(artifact, name, has_vision=has_vision, context=context, notes=notes, limits=limits)


def _trained_context(engine: EngineProcess) -> int:
    """Return the tokens that the model was trained for; llama.cpp limits the context of a slot to them."""
    transport = httpx2.HTTPTransport(uds=str(engine.socket))
    with httpx2.Client(transport=transport, headers=engine.headers, trust_env=False) as client:
        [model] = client.get("http://engine/v1/models").json()["data"]
    return int(model["meta"]["n_ctx_train"])


def _llama_settings(artifact: Artifact, options: ServerOptions) -> dict[str, Any]:
    language, *_ = artifact.component_files("language")  # llama.cpp finds the other parts of a split file
    mmproj = artifact.component_files(VISION_COMPONENT)
    return {
        "name": model_name(artifact),
        "language": str(language.absolute()),
        "mmproj": str(mmproj[0].absolute()) if mmproj else None,
        "slots": options.slots,
        "context": options.context,
        "threads": options.threads or os.cpu_count() or 1,
        "http_threads": options.slots + SPARE_HTTP_THREADS,
    }
