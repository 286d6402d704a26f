"""The pool of a Ray cluster, with a cluster that runs tasks in this process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mcpmq.errors import ClusterError, SweepError
from mcpmq.sweep import ray_pool
from mcpmq.sweep.pool import Event
from mcpmq.sweep.ray_pool import RayPool
from mcpmq.sweep.request import DONE_FILE, LOG_FILE, StepRequest
from mcpmq.system.ray_cluster import Task
from tests.sweep.test_schedule import REQUEST, make_step

GB = 10**9


@dataclass
class FakeCluster:
    """Runs a submitted task when its result is requested; a task is dead if it has no function."""

    submitted: list[tuple[str, float, int]] = field(default_factory=list)
    dies: bool = False

    def submit(self, function: Callable[..., Any], *arguments: Any, cores: float, memory_nbytes: int) -> Task:
        self.submitted.append((Path(arguments[0]).name, cores, memory_nbytes))
        return Task((function, arguments))

    def ended(self, tasks: Sequence[Task], seconds: float) -> list[Task]:
        return list(tasks)

    def result(self, task: Task) -> Any:
        if self.dies:
            raise ClusterError("a worker of the cluster died", "run again")
        function, arguments = task.reference
        return function(*arguments)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Steps write their files into another folder, that of a node, and the process ends with exit code 0."""

    class Ended:
        def wait(self) -> int:
            return 0

    @contextmanager
    def process(folder: Path, request: StepRequest) -> Iterator[Ended]:
        folder.mkdir(parents=True)
        for name in (LOG_FILE, "report.json", DONE_FILE):
            (folder / name).write_text(f"{name} of {request.kind}")
        yield Ended()

    monkeypatch.setattr(ray_pool, "step_process", process)
    return tmp_path / "node"


def make_pool(cluster: FakeCluster, store: ray_pool.Store = "shared") -> RayPool:
    """Return a pool of nodes with at most 8 GB and 4 cores."""
    return RayPool(cluster, store, (8 * GB, 4.0))  # type: ignore[arg-type]


def test_forecasts_and_threads_are_resource_requests(tmp_path: Path) -> None:
    """A step is submitted with its memory and cores; one that no node can run is refused."""
    cluster = FakeCluster()
    pool = make_pool(cluster)
    pool.submit(make_step("a", nbytes=5 * GB, folder=tmp_path))
    pool.submit(make_step("b", nbytes=9 * GB, folder=tmp_path, adaptive=True))

    assert cluster.submitted == [("a", 1, 5 * GB), ("b", 1, 8 * GB)]
    with pytest.raises(SweepError, match="step c needs about 9,000 MB of memory, the limit is 8,000 MB"):
        pool.check(make_step("c", nbytes=9 * GB))
    wide = make_step("d")
    pool.check(wide)
    with pytest.raises(SweepError, match="step d has 5 threads, the largest node has 4 cores"):
        pool.check(type(wide)("d", "step d", REQUEST.model_copy(update={"threads": 5}), wide.folder, 1))


def test_returned_reports_are_written_to_the_folder_of_the_sweep(node: Path, tmp_path: Path) -> None:
    """With another folder on the node, the reports and the result are copied; artifacts stay."""
    pool, step = make_pool(FakeCluster(), "returned"), make_step("a", folder=node)
    pool.submit(step)
    here = type(step)("a", step.label, step.request, tmp_path / "here", 1)
    pool.tasks["a"] = here, pool.tasks["a"][1]

    assert pool.wait(1) == [Event("a", ended=False), Event("a", ended=True)]
    assert sorted(file.name for file in here.folder.iterdir()) == [DONE_FILE, LOG_FILE, "report.json"]
    assert (here.folder / DONE_FILE).read_text() == f"{DONE_FILE} of cell"
    assert pool.tasks == {}


def test_the_error_of_a_dead_worker_is_that_of_the_step(tmp_path: Path) -> None:
    """A task whose worker died in all attempts of the cluster ends with its error."""
    pool = make_pool(FakeCluster(dies=True))
    pool.submit(make_step("a", folder=tmp_path))

    assert pool.wait(1)[-1] == Event("a", ended=True, error="a worker of the cluster died (run again)")
