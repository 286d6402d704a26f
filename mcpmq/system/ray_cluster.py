"""A Ray cluster: the only module that imports Ray, which is an extra."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpmq.errors import ClusterError, MissingExtra

CONNECT_SECONDS = 60.0  # a head that has just been started is not ready at once
RETRY_SECONDS = 2.0
TASK_RETRIES = 2  # of a task whose worker or node died
QUEUED_ITEMS = 4  # that a process sends in advance
POLL_SECONDS = 1.0  # between two checks of the workers
AGAIN_HINT = "run the same command again to resume"
LOCAL = "local"
TOKEN_VARIABLES, TOKEN_FILE = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"), Path("~/.ray/auth_token")
TOKEN_HINT = (
    "start a head with `ray start --head`; all nodes and this command need the same token in `~/.ray/auth_token`, which"
    " `ray get-auth-token --generate` writes"
)


@dataclass(frozen=True, slots=True)
class Task:
    """A function call that has been submitted."""

    reference: Any


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A connected cluster. Functions are those of installed modules: the nodes import them by name."""

    ray: Any

    @classmethod
    @contextmanager
    def connect(cls, address: str) -> Iterator["RayCluster"]:
        """Connect to `HOST:PORT` or `auto`, or start a cluster on this machine for `local`, until the block ends.

        Raises:
            MissingExtra: Ray is not installed.
            ClusterError: the head does not answer, or the token is missing or wrong.
        """
        ray = _import_ray()
        _connect(ray, address)
        try:
            yield cls(ray)
        finally:
            ray.shutdown()

    def node_memory(self) -> list[int]:
        """Return the memory for tasks of every node in bytes."""
        return [int(one.get("memory", 0)) for one in self._resources()]

    def node_cores(self) -> list[float]:
        """Return the cores for tasks of every node."""
        return [one.get("CPU", 0.0) for one in self._resources()]

    def _resources(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def submit(self, function: Callable[..., Any], *arguments: Any, cores: float = 1, memory_nbytes: int = 0) -> Task:
        """Call a function on a node with these free resources; a call whose worker died is repeated."""
        options = {"num_cpus": cores, "memory": memory_nbytes or None, "max_retries": TASK_RETRIES}
        return Task(self.ray.remote(**options)(function).remote(*arguments))

    def run_together(
        self, function: Callable[..., Any], arguments: Sequence[Any], workers: int, resources: Mapping[str, float]
    ) -> "RayExchange":
        """Call `function(exchange, *arguments)` on the nodes, once for every worker, each with its exchange.

        Return the exchange of this process, whose rank is 0. A worker is not started again if it dies.
        """
        options = {"num_cpus": resources["cores"], "memory": resources["memory"] or None, "max_retries": 0}
        hub = self.ray.remote(num_cpus=0)(_Hub).remote(workers + 1)
        call = self.ray.remote(**options)(_call_with_exchange)
        stored = self.ray.put((function, tuple(arguments)))
        tasks = [call.remote(hub, rank, workers + 1, stored) for rank in range(1, workers + 1)]
        return RayExchange(self.ray, hub, 0, workers + 1, tasks)

    def stop(self, exchange: "RayExchange") -> None:
        """End the workers of an exchange, also of one whose workers or nodes died."""
        with suppress(self.ray.exceptions.RayError):  # that of the calibration has the reason
            for task in exchange.workers:
                self.ray.cancel(task, force=True)
            self.ray.kill(exchange.hub)

    def ended(self, tasks: Sequence[Task], seconds: float) -> list[Task]:
        """Return the tasks that ended, after this time or when there is one."""
        if not tasks:
            return []
        by_reference = {task.reference: task for task in tasks}
        ready, _ = self.ray.wait(list(by_reference), num_returns=1, timeout=seconds)
        more, _ = self.ray.wait(list(by_reference), num_returns=len(tasks), timeout=0)
        return [by_reference[reference] for reference in dict.fromkeys([*ready, *more])]

    def result(self, task: Task) -> Any:
        """Return the result of a task.

        Raises:
            ClusterError: its worker or its node died, also in the repeated calls.
        """
        with _cluster_errors(self.ray):
            return self.ray.get(task.reference)


class _Hub:
    """Exchanges references to values between the processes of one calibration; it runs in a process of its own."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rounds: dict[int, dict[int, Any]] = {}
        self._complete: dict[int, asyncio.Event] = {}
        self._streams = [[asyncio.Queue[Any](QUEUED_ITEMS) for _ in range(size)] for _ in range(size)]

    async def gather(self, number: int, rank: int, reference: Any) -> list[Any]:
        """Return the references of all processes in the round of this number, when all are there."""
        entries, complete = self._rounds.setdefault(number, {}), self._complete.setdefault(number, asyncio.Event())
        entries[rank] = reference
        if len(entries) == self._size:
            complete.set()
        await complete.wait()
        self._rounds.pop(number - 1, None)  # all processes have the values of the round before
        self._complete.pop(number - 1, None)
        return [entries[one] for one in range(self._size)]

    async def push(self, rank: int, readers: Sequence[int], reference: Any) -> None:
        """Append to the streams from a process to its readers; wait while they are full."""
        for reader in readers:
            await self._streams[rank][reader].put(reference)

    async def pop(self, rank: int, reader: int) -> Any:
        """Return the next item of a stream."""
        return await self._streams[rank][reader].get()


@dataclass(slots=True)
class RayExchange:
    """The exchange of one process: values are objects of Ray, which their readers copy from node to node.

    workers: the tasks of the other processes, in process 0, which waits for values and for their failure.
    """

    ray: Any
    hub: Any
    rank: int
    size: int
    workers: Sequence[Any] = ()
    number: int = 0  # of the last round

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        self.number += 1
        found = self._get(self.hub.gather.remote(self.number, self.rank, [self.ray.put(value)]))
        return [self._get(reference) for [reference] in found]

    def send(self, item: Any, readers: Sequence[int]) -> None:
        """Send an item to these processes; wait while one of them has not received earlier ones."""
        self._get(self.hub.push.remote(self.rank, readers, [self.ray.put(item)]))

    def receive(self, rank: int) -> Any:
        """Return the next item that a process sent to this one."""
        [reference] = self._get(self.hub.pop.remote(rank, self.rank))
        return self._get(reference)

    def _get(self, reference: Any) -> Any:
        """Return a value.

        Raises:
            ClusterError: a worker died.
        """
        with _cluster_errors(self.ray):
            while not self.ray.wait([reference], timeout=POLL_SECONDS)[0]:
                if ended := self.ray.wait(list(self.workers), timeout=0)[0] if self.workers else []:
                    self.ray.get(ended)  # raises its error
                    raise ClusterError("a worker ended before the others", AGAIN_HINT)
            return self.ray.get(reference)


def _call_with_exchange(hub: Any, rank: int, size: int, call: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    function, arguments = call
    return function(RayExchange(_import_ray(), hub, rank, size), *arguments)


@contextmanager
def _cluster_errors(ray: Any) -> Iterator[None]:
    """Raise the error of a task, and ClusterError for a dead worker or node."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from None
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a worker of the cluster died: {_first_line(error)}", AGAIN_HINT) from error


def _import_ray() -> Any:
    if any(os.environ.get(name) for name in TOKEN_VARIABLES) or TOKEN_FILE.expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read at the import; Ray itself sets it for new clusters only
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray") from None
    return ray


def _connect(ray: Any, address: str) -> None:
    end = time.monotonic() + CONNECT_SECONDS
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    while True:
        try:
            ray.init(**options) if address == LOCAL else ray.init(address=address, **options)
            return
        except Exception as error:  # Ray raises a plain one if a local cluster does not start within 30 seconds
            is_final = not isinstance(error, ConnectionError) or isinstance(error, ray.exceptions.AuthenticationError)
            if is_final or time.monotonic() > end:
                message = f"no connection to the Ray cluster `{address}`: {_first_line(error)}"
                raise ClusterError(message, TOKEN_HINT) from error
        time.sleep(RETRY_SECONDS)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
