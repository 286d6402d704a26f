"""A chat engine behind the protocol of llama.cpp's server, on a Unix socket, in a child process.

    python -m mcpmq.serving.worker

reads a line of JSON from stdin (the fields of `WorkerSettings`), and serves until it is killed. So all engines have one
interface, and an engine that crashes is replaced in the same way.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import uvicorn

from mcpmq.errors import McpmqError
from mcpmq.serving.artifacts import open_engine
from mcpmq.serving.engine import ChatEngine
from mcpmq.serving.engine_process import READY
from mcpmq.serving.worker_api import make_worker_app


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Settings of a worker; paths as text."""

    name: str  # in answers
    path: str
    context: int
    threads: int
    socket: str
    key: str
    adapters: tuple[str, ...] = ()  # folders of LoRA adapters, merged into a checkpoint


class _Server(uvicorn.Server):
    """Calls a function when requests are accepted."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, *arguments: object, **options: object) -> None:
        await super().startup(*arguments, **options)  # type: ignore[arg-type]
        self._on_ready()


def main() -> int:
    """Load the model, write `READY` with facts about it, and serve; return 1 if the model cannot be loaded."""
    settings = WorkerSettings(**json.loads(sys.stdin.readline()))
    try:
        adapters = [Path(folder) for folder in settings.adapters]
        engine = open_engine(Path(settings.path), settings.threads, settings.context, adapters=adapters)
    except McpmqError as error:
        sys.stderr.write(f"{error}\n{error.hint}\n")
        return 1
    app = make_worker_app(engine, settings.name, settings.key)
    config = uvicorn.Config(
        app, uds=settings.socket, http="h11", ws="none", lifespan="off", log_config=None, access_log=False
    )
    Thread(target=_exit_at_end_of_stdin, daemon=True).start()
    _Server(config, lambda: _report(engine)).run()
    return 0


def _report(engine: ChatEngine) -> None:
    facts = {
        "engine": engine.label,
        "context": engine.context_length,
        "vision": engine.has_vision,
        "audio": engine.has_audio,
    }
    sys.stdout.write(f"{READY}{json.dumps(facts)}\n")
    sys.stdout.flush()


def _exit_at_end_of_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
