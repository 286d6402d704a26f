"""Compute traffic, memory and time of a calibration on 1 to 64 workers from the measured rates of benchmarks.stages.

python -m benchmarks.scaling        writes benchmarks/results/scaling.json

A block takes the sum of its phases: the samples pass through it while its inputs travel to all processes; each process
multiplies its tiles of the Gram matrices, which travel to process 0; it factors and rounds; the rounded block travels
to the workers; the samples pass through it again. All processes have the cores of the measured machine.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.commands import RESULTS, provenance, write_result
from mcpmq.calibrate.shared_statistics import assign_tiles, initial_loads

SAMPLES, TOKENS_PER_SAMPLE = 128, 700
NETWORK_NBYTES_PER_SECOND = 10e9 / 8  # 10 Gb/s, of every node
WORKERS = (1, 2, 4, 8, 16, 32, 64)
FLOAT_NBYTES, CODE_NBYTES = 4, 1 + 2 / 32  # a code of int4-g32 in memory, and its share of a scale
STATES = 2  # hidden states of a token, before the present and the first block
NBYTES_PER_GB = 1e9


@dataclass(frozen=True, slots=True)
class Matrix:
    """Equal matrices of a block with one input: their number, and the share of tokens that each receives."""

    rows: int
    columns: int
    count: int = 1
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Shape:
    """The blocks of a language model; matrices of one tuple have the same input."""

    name: str
    layers: int
    hidden_size: int
    inputs: tuple[tuple[Matrix, ...], ...]


def dense(name: str, layers: int, hidden: int, ffn: int, keys: int) -> Shape:
    """Return a model with one MLP in every layer; `keys` is the width of keys and of values."""
    attention = (Matrix(hidden + 2 * keys, hidden),), (Matrix(hidden, hidden),)
    return Shape(name, layers, hidden, (*attention, (Matrix(2 * ffn, hidden),), (Matrix(hidden, ffn),)))


def mixture(name: str, layers: int, hidden: int, queries: int, keys: int, experts: int, active: int, ffn: int) -> Shape:
    """Return a model with experts, each of which receives an equal share of the tokens."""
    attention = (Matrix(queries + 2 * keys, hidden),), (Matrix(hidden, queries),)
    share = active / experts
    routed = (Matrix(2 * ffn, hidden, experts, share),), (Matrix(hidden, ffn, experts, share),)
    return Shape(name, layers, hidden, (*attention, *routed))


SHAPES = (
    dense("8B", 28, 3584, 18944, 512),
    dense("70B", 80, 8192, 28672, 1024),
    mixture("235B-A22B", 94, 4096, 8192, 512, 128, 8, 1536),
)


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured operations per second of each stage, by the number of columns of the matrix."""

    by_stage: dict[str, dict[int, float]]

    @classmethod
    def load(cls) -> "Rates":
        """Read the committed result of benchmarks.stages; of several matrices with the same columns the slowest."""
        found: dict[str, dict[int, float]] = {}
        for one in json.loads((RESULTS / "stages.json").read_text())["stages"]:
            if one["gflop"]:
                rates, rate = found.setdefault(one["stage"], {}), one["gflop"] * 1e9 / one["seconds"]
                rates[one["columns"]] = min(rate, rates.get(one["columns"], rate))
        return cls(found)

    def seconds(self, stage: str, columns: int, operations: float) -> float:
        """Return the time of operations, with the rate of the nearest measured number of columns."""
        rates = self.by_stage[stage]
        return operations / rates[min(rates, key=lambda known: abs(known - columns))]


@dataclass(frozen=True, slots=True)
class Row:
    """The forecast for one model and number of workers; traffic, seconds and phases are those of all blocks."""

    model: str
    workers: int
    hours: float
    speedup: float  # against one process with the samples
    first_bottleneck: str  # the phase that takes longest
    phase_seconds: dict[str, float]
    inputs_gb: float  # received by every process
    tiles_gb: float  # of Gram matrices, received by process 0
    blocks_gb: float  # rounded blocks, sent to all workers
    worker_gb: float  # memory: one block in float32, hidden states, and tiles of its Gram matrices
    root_gb: float  # memory: the Hessians of a block and its weights


def tokens_of(matrix: Matrix) -> float:
    """Return the tokens that a matrix receives."""
    return SAMPLES * TOKENS_PER_SAMPLE * matrix.share


def phases(shape: Shape, workers: int, rates: Rates) -> dict[str, float]:
    """Return the seconds of every phase over all blocks; without workers process 0 has the samples."""
    matrices = [matrix for group in shape.inputs for matrix in group]
    distinct = [group[0] for group in shape.inputs]
    network = shape.layers / NETWORK_NBYTES_PER_SECOND
    factors = sum(
        rates.seconds("Cholesky factorization", one.columns, one.columns**3 / 3 * one.count) for one in distinct
    )
    rounding = sum(
        rates.seconds("GPTQ int4-g32", one.columns, one.rows * one.columns**2 * one.count) for one in matrices
    )
    return {
        "first pass and products": shape.layers * first_pass_seconds(shape, workers, rates),
        "second pass": shape.layers * sum(forward_seconds(one, rates) for one in matrices) / max(1, workers),
        "inputs to all": network * inputs_nbytes(shape),
        "tiles to process 0": network * tiles_nbytes(shape, workers),
        "factors": shape.layers * factors,
        "rounding": shape.layers * rounding,
        "blocks to workers": network * block_nbytes(shape) * workers,
    }


