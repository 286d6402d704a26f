"""Overhead of the server against the bare engine: `python -m benchmarks.serving ARTIFACT`.

Every round sends one request with an image and a long answer to llama.cpp in this process, and to `mcpmq serve`, whole
and streamed. The overhead is the wall time minus the time that the engine reports for prompt and answer. The result is
written to benchmarks/results/serving-overhead.json.
"""

import argparse
import json
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import psutil

from benchmarks.commands import HELDOUT, provenance, write_result
from mcpmq.artifact import Artifact
from mcpmq.system.child_process import child_process
from mcpmq.system.ggml_library import load_library

ROUNDS, TOKENS, CONTEXT = 15, 400, 2048
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: seconds until the end and until the first token, and those that the engine reports."""

    seconds: float
    first_token_seconds: float | None
    engine_seconds: float
    tokens_per_second: float


Way = Callable[[dict[str, Any]], Sent]


def request(image: Path, *, stream: bool) -> dict[str, Any]:
    """Return a request for a long answer about an image."""
    url = f"data:image/png;base64,{b64encode(image.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "How many?"}]
    options = {"stream": stream, "stream_options": {"include_usage": True}} if stream else {}
    answer = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
    return {"messages": [{"role": "user", "content": content}], **answer, **options}


def _sent(start: float, first: float | None, timings: dict[str, float]) -> Sent:
    engine_seconds = (timings["prompt_ms"] + timings["predicted_ms"]) / 1000
    first_seconds = None if first is None else first - start
    return Sent(time.perf_counter() - start, first_seconds, engine_seconds, timings["predicted_per_second"])


def in_process(server: Any, body: dict[str, Any]) -> Sent:
    """Answer in llama.cpp's server without HTTP."""
    start = time.perf_counter()
    return _sent(start, None, server.handle_chat_completions(body)["timings"])


def in_process_streamed(server: Any, body: dict[str, Any]) -> Sent:
    """Answer in llama.cpp's server without HTTP, with a callback for every token."""
    found: dict[str, Any] = {"first": None, "timings": {}}

    def receive(events: Any) -> None:
        for event in events if isinstance(events, list) else [events]:
            if any(choice["delta"].get("content") for choice in event.get("choices", ())):
                found["first"] = found["first"] or time.perf_counter()
            found["timings"] = event.get("timings") or found["timings"]

    start = time.perf_counter()
    server.handle_chat_completions(body, receive)
    return _sent(start, found["first"], found["timings"])


def served(client: httpx2.Client, body: dict[str, Any]) -> Sent:
    """Answer over HTTP, whole."""
    start = time.perf_counter()
    return _sent(start, None, client.post(CHAT, json=body).json()["timings"])


def served_streamed(client: httpx2.Client, body: dict[str, Any]) -> Sent:
    """Answer over HTTP, token by token."""
    start, first, timings = time.perf_counter(), None, {}
    with client.stream("POST", CHAT, json=body) as response:
        for line in response.iter_lines():
            if first is None and '"content":"' in line:
                first = time.perf_counter()
            if '"timings"' in line:
                timings = json.loads(line.removeprefix("data: "))["timings"]
    return _sent(start, first, timings)


@contextmanager
def bare_engine(artifact: Artifact) -> Iterator[Any]:
    """Yield llama.cpp's server in this process, with the settings of `mcpmq serve`."""
    load_library()
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(artifact.component_files("language")[0])
    parameters.mmproj.path = str(artifact.component_files("vision+projector")[0])
    parameters.n_ctx, parameters.n_parallel, parameters.cache_ram_mib = CONTEXT, 1, 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.use_jinja, parameters.ui, parameters.verbosity = True, False, 1
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    yield xllamacpp.Server(parameters)


@contextmanager
def running_server(artifact: Path) -> Iterator[tuple[httpx2.Client, psutil.Process]]:
    """Yield a client of `mcpmq serve` in a child process, and the process."""
    arguments = ("serve", str(artifact), "--port", "0", "--threads", "1", "--context", str(CONTEXT))
    with child_process("mcpmq", *arguments, stderr=-1, text=True) as process:
        assert process.stderr
        url = process.stderr.readline().removeprefix("serving on ").strip()
        with httpx2.Client(base_url=url, timeout=120) as client:
            yield client, psutil.Process(process.pid)


def measure(ways: dict[str, Way], rounds: int) -> dict[str, list[Sent]]:
    """Return all requests by way; the ways alternate, and every request has another image, so that none is cached."""
    images = iter(sorted((HELDOUT / "images").glob("*.png")))
    found: dict[str, list[Sent]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            sent = way(request(next(images), stream="streamed" in name))
            if number:  # the first round loads pages of the model
                found[name].append(sent)
    return found


def statistics(requests: list[Sent]) -> dict[str, float | None]:
    """Return medians, and the smallest overhead, which other processes disturb least."""
    overheads = [1000 * (one.seconds - one.engine_seconds) for one in requests]
    first = [1000 * one.first_token_seconds for one in requests if one.first_token_seconds is not None]
    return {
        "overhead_ms_median": round(median(overheads), 2),
        "overhead_ms_smallest": round(min(overheads), 2),
        "first_token_ms_median": round(median(first), 2) if first else None,
        "engine_tokens_per_second_median": round(median(one.tokens_per_second for one in requests), 1),
        "wall_tokens_per_second_median": round(median(TOKENS / one.seconds for one in requests), 1),
    }


def main() -> None:
    """Measure all ways and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    with bare_engine(Artifact.open(options.artifact)) as bare, running_server(options.artifact) as (client, process):
        ways: dict[str, Way] = {
            "in process": partial(in_process, bare),
            "in process, streamed": partial(in_process_streamed, bare),
            "server": partial(served, client),
            "server, streamed": partial(served_streamed, client),
        }
        found = measure(ways, options.rounds)
        engine = max(process.children(recursive=True), key=lambda child: child.memory_info().rss)
        memory = {"parent_rss_bytes": process.memory_info().rss, "child_rss_bytes": engine.memory_info().rss}
    result = {
        **provenance("benchmarks.serving", "starlette", "uvicorn"),
        "rounds": options.rounds,
        "tokens": TOKENS,
        "ways": {name: statistics(requests) for name, requests in found.items()},
        "memory": memory,
        "requests": {name: [asdict(one) for one in requests] for name, requests in found.items()},
    }
    write_result("serving-overhead", result)


if __name__ == "__main__":
    main()
