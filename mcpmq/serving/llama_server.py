"""llama.cpp's own server on a Unix socket, in a child process.

    python -m mcpmq.serving.llama_server

reads a line of JSON from stdin (the fields of `LlamaSettings`), and serves until stdin ends.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

from mcpmq.formats.kv_cache import F16_CACHE, KvCache
from mcpmq.serving.engine_process import READY
from mcpmq.serving.gguf import set_cache_types
from mcpmq.system.ggml_library import load_library

ERRORS_ONLY = 1  # verbosity of llama.cpp's log


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """Settings of llama.cpp; paths as text."""

    name: str  # in answers
    language: str
    mmproj: str | None
    slots: int
    context: int  # tokens of every slot
    threads: int
    http_threads: int
    socket: str
    key: str
    kv_cache: str = str(F16_CACHE)


def main() -> None:
    """Load the model, write `READY`, and serve until stdin ends."""
    settings = LlamaSettings(**json.loads(sys.stdin.readline()))
    load_library()  # checks the version of the wheel
    import xllamacpp

    server = xllamacpp.Server(_parameters(xllamacpp.CommonParams(), settings))
    sys.stdout.write(f"{READY}{{}}\n")
    sys.stdout.flush()
    sys.stdin.read()
    del server


def _parameters(parameters: Any, settings: LlamaSettings) -> Any:
    parameters.model.path, parameters.mmproj.path = settings.language, settings.mmproj or ""
    parameters.model_alias = {settings.name}
    parameters.hostnames, parameters.api_keys = [settings.socket], [settings.key]
    parameters.n_ctx, parameters.n_parallel = settings.context * settings.slots, settings.slots
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = settings.threads
    parameters.n_threads_http = settings.http_threads
    parameters.use_jinja, parameters.ui, parameters.offline = True, False, True
    parameters.endpoint_slots, parameters.endpoint_metrics = False, True
    set_cache_types(parameters, KvCache.parse(settings.kv_cache))
    parameters.fit_params = False  # the context is the requested one
    parameters.cache_ram_mib = 0  # by default, 8 GiB of prompts are kept
    parameters.verbosity = ERRORS_ONLY
    return parameters


if __name__ == "__main__":
    main()
