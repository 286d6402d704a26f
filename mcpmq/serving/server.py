"""Serve a model over HTTP until a signal ends the process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mcpmq.serving.api import Api, make_app
from mcpmq.serving.backend import ServerOptions, running_model
from mcpmq.serving.http_server import make_server, open_socket
from mcpmq.serving.limits import LIMITS


def serve(path: Path, options: ServerOptions, show_url: Callable[[str], None]) -> None:
    """Serve the model of a folder until a signal; `show_url` is called when the server is ready.

    Raises:
        McpmqError: the folder has no model, or the engine cannot load it.
        OSError: the address cannot be used.
    """
    limits = replace(LIMITS, tokens=options.max_tokens)
    with open_socket(options.host, options.port) as listening, running_model(path, options, limits) as (engine, model):
        host = f"[{options.host}]" if ":" in options.host else options.host
        show_url(f"http://{host}:{listening.getsockname()[1]}")
        app = make_app(Api(model, engine, options.slots, limits), key=options.key, local=options.is_local)
        make_server(app).run(sockets=[listening])
