"""A Ray cluster: the only module that imports Ray, which is an extra."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpmq.errors import ClusterError, MissingExtra

CONNECT_SECONDS = 60.0  # a head that has just been started is not ready at once
RETRY_SECONDS = 2.0
TASK_RETRIES = 2  # of a task whose worker or node died
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

    def create(self, actor: type, *arguments: Any, cores: float = 1, memory_nbytes: int = 0) -> Any:
        """Create an object in a process of its own on a node; a method is called with `call`."""
        options = {"num_cpus": cores, "memory": memory_nbytes or None}
        return self.ray.remote(**options)(actor).remote(*arguments)

    def call(self, actor: Any, method: str, *arguments: Any) -> Task:
        """Call a method of an object on its node."""
        return Task(getattr(actor, method).remote(*arguments))

    def put(self, value: Any) -> Any:
        """Store a value once in the memory of this node; tasks that get it read it from there."""
        return self.ray.put(value)

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
        try:
            return self.ray.get(task.reference)
        except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.RayActorError) as error:
            raise ClusterError(f"a worker of the cluster died: {_first_line(error)}", "run again to resume") from error
        except self.ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except self.ray.exceptions.RayError as error:
            raise ClusterError(f"the cluster failed: {_first_line(error)}", "run again to resume") from error


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
