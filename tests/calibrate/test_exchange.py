"""Calibration in several processes: the bytes of a run in one, for any number of processes and after a failure."""

import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Queue
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest
import torch
from torch import Tensor

from mcpmq.calibrate import observed_samples, observers
from mcpmq.calibrate.exchange import ONE_PROCESS, Exchange, add_by_sample, own_samples
from mcpmq.calibrate.expert_counts import NO_TOKENS
from mcpmq.calibrate.sequential import calibrate_sequentially
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.execution.device import CPU
from mcpmq.plan import Plan, make_plan
from mcpmq.quantized_model import write_block
from mcpmq.recipe import Recipe
from mcpmq.system.process_group import from_bytes, to_bytes
from mcpmq.system.progress import silent
from tests.tiny_families import QWEN3_VL_MOE, without_expert

pytestmark = pytest.mark.usefixtures("no_bfloat16", "small_tiles")
SECONDS = 120  # before a test fails because a process does not answer
RECIPES = {
    "layer targets": {"method": "gptq", "targets": "layer"},
    "model targets, smoothing": {"method": "gptq", "targets": "model", "smooth": "awq"},
    "method by block": {"method": "auto"},
}


@pytest.fixture(scope="module")
def small_tiles() -> Iterator[None]:
    """Several tiles of every Hessian, of different sizes; a part of the samples calibrates vision layers."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(observers, "TILE_COLUMNS", 24)
        patched.setattr(observed_samples, "MIN_ENCODER_INPUTS", 70)
        patched.setattr(observed_samples, "ENCODER_INPUTS_PER_COLUMN", 0)
        yield


@dataclass
class Board:
    """The state that the threads of one calibration share."""

    size: int
    barrier: Barrier
    values: list[bytes]
    streams: list[list["Queue[bytes]"]]  # by sender and reader
    sent: int = 0

    @classmethod
    def of_size(cls, size: int) -> "Board":
        """Return the board of this number of threads."""
        streams: list[list[Queue[bytes]]] = [[Queue(4) for _ in range(size)] for _ in range(size)]
        return cls(size, Barrier(size, timeout=SECONDS), [b""] * size, streams)


@dataclass
class ThreadExchange:
    """An exchange between threads; values are pickled, as between processes. Thread `dies` fails at a gather."""

    rank: int
    board: Board
    dies_at: int | None = None
    gathered: int = field(default=0)

    @property
    def size(self) -> int:
        return self.board.size

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all threads."""
        self.gathered += 1
        if self.gathered == self.dies_at:
            self.board.barrier.abort()
            raise RuntimeError("this worker died")
        self.board.values[self.rank] = pickle.dumps(value)
        self.board.barrier.wait()
        found = [pickle.loads(one) for one in self.board.values]
        self.board.barrier.wait()
        return found

    def send(self, item: Any, readers: Sequence[int]) -> None:
        """Add an item to the streams from this thread to the readers."""
        for reader in readers:
            self.board.streams[self.rank][reader].put(pickle.dumps(item), timeout=SECONDS)

    def receive(self, rank: int) -> Any:
        """Return the next item of a thread for this one."""
        return pickle.loads(self.board.streams[rank][self.rank].get(timeout=SECONDS))


@dataclass
class AddingThreadExchange(ThreadExchange):
    """An exchange between threads with Hessians of their own, on one device; tensors arrive on it."""

    device: torch.device = CPU

    def gather(self, value: Any) -> list[Any]:
        return [from_bytes(one, self.device) for one in super().gather(to_bytes(value))]

    def add(self, tensor: Tensor) -> None:
        """Add the tensors of all threads in the first one."""
        tensor.copy_(torch.stack(self.gather(tensor)).sum(0) if self.rank == 0 else self.gather(tensor)[self.rank] * 0)


def calibrate(plan: Plan, samples: SampleSet, folder: Path, exchange: Exchange) -> None:
    """Calibrate the language layers and the head in this process or thread."""
    files = {name: folder / f"{name}.safetensors" for name in plan.blocks}
    with torch.inference_mode():
        calibrate_sequentially(plan, samples.samples, files, silent, CPU, write_block, exchange=exchange)