def forward_seconds(matrix: Matrix, rates: Rates) -> float:
    """Return the seconds of one process for all tokens."""
    operations = 2 * tokens_of(matrix) * matrix.rows * matrix.columns * matrix.count
    return rates.seconds("forward", matrix.columns, operations)


def first_pass_seconds(shape: Shape, workers: int, rates: Rates) -> float:
    """Return the seconds until the slowest process has passed its samples through a block and multiplied its tiles.

    Experts are blocks of their own, calibrated one by one.
    """
    seconds = 0.0
    for count in {group[0].count for group in shape.inputs}:
        inputs = [group for group in shape.inputs if group[0].count == count]
        weights = sum(one.rows * one.columns for group in inputs for one in group)
        loads = initial_loads(weights, workers + 1) if workers else [0]
        forward = sum(forward_seconds(one, rates) for group in inputs for one in group) / count / max(1, workers)
        by_process = [forward if load else 0.0 for load in loads] if workers else [forward]
        for group in inputs:
            for process, share in enumerate(tile_shares(group[0].columns, loads)):
                operations = tokens_of(group[0]) * group[0].columns ** 2
                by_process[process] += share * rates.seconds("Hessian accumulation", group[0].columns, operations)
        seconds += count * max(by_process)
    return seconds


def tile_shares(columns: int, loads: list[int]) -> list[float]:
    """Return the share of each process in the products of an input; `loads` grows as in `assign_tiles`."""
    before = list(loads)
    assign_tiles(columns, loads)
    added = [load - earlier for load, earlier in zip(loads, before, strict=True)]
    return [one / sum(added) for one in added]


def inputs_nbytes(shape: Shape) -> float:
    """Return the bytes of all distinct inputs of one block."""
    return sum(FLOAT_NBYTES * tokens_of(group[0]) * group[0].columns * group[0].count for group in shape.inputs)


def tiles_nbytes(shape: Shape, workers: int) -> float:
    """Return the bytes of half of the Gram matrices of one block, less the share that process 0 multiplies itself."""
    halves = sum(FLOAT_NBYTES * group[0].columns ** 2 / 2 * group[0].count for group in shape.inputs)
    return halves * workers / (workers + 1)


def block_nbytes(shape: Shape) -> float:
    """Return the bytes of one rounded block in memory."""
    return CODE_NBYTES * _weights(shape)


def _weights(shape: Shape) -> int:
    return sum(one.rows * one.columns * one.count for group in shape.inputs for one in group)


def total_seconds(found: dict[str, float]) -> float:
    """Return the time of all blocks: in the first of two passes, inputs travel while processes compute."""
    first_pass = max(found["first pass and products"], found["inputs to all"])
    others = ("second pass", "tiles to process 0", "factors", "rounding", "blocks to workers")
    return first_pass + sum(found[name] for name in others)


def forecast(shape: Shape, workers: int, rates: Rates) -> Row:
    """Return the row of a model and a number of workers."""
    found = phases(shape, workers, rates)
    alone = {name: 0.0 if " to " in name else seconds for name, seconds in phases(shape, 0, rates).items()}
    seconds, one_machine = total_seconds(found), sum(alone.values())
    states = STATES * FLOAT_NBYTES * SAMPLES * TOKENS_PER_SAMPLE / workers * shape.hidden_size
    hessians = sum(FLOAT_NBYTES * group[0].columns ** 2 * group[0].count for group in shape.inputs)
    tiles = tiles_nbytes(shape, workers) / workers
    return Row(
        model=shape.name,
        workers=workers,
        hours=round(seconds / 3600, 2),
        speedup=round(one_machine / seconds, 2),
        first_bottleneck=max(found, key=lambda name: found[name]),
        phase_seconds={name: round(one) for name, one in found.items()},
        inputs_gb=round(shape.layers * inputs_nbytes(shape) / NBYTES_PER_GB),
        tiles_gb=round(shape.layers * tiles_nbytes(shape, workers) / NBYTES_PER_GB),
        blocks_gb=round(shape.layers * block_nbytes(shape) * workers / NBYTES_PER_GB),
        worker_gb=round((FLOAT_NBYTES * _weights(shape) + states + tiles) / NBYTES_PER_GB, 1),
        root_gb=round((hessians + FLOAT_NBYTES * _weights(shape)) / NBYTES_PER_GB, 1),
    )


def compute(shapes: Sequence[Shape] = SHAPES, workers: Sequence[int] = WORKERS) -> list[dict[str, Any]]:
    """Return all rows as JSON values."""
    rates = Rates.load()
    return [asdict(forecast(shape, count, rates)) for shape in shapes for count in workers]


if __name__ == "__main__":
    write_result("scaling", {**provenance("benchmarks.scaling"), "samples": SAMPLES, "rows": compute()})
