"""A group of processes of this machine, one for each device, that exchange values and add tensors."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")
CPU = torch.device("cpu")
TIMEOUT = timedelta(days=7)  # a process that dies closes its connections; the others wait as long as one rounds weights
LOOPBACK = {"linux": "lo", "darwin": "lo0"}


class GroupError(Exception):
    """Another process of the group ended."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The exchange of one process; its tensors are on `device`, and are on that of the reader after an exchange."""

    rank: int
    size: int
    device: torch.device

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank.

        Raises:
            GroupError: another process ended.
        """
        return [self._broadcast(value, rank) for rank in range(self.size)]

    def _broadcast(self, value: Value, rank: int) -> Value:
        is_sender = rank == self.rank
        sent = [to_bytes(value) if is_sender else b""]
        with _group_errors():
            dist.broadcast_object_list(sent, rank, device=CPU)
        return value if is_sender else from_bytes(sent[0], self.device)

    def add(self, tensor: Tensor) -> None:
        """Add a tensor of all processes, of one shape, in process 0; it has no values in the others afterwards.

        Raises:
            GroupError: another process ended.
        """
        total = (tensor if self.device.type == "cuda" else tensor.cpu()).contiguous()
        with _group_errors():
            dist.reduce(total, 0)
        if self.rank == 0 and total is not tensor:
            tensor.copy_(total)


@contextmanager
def join_group(folder: Path, rank: int, size: int, device: torch.device) -> Iterator[ProcessGroup]:
    """Wait for all processes of a group, which meet in a folder, and yield the exchange of this one.

    CUDA tensors are added with NCCL, those of other devices in memory of the CPU.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK.get(os.uname().sysname.lower(), "lo"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    meeting = (folder / "group").absolute().as_uri()
    with _group_errors():
        dist.init_process_group(backend, meeting, TIMEOUT, size, rank)
    try:
        yield ProcessGroup(rank, size, device)
    finally:
        dist.destroy_process_group()


@contextmanager
def _group_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise GroupError(str(error)) from error


def to_bytes(value: Any) -> bytes:
    """Serialize a value; its tensors have no device."""
    file = BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def from_bytes(content: bytes, device: torch.device) -> Any:
    """Return a value of another process of this user; tensors that were not in memory of the CPU are on `device`."""
    return _Unpickler(BytesIO(content), device).load()


class _Pickler(pickle.Pickler):
    """Copies tensors of other devices to memory of the CPU."""

    def persistent_id(self, obj: Any) -> Tensor | None:
        return obj.cpu() if isinstance(obj, Tensor) and obj.device != CPU else None


class _Unpickler(pickle.Unpickler):
    """Copies tensors that were on other devices to that of this process."""

    def __init__(self, file: BytesIO, device: torch.device) -> None:
        super().__init__(file)
        self._device = device

    def persistent_load(self, pid: Tensor) -> Tensor:
        return pid.to(self._device)
