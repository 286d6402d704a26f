"""Reading and writing of blocks beside the work: order, results and errors."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mcpmq.calibrate.block_files import BackgroundWriter, BlockReader
from mcpmq.checkpoint import Checkpoint
from mcpmq.qtensor import IntegerTensor, QTensor
from mcpmq.quantized_model import CalibrationResult
from mcpmq.scheme import IntegerScheme, parse_scheme


def test_the_next_block_is_read_while_one_is_in_use(small_checkpoint: Path) -> None:
    """Every weight is that of the checkpoint; the thread that reads is not that of the caller."""
    checkpoint, readers = Checkpoint.open(small_checkpoint), []
    blocks = [checkpoint.specs[:2], (), checkpoint.specs[2:5]]
    load = Checkpoint.load

    def recording(self: Checkpoint, spec: Any) -> Tensor:
        readers.append(threading.current_thread())
        return load(self, spec)

    with pytest.MonkeyPatch.context() as patch, BlockReader.open(checkpoint, blocks) as reader:
        patch.setattr(Checkpoint, "load", recording)
        first = reader.read(0)
        assert list(reader.pending) == [1]
        assert reader.read(1) == {}
        third = reader.read(2)
        assert not reader.pending

    for specs, weights in ((blocks[0], first), (blocks[2], third)):
        assert list(weights) == [spec.name for spec in specs]
        assert all(torch.equal(weights[spec.name], checkpoint.load(spec)) for spec in specs)
    assert threading.current_thread() not in readers


def _weight() -> IntegerTensor:
    scheme = parse_scheme("int4-g32")
    assert isinstance(scheme, IntegerScheme)
    return IntegerTensor(scheme, torch.arange(64, dtype=torch.uint8).reshape(2, 32) % 16, torch.ones(2, 1).half())


def test_blocks_are_written_in_order_and_the_last_one_before_the_end() -> None:
    """The next block waits for the one before it; records and weights are passed on."""
    written: list[tuple[str, Any]] = []
    gate = threading.Event()

    def write(file: Path, weights: Mapping[str, QTensor | Tensor], result: CalibrationResult | None = None) -> None:
        gate.wait(10)
        written.append((file.name, result))
        assert isinstance(weights["one"], IntegerTensor)
        assert torch.equal(weights["one"].codes, _weight().codes)

    with BackgroundWriter.open(write) as writer:
        writer(Path("a"), {"one": _weight(), "two": torch.ones(3)})
        assert not written
        gate.set()
        writer(Path("b"), {"one": _weight()}, CalibrationResult({"one": {}}))

    assert written == [("a", None), ("b", CalibrationResult({"one": {}}))]


@pytest.mark.parametrize("later_block", [True, False])
def test_an_error_of_writing_is_raised(later_block: bool) -> None:
    """With the next block, or at the end."""

    def write(file: Path, weights: object, result: object = None) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), BackgroundWriter.open(write) as writer:  # noqa: PT012
        writer(Path("a"), {"one": _weight()})
        if later_block:
            writer(Path("b"), {"one": _weight()})
            raise AssertionError("the second block was written")
