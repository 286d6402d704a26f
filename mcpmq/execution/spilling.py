"""Hidden states of waiting samples in a temporary file instead of memory."""

import ctypes
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from weakref import WeakKeyDictionary, ref

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
        start, nbytes = slot
        storage.resize_(nbytes)
        view, read = _bytes_of(storage), 0
        while read < nbytes:
            read += os.preadv(self.descriptor, [view[read:]], start + read)
        self.free[nbytes].append(start)


def _bytes_of(storage: UntypedStorage) -> memoryview:
    """Return the bytes of a storage; a view by numpy would make its size constant."""
    array = (ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())
    return memoryview(array).cast("B")
