"""Send hostile requests with ordinary ones between: `python -m tests.serving.hostile ARTIFACT --count 10000 --seed 1`.

The command serves the artifact, and writes counts, times and memory to benchmarks/results/serving.json.
"""

import argparse
import http.server
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from threading import Thread
from typing import Any

import httpx2
import psutil

from benchmarks.commands import provenance, write_result
from mcpmq.system.child_process import child_process
from tests.serving.hostile_requests import KINDS, RESPONSE_SECONDS, Kind, Target
from tests.serving.requests import chat, image_part, png

ORDINARY_EVERY, MEMORY_EVERY = 10, 500  # hostile requests
MAX_LISTED_PROBLEMS = 20
SECRETS = ("Traceback", "site-packages", 'File "', ".py", ".gguf", ".sock", str(Path.cwd()))  # in no response
MAX_BUSY_SECONDS = 30.0
RESULT, PACKAGES = "serving", ("starlette", "uvicorn", "pillow")


@dataclass(slots=True)
class Campaign:
    """Counts, times in seconds and problems."""

    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    ordinary_seconds: list[float] = field(default_factory=list)
    busy: int = 0  # ordinary requests that were tried again after a 503
    memory: list[dict[str, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run(target: Target, count: int, seed: int, server: psutil.Process | None = None) -> Campaign:
    """Send `count` hostile requests, and an ordinary one after every tenth, whose answer must not change."""
    campaign, random = Campaign(), Random(seed)
    kinds, weights = list(KINDS), [share for share, _ in KINDS.values()]
    expected = _ordinary(target, campaign)
    for number in range(count):
        if server and number % MEMORY_EVERY == 0:
            campaign.memory.append({"requests": number, **_memory(server)})
        _hostile(random.choices(kinds, weights)[0], random, target, campaign)
        if number % ORDINARY_EVERY == 0 and (answer := _ordinary(target, campaign)) != expected:
            campaign.problems.append(f"request {number}: the ordinary answer is {answer!r}, not {expected!r}")
    if server:
        campaign.memory.append({"requests": count, **_memory(server)})
    return campaign


def _hostile(kind: Kind, random: Random, target: Target, campaign: Campaign) -> None:
    name, (_, correct) = kind.__name__, KINDS[kind]
    campaign.kinds[name] += 1
    try:
        responses = kind(random, target)
    except httpx2.HTTPError as error:
        campaign.problems.append(f"{name}: {type(error).__name__}: {error}")
        return
    for response in responses:
        campaign.statuses[f"{name} {response.status_code}"] += 1
        if response.status_code not in correct:
            campaign.problems.append(f"{name}: status {response.status_code}: {response.text[:200]}")
        if found := [secret for secret in SECRETS if secret in response.text]:
            campaign.problems.append(f"{name}: the response has {found}: {response.text[:200]}")


def _ordinary(target: Target, campaign: Campaign) -> str:
    """Return the answer to an ordinary request; a busy server is tried again."""
    start = time.perf_counter()
    while True:
        response = target.post(chat("How many?", image_part(target.image), max_tokens=8))
        if response.status_code != 503 or time.perf_counter() - start > MAX_BUSY_SECONDS:
            break
        campaign.busy += 1
        time.sleep(0.05)
    campaign.ordinary_seconds.append(time.perf_counter() - start)
    return response.text if response.status_code != 200 else response.json()["choices"][0]["message"]["content"]


def _memory(server: psutil.Process) -> dict[str, int]:
    engine = max(server.children(recursive=True), key=lambda process: process.memory_info().rss)
    return {"parent_rss_bytes": server.memory_info().rss, "child_rss_bytes": engine.memory_info().rss}


@contextmanager
def trap() -> Iterator[tuple[int, list[str]]]:
    """Run a server that must not be contacted; yield its port, and the paths that were requested."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], paths
        server.shutdown()


def summary(campaign: Campaign, fetched: list[str], metrics: str, seconds: float) -> dict[str, Any]:
    """Return the result of a campaign as JSON."""
    times = sorted(campaign.ordinary_seconds)
    restarts = next(line for line in metrics.splitlines() if line.startswith("mcpmq_engine_restarts_total"))
    return {
        "seconds": round(seconds, 1),
        "hostile_requests": sum(campaign.kinds.values()),
        "kinds": dict(campaign.kinds),
        "statuses": dict(sorted(campaign.statuses.items())),
        "ordinary_requests": len(times),
        "ordinary_seconds_median": round(median(times), 4),
        "ordinary_seconds_largest": round(times[-1], 4),
        "ordinary_retries": campaign.busy,
        "fetched_urls": len(fetched),
        "engine_restarts": int(restarts.split()[1]),
        "memory": campaign.memory,
        "problems": len(campaign.problems),
        "listed_problems": campaign.problems[:MAX_LISTED_PROBLEMS],
    }


def main() -> None:
    """Serve an artifact in a process of its own and run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start = time.perf_counter()
    arguments = ("serve", str(options.artifact), "--port", "0", "--threads", "1")
    with trap() as (port, fetched), child_process("mcpmq", *arguments, stderr=-1, text=True) as process:
        assert process.stderr
        url = process.stderr.readline().removeprefix("serving on ").strip()
        log: list[str] = []
        Thread(target=log.extend, args=(process.stderr,), daemon=True).start()  # a full pipe would block the server
        with httpx2.Client(base_url=url, timeout=RESPONSE_SECONDS) as client:
            campaign = run(Target(client, png(), port), options.count, options.seed, psutil.Process(process.pid))
            result = summary(campaign, fetched, client.get("/metrics").text, time.perf_counter() - start)
    result["log_lines"] = len(log)
    sys.stdout.write("".join(log[-20:]))
    write_result(RESULT, {**provenance("tests.serving.hostile", *PACKAGES), "hostile": result})
    sys.exit(bool(campaign.problems or fetched))


if __name__ == "__main__":
    main()
