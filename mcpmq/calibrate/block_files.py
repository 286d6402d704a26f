"""Read the next block of a checkpoint, and write the last rounded one, in threads beside the work of a GPU.

On the CPU neither pays: its threads are busy, and the memory bounds allow one block at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from torch import Tensor

from mcpmq.checkpoint import Checkpoint
from mcpmq.execution.device import CPU
from mcpmq.families.family import TensorSpec
from mcpmq.qtensor import QTensor, move
from mcpmq.quantized_model import BlockWriter, CalibrationResult

Specs = Sequence[TensorSpec]


@dataclass(slots=True)
class BlockReader:
    """Reads the weights of blocks in their order; while one is in use, the next one is read."""

    checkpoint: Checkpoint
    blocks: Sequence[Specs]  # in the order of the forward pass; the head, which is read in parts, has no specs
    pool: ThreadPoolExecutor
    pending: dict[int, Future[dict[str, Tensor]]] = field(default_factory=dict)  # by position

    @classmethod
    @contextmanager
    def open(cls, checkpoint: Checkpoint, blocks: Sequence[Specs]) -> Iterator[Self]:
        """Read in a thread, which ends with the context."""
        with ThreadPoolExecutor(1) as pool:
            yield cls(checkpoint, blocks, pool)
            pool.shutdown(cancel_futures=True)

    def read(self, position: int) -> dict[str, Tensor]:
        """Return the weights of a block, [out, in] in their stored dtype, by common name; then begin with the next."""
        weights = self._begin(position).result()
        for done in [one for one in self.pending if one <= position]:  # also blocks that no sample passes
            del self.pending[done]
        if position + 1 < len(self.blocks):
            self._begin(position + 1)
        return weights

    def _begin(self, position: int) -> Future[dict[str, Tensor]]:
        if position not in self.pending:
            self.pending[position] = self.pool.submit(self._load, self.blocks[position])
        return self.pending[position]

    def _load(self, specs: Specs) -> dict[str, Tensor]:
        return {spec.name: self.checkpoint.load(spec) for spec in specs}


@dataclass(slots=True)
class BackgroundWriter:
    """Writes one block in a thread while the next one is rounded; its interface is that of `write_block`."""

    write: BlockWriter
    pool: ThreadPoolExecutor
    pending: Future[None] | None = None

    @classmethod
    @contextmanager
    def open(cls, write: BlockWriter) -> Iterator[Self]:
        """Write in a thread; the context ends when the last block is written, and raises its error."""
        with ThreadPoolExecutor(1) as pool:
            writer = cls(write, pool)
            yield writer
            writer.wait()

    def __call__(
        self, file: Path, weights: Mapping[str, QTensor | Tensor], result: CalibrationResult | None = None
    ) -> None:
        """Copy a block to memory of the CPU and begin to write it, once the one before it is written."""
        copied = {
            name: move(weight, CPU) if isinstance(weight, QTensor) else weight.to(CPU)
            for name, weight in weights.items()
        }
        self.wait()
        self.pending = self.pool.submit(self.write, file, copied, result)

    def wait(self) -> None:
        """Wait until the last block is written.

        Raises:
            OSError: it could not be written.
        """
        if self.pending is not None:
            self.pending.result()
            self.pending = None