def run_threads(plan: Plan, samples: SampleSet, folder: Path, workers: int, dies_at: int | None = None) -> list[Any]:
    """Calibrate with threads, of which the first worker dies at a gather; return their errors."""
    folder.mkdir(exist_ok=True)
    board = Board.of_size(workers + 1)
    exchanges = [ThreadExchange(rank, board, dies_at if rank == 1 else None) for rank in range(workers + 1)]
    with ThreadPoolExecutor(workers + 1) as pool:
        found = [pool.submit(partial(calibrate, plan, samples, folder, one)) for one in exchanges]
    return [one.exception() for one in found]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all block files."""
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


SLOW = [pytest.param(name, marks=pytest.mark.cluster) for name in list(RECIPES)[1:]]


@pytest.fixture(scope="module", params=["layer targets", *SLOW])
def plan(request: pytest.FixtureRequest, small_checkpoint: Path) -> Plan:
    """A plan of the small checkpoint that quantizes vision and language layers."""
    weights = {"*": "keep", "vision.layers.*": "int8-g32", "language.layers.*": "int4-g32", "head": "int8-g32"}
    fields: dict[str, Any] = {"name": "distributed", "weights": weights, **RECIPES[request.param]}
    return make_plan(Checkpoint.open(small_checkpoint), Recipe.model_validate(fields))


@pytest.fixture(scope="module")
def alone(plan: Plan, mixed_set: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The block files of a calibration in one process."""
    folder = tmp_path_factory.mktemp("alone")
    calibrate(plan, mixed_set, folder, ONE_PROCESS)
    return contents(folder)


@pytest.mark.parametrize("workers", [1, 2, pytest.param(3, marks=pytest.mark.cluster)])
def test_the_bytes_are_those_of_one_process(
    plan: Plan, mixed_set: SampleSet, alone: dict[str, bytes], workers: int, tmp_path: Path
) -> None:
    """Vision and language layers and the head have the same codes, scales and records with workers that own shards."""
    assert run_threads(plan, mixed_set, tmp_path / "out", workers) == [None] * (workers + 1)

    assert contents(tmp_path / "out") == alone
    assert len(alone) > 4


def test_a_run_continues_after_a_worker_died(
    plan: Plan, mixed_set: SampleSet, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """All processes end with an error; the next run keeps the finished blocks and ends with the same bytes."""
    errors = run_threads(plan, mixed_set, tmp_path / "out", 2, dies_at=18)
    before = contents(tmp_path / "out")

    assert isinstance(errors[1], RuntimeError)
    assert isinstance(errors[0], BrokenBarrierError)
    assert 0 < len(before) < len(alone)
    assert run_threads(plan, mixed_set, tmp_path / "out", 2) == [None] * 3
    assert contents(tmp_path / "out") == alone


@pytest.mark.parametrize("name", [SLOW[0], "method by block"])
def test_experts_have_the_bytes_of_one_process(
    name: str, expert_checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """Also experts without tokens."""
    fields = {
        "name": "experts",
        "weights": {"*": "keep", "language.*": "int4-g32", "head": "int8-g32"},
        **RECIPES[name],
    }
    plan = make_plan(expert_checkpoint, Recipe.model_validate(fields))
    (tmp_path / "alone").mkdir()
    calibrate(plan, mixed_set, tmp_path / "alone", ONE_PROCESS)

    assert run_threads(plan, mixed_set, tmp_path / "out", 2) == [None] * 3

    found = contents(tmp_path / "out")
    assert found == contents(tmp_path / "alone")
    assert sum("experts" in file for file in found) > 8
    assert any(NO_TOKENS.encode() in content for content in found.values())


@pytest.fixture(scope="module")
def expert_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny Qwen3-VL with experts, of which one gets no token."""
    return Checkpoint.open(without_expert(QWEN3_VL_MOE.build(tmp_path_factory.mktemp("experts") / "tiny"), expert=5))


def indices(count: int, workers: int) -> Sequence[list[int]]:
    """Return the samples of every process."""
    board = Board.of_size(workers + 1)
    return [own_samples(count, ThreadExchange(rank, board)) for rank in range(workers + 1)]


def test_shards_have_a_fixed_size() -> None:
    """Four consecutive samples belong to one worker; process 0 has none if there are others."""
    assert indices(10, 1) == [[], list(range(10))]
    assert indices(10, 2) == [[], [0, 1, 2, 3, 8, 9], [4, 5, 6, 7]]
    assert own_samples(3, ONE_PROCESS) == [0, 1, 2]


def test_processes_with_hessians_of_their_own_all_have_samples() -> None:
    """They take turns, so that their numbers of samples are nearly equal."""
    board = Board.of_size(3)

    found = [own_samples(7, AddingThreadExchange(rank, board)) for rank in range(3)]

    assert found == [[0, 3, 6], [1, 4], [2, 5]]


def test_sums_are_in_the_order_of_the_samples() -> None:
    """The sum of floats depends on their order, which is that of the indices."""
    values = [(2, 1.0), (0, 1e16), (1, -1e16)]

    assert add_by_sample(ONE_PROCESS, values) == 1.0
