"""Calibration on a cluster: one that runs in threads, and Ray clusters in the run of `make cluster`."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from mcpmq.calibrate import cluster, memory
from mcpmq.calibrate.cluster import ClusterOptions, calibrate_shards
from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import compress
from mcpmq.dataset import SampleSet
from mcpmq.errors import ClusterError
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.system.ray_cluster import RayCluster
from tests.calibrate.test_exchange import Board, ThreadExchange
from tests.commands import Command

pytestmark = pytest.mark.usefixtures("no_bfloat16")
RECIPE = {"name": "distributed", "method": "gptq", "targets": "layer"}


@pytest.fixture(scope="module")
def plan(small_checkpoint: Path) -> Plan:
    """A plan of the small checkpoint that calibrates language layers."""
    weights = {"*": "keep", "language.layers.*": "int4-g32"}
    return make_plan(Checkpoint.open(small_checkpoint), Recipe.model_validate({**RECIPE, "weights": weights}))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of an artifact."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@dataclass
class ThreadCluster:
    """Runs workers in threads; the workers of the first `failures` runs die."""

    failures: int
    pool: ThreadPoolExecutor
    has_views: bool = True  # whether folders of this machine exist for the workers
    requested: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def node_cores(self) -> list[float]:
        return [4.0, 4.0]

    def run_together(self, function: Any, arguments: Sequence[Any], workers: int, resources: dict[str, float]) -> Any:
        """Start the workers, and return the exchange of this thread."""
        assert function is calibrate_shards
        self.requested.append((workers, resources))
        if len(self.requested) <= self.failures:
            raise ClusterError("a worker of the cluster died", "run again")
        board = Board.of_size(workers + 1)
        if not self.has_views:
            plan = replace(arguments[0], checkpoint=replace(arguments[0].checkpoint, path=Path("/missing")))
            arguments = plan, *arguments[1:]
        for rank in range(1, workers + 1):
            self.pool.submit(function, ThreadExchange(rank, board), *arguments)
        return ThreadExchange(0, board)

    def stop(self, exchange: object) -> None:
        """End the workers, which have ended."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[ThreadCluster]:
    """A cluster of two nodes whose workers are threads."""
    with ThreadPoolExecutor(4) as pool:
        found = ThreadCluster(request.param, pool)

        @contextmanager
        def connect(address: str) -> Iterator[ThreadCluster]:
            yield found

        monkeypatch.setattr(RayCluster, "connect", connect)
        yield found


