"""Hidden states of waiting samples in a temporary file instead of memory."""

import ctypes
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self
from weakref import WeakKeyDictionary, ref

import torch
from greenlet import greenlet
from torch import Tensor, UntypedStorage

MIN_NBYTES = 1 << 16  # smaller tensors stay in memory
Slot = tuple[int, int]  # first byte, and bytes, in the file


@dataclass(frozen=True, slots=True)
class SpillFile:
    """A file that is removed when it is closed, also if the process is killed, and the tensors that samples use."""

    descriptor: int
    tensors: WeakKeyDictionary[greenlet, list[ref[Tensor]]] = field(default_factory=WeakKeyDictionary)
    free: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))  # first bytes of slots, by bytes
    end: list[int] = field(default_factory=lambda: [0])  # of the last slot

    @classmethod
    @contextmanager
    def create(cls, folder: Path | None = None) -> Iterator[Self]:
        """Create a file without a name in a folder, by default in that of the system for temporary files."""
        with tempfile.TemporaryFile(dir=folder) as file:
            yield cls(file.fileno())

    @contextmanager
    def without_memory(self, sample: greenlet, states: Tensor | None) -> Iterator[None]:
        """Keep the states of a sample in the file inside the context, with all earlier ones that are still referred to.

        Tensors on other devices, and those with memory that torch does not own, stay in memory.
        """
        references = self.tensors.setdefault(sample, [])
        if states is not None and all(one() is not states for one in references):
            references.append(ref(states))
        references[:] = [one for one in references if one() is not None]
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in self._spillable(sample)}
        slots = [(storage, self._write(storage)) for storage in storages.values()]
        yield
        for storage, slot in slots:
            self._read(storage, slot)

    def _spillable(self, sample: greenlet) -> Iterator[Tensor]:
        for one in (reference() for reference in self.tensors[sample]):
            assert one is not None  # references to lost tensors are removed before
            storage = one.untyped_storage()
            if one.device.type == "cpu" and storage.resizable() and storage.nbytes() >= MIN_NBYTES:
                yield one

    def _write(self, storage: UntypedStorage) -> Slot:
        """Move the bytes of a storage to the file."""
        nbytes = storage.nbytes()
        start = self.free[nbytes].pop() if self.free[nbytes] else self._append(nbytes)
        view, written = _bytes_of(storage), 0
        while written < nbytes:
            written += os.pwrite(self.descriptor, view[written:], start + written)
        storage.resize_(0)
        return start, nbytes

    def _append(self, nbytes: int) -> int:
        start = self.end[0]
        self.end[0] += nbytes
        return start

    def _read(self, storage: UntypedStorage, slot: Slot) -> None:
        """Give a storage its bytes again; the slot is free then."""
        storage.resize_(slot[1])
        self.fill(storage, slot)
        self.free_slot(slot)

    def fill(self, storage: UntypedStorage, slot: Slot) -> None:
        """Read the bytes of a slot into a storage of their size."""
        start, nbytes = slot
        view, read = _bytes_of(storage), 0
        while read < nbytes:
            read += os.preadv(self.descriptor, [view[read:]], start + read)

    def free_slot(self, slot: Slot) -> None:
        """Let other tensors of the same size have a slot."""
        self.free[slot[1]].append(slot[0])

    def store(self, tensor: Tensor) -> "SpilledTensor":
        """Write a copy of a tensor in memory of the CPU."""
        copy = tensor.clone(memory_format=torch.contiguous_format)
        return SpilledTensor(self, self._write(copy.untyped_storage()), copy.shape, copy.dtype)


class StoredTensor(Protocol):
    """A tensor in memory, or a copy in a file."""

    def load(self) -> Tensor:
        """Return the tensor, which must not be changed."""

    def free(self) -> None:
        """Release a place in a file."""


@dataclass(frozen=True, slots=True)
class SpilledTensor:
    """A tensor in a slot of a file."""

    file: SpillFile
    slot: Slot
    shape: torch.Size
    dtype: torch.dtype

    def load(self) -> Tensor:
        """Read the tensor."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        self.file.fill(tensor.untyped_storage(), self.slot)
        return tensor

    def free(self) -> None:
        """Let other tensors have the slot."""
        self.file.free_slot(self.slot)


@dataclass(frozen=True, slots=True)
class TensorInMemory:
    """A tensor that is too small for a file, or on another device, or of a run without a file."""

    tensor: Tensor

    def load(self) -> Tensor:
        """Return the tensor."""
        return self.tensor

    def free(self) -> None:
        """Do nothing: the tensor is freed with its last reference."""


def store(tensor: Tensor, file: SpillFile | None) -> StoredTensor:
    """Store a tensor in a file, if there is one and the tensor is large and in memory of the CPU; else unchanged."""
    if file is None or tensor.device.type != "cpu" or tensor.nbytes < MIN_NBYTES:
        return TensorInMemory(tensor)
    return file.store(tensor)


def _bytes_of(storage: UntypedStorage) -> memoryview:
    """Return the bytes of a storage; a view by numpy would make its size constant."""
    array = (ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())
    return memoryview(array).cast("B")
