"""Run steps on the nodes of a Ray cluster; their memory forecasts are resource requests."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from mcpmq.errors import ClusterError, SweepError
from mcpmq.report import JSON_FILE
from mcpmq.report.files import HTML_FILE, MARKDOWN_FILE
from mcpmq.sweep.pool import Event, too_large
from mcpmq.sweep.process import failure, step_process
from mcpmq.sweep.request import DONE_FILE, LOG_FILE, StepRequest
from mcpmq.sweep.steps import Step
from mcpmq.system.durable_file import write_durably
from mcpmq.system.ray_cluster import RayCluster, Task

Store = Literal["shared", "returned"]
RETURNED_FILES = (LOG_FILE, JSON_FILE, MARKDOWN_FILE, HTML_FILE, DONE_FILE)  # the result is the last


@dataclass(frozen=True, slots=True)
class RemoteResult:
    """The error of a step, "" without one, and the files that the node returns."""

    error: str
    files: Mapping[str, bytes] = field(default_factory=dict)


def run_remote_step(folder: str, request: str, store: Store) -> RemoteResult:
    """Carry out a step in a process of this node, and return its error and its reports."""
    path = Path(folder)
    with step_process(path, StepRequest.model_validate_json(request)) as process:
        error = failure(path, process.wait())
    files = [path / name for name in RETURNED_FILES] if store == "returned" else []
    return RemoteResult(error, {file.name: file.read_bytes() for file in files if file.is_file()})


@dataclass(slots=True)
class RayPool:
    """Submits steps to a cluster, which runs them when a node has the cores and the memory.

    `shared`: all nodes have the folder of the sweep. `returned`: it is a folder of each node, and reports are copied.
    """

    cluster: RayCluster
    store: Store
    largest_node: tuple[int, float]  # bytes of memory and cores
    tasks: dict[str, tuple[Step, Task]] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)

    @classmethod
    @contextmanager
    def open(cls, address: str, store: Store) -> Iterator[Self]:
        """Connect to a cluster; its running steps end with the block.

        Raises:
            MissingExtra: Ray is not installed.
            ClusterError: no connection.
        """
        with RayCluster.connect(address) as cluster:
            yield cls(cluster, store, (max(cluster.node_memory(), default=0), max(cluster.node_cores(), default=0)))

    def check(self, step: Step) -> None:
        memory, cores = self.largest_node
        if not step.adaptive and step.memory_nbytes > memory:
            raise too_large(step, memory, "add a node with more memory, or start it with `--memory`")
        if step.request.threads > cores:
            message = f"{step.label} has {step.request.threads} threads, the largest node has {cores:g} cores"
            raise SweepError(message, "give fewer `--threads`")

    def submit(self, step: Step) -> None:
        """Submit a step with its memory forecast and threads as resources."""
        (step.folder / LOG_FILE).unlink(missing_ok=True)
        self.begun.discard(step.name)
        arguments = str(step.folder), step.request.model_dump_json(), self.store
        resources = {"cores": step.request.threads, "memory_nbytes": min(step.memory_nbytes, self.largest_node[0])}
        self.tasks[step.name] = step, self.cluster.submit(run_remote_step, *arguments, **resources)

    def wait(self, seconds: float) -> list[Event]:
        ended = set(self.cluster.ended([task for _, task in self.tasks.values()], seconds))
        return [event for name in list(self.tasks) for event in self._events(name, ended)]

    def _events(self, name: str, ended: set[Task]) -> Iterator[Event]:
        """Yield the begin of a step when its log exists, and its end."""
        step, task = self.tasks[name]
        if name not in self.begun and (task in ended or (step.folder / LOG_FILE).exists()):
            self.begun.add(name)
            yield Event(name, ended=False)
        if task in ended:
            del self.tasks[name]
            yield Event(name, ended=True, error=self._take(step, task))

    def _take(self, step: Step, task: Task) -> str:
        """Write the files of a step that ended, and return its error."""
        try:
            result: RemoteResult = self.cluster.result(task)
        except ClusterError as error:
            return f"{error} ({error.hint})"
        step.folder.mkdir(parents=True, exist_ok=True)
        for name, content in result.files.items():
            write_durably(step.folder / name, content)
        return result.error