@pytest.mark.parametrize("started", [1], indirect=True)
def test_a_quantized_model_of_a_cluster_is_that_of_one_machine(
    started: ThreadCluster, plan: Plan, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """One worker on every node by default; after the death of workers the run begins again, with a notice."""
    notices: list[str] = []
    quantize(plan, tmp_path / "one", mixed_set, device="cpu")
    quantize(plan, tmp_path / "many", mixed_set, notify=notices.append, cluster=ClusterOptions("head:6379"))

    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert [workers for workers, _ in started.requested] == [2, 2]
    assert started.requested[0][1]["cores"] == 1
    assert started.requested[0][1]["memory"] > 500_000_000
    assert notices[-1] == "a worker of the cluster died; calibrating again from the last finished block"


@pytest.mark.parametrize("started", [0], indirect=True)
def test_workers_have_the_files_of_a_compressed_checkpoint(
    started: ThreadCluster, small_checkpoint: Path, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """A checkpoint with fewer layers and smaller images has its text files in a folder that workers do not have."""
    layers = {"remove": ["language.layers.0"], "influence": [0.25], "kl_divergence": 0.5, "answer_tokens": 7}
    tables = {"layers": {**layers, "calibration": "mixed"}, "images": {"max_slice_nums": 1}}
    recipe = Recipe.model_validate({**RECIPE, **tables, "weights": {"*": "keep", "language.layers.*": "int4-g32"}})
    started.has_views = False
    with compress(Checkpoint.open(small_checkpoint), recipe) as view:
        compressed = make_plan(view, recipe)
        quantize(compressed, tmp_path / "one", mixed_set, device="cpu")
        quantize(compressed, tmp_path / "many", mixed_set, cluster=ClusterOptions("head:6379", workers=1))

    assert view.path != view.source.path
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_the_memory_of_a_worker_has_its_tiles(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has its share of half of the widest Hessian, at least one tile, and inputs in four places.

    2,048 inputs wait for the Hessian, as many are kept, and two samples of 500 tokens are sent.
    """
    columns = max(one.spec.shape[1] for one in plan.tensors if one.is_quantized)
    monkeypatch.setattr(memory, "TOKENS_PER_SAMPLE", 500)
    one_tile = memory.forward_nbytes(plan, 0, 2)
    monkeypatch.setattr(memory, "TILE_COLUMNS", 4)
    share = memory.forward_nbytes(plan, 0, 2)
    monkeypatch.setattr(memory, "needs_calibration", lambda *_: False)
    nothing = memory.forward_nbytes(plan, 0, 2)

    assert one_tile - nothing == 4 * (columns**2 + 2 * (2048 + 500) * columns)
    assert one_tile - share == 4 * (columns**2 - columns**2 // 6)


@pytest.mark.parametrize("started", [3], indirect=True)
def test_the_error_of_workers_that_die_again_and_again(
    started: ThreadCluster, plan: Plan, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """After three runs the error of the cluster is that of the command."""
    with pytest.raises(ClusterError, match="a worker of the cluster died"):
        quantize(plan, tmp_path / "out", mixed_set, cluster=ClusterOptions("head:6379", workers=1))

    assert len(started.requested) == cluster.MAX_RUNS


def test_options_of_a_cluster_need_an_address(mcpmq: Command, small_checkpoint: Path, tmp_path: Path) -> None:
    """Workers without an address, and a GPU with one, are usage errors."""
    words = ("quantize", small_checkpoint, tmp_path / "out", "--recipe", "phone-int4")

    assert "needs --ray" in mcpmq(*words, "--workers", 2).stderr
    assert "workers calibrate on the CPU" in mcpmq(*words, "--ray", "auto", "--device", "cuda").stderr


PORT = 6398
NODE = ["--num-cpus", "2", "--object-store-memory", "200000000", "--memory", "8000000000", "--disable-usage-stats"]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes on this machine with two cores each, which ends with the tests."""
    pytest.importorskip("ray")
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    address = f"127.0.0.1:{PORT}"
    head = [
        "ray",
        "start",
        "--head",
        "--port",
        str(PORT),
        "--node-ip-address",
        "127.0.0.1",
        "--include-dashboard=false",
    ]
    subprocess.run(["ray", "get-auth-token", "--generate"], check=False, capture_output=True, env=environment)
    before = set(psutil.pids())
    subprocess.run([*head, *NODE], check=True, capture_output=True, env=environment)
    _start(["ray", "start", "--address", address, *NODE], environment)
    yield address
    _end([one for one in psutil.process_iter(["cmdline"]) if one.pid not in before and _is_of_cluster(one)])


def _is_of_cluster(process: psutil.Process) -> bool:
    return any(str(PORT) in word for word in process.info["cmdline"] or ())


def _end(processes: list[psutil.Process]) -> None:
    """Terminate processes, and kill those that do not end."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=5)[1]:
        process.kill()


def _start(words: list[str], environment: dict[str, str]) -> None:
    """Start a node; a head that has just been started may not be ready."""
    for _ in range(5):
        started = subprocess.run(words, check=False, capture_output=True, env=environment, text=True)
        if started.returncode == 0:
            return
        time.sleep(2)
    raise AssertionError(started.stderr)


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_two_nodes_give_the_bytes_of_one_machine(
    two_nodes: str, workers: int, plan: Plan, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """The workers are processes of Ray on two nodes."""
    quantize(plan, tmp_path / "one", mixed_set, device="cpu")
    quantize(plan, tmp_path / "many", mixed_set, cluster=ClusterOptions(two_nodes, workers))

    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.cluster
def test_a_killed_worker_does_not_change_a_byte(
    two_nodes: str, plan: Plan, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """A worker is killed after the first block was written; the run begins again from there."""
    notices: list[str] = []
    killed: list[int] = []

    def kill(items: Sequence[Any], label: str) -> Iterator[Any]:
        for number, item in enumerate(items):
            if label == "calibrating" and number == len(items) - 3 and not killed:
                killed.append(_kill_worker())
            yield item

    quantize(plan, tmp_path / "one", mixed_set, device="cpu")
    quantize(plan, tmp_path / "many", mixed_set, kill, notify=notices.append, cluster=ClusterOptions(two_nodes, 2))

    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert len(killed) == 1
    assert any("calibrating again" in notice for notice in notices)


def _kill_worker() -> int:
    """Kill the worker that runs a task, and return its process id."""
    for _ in range(100):
        for one in psutil.process_iter(["name", "cmdline"]):
            if "_call_with_exchange" in " ".join(one.info["cmdline"] or []):
                one.kill()
                return int(one.pid)
        time.sleep(0.1)
    raise AssertionError("no worker runs")
