"""Compare the kernels for ggml's block types with ggml's own searches: errors, and CPU seconds on one thread.

python -m benchmarks.kernels                          heavy-tailed random weights; prints the table
python -m benchmarks.kernels --weights FILE --write   also the matrices of a safetensors file; writes kernels.json

Runs of both searches alternate on the same rows; the median of the runs counts. Importance is log-normal.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from benchmarks.commands import provenance, write_result
from mcpmq.grids import ggml
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme

COLUMNS, MATRIX_ROWS = 4096, 64  # of random weights; of each matrix of a file
RUNS = 5
WEIGHTS_PER_RUN = 1 << 21
IMPORTANCE_DEVIATION = 1.2  # of the logarithm
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both searches on the same weights. Rates are weights per CPU second; errors are relative to the weights."""

    weights: str
    scheme: str
    with_importance: bool
    rate: float
    ggml_rate: float
    error: float
    ggml_error: float


def random_weights(rows: int) -> Matrix:
    """Return weights of Student's t distribution, with columns of different sizes."""
    random = np.random.default_rng(0)
    columns = np.exp(0.3 * random.standard_normal(COLUMNS))
    return (random.standard_t(5, (rows, COLUMNS)) * 0.016 * columns).astype(np.float32)


def file_weights(path: Path) -> Iterator[Matrix]:
    """Yield rows of every matrix of a file, without the columns after the last whole block."""
    with safe_open(path, "np") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            if len(file.get_slice(name).get_shape()) == 2:
                rows = file.get_slice(name)[:MATRIX_ROWS]
                yield np.ascontiguousarray(rows[:, : rows.shape[1] // 256 * 256], np.float32)


def compare(label: str, matrices: list[Matrix], name: str, with_importance: bool) -> Comparison:
    """Time both searches in alternation, and compare their weighted errors."""
    random = np.random.default_rng(1)
    work = [(matrix, _importance(random, matrix.shape[1], with_importance)) for matrix in matrices]
    schemes = GgmlScheme(name), GgmlScheme(name, "ggml")
    seconds: list[list[float]] = [[], []]
    for _ in range(RUNS):
        for scheme, measured in zip(schemes, seconds, strict=True):
            measured.append(sum(_cpu_seconds(matrix, importance, scheme) for matrix, importance in work))
    count = sum(matrix.size for matrix in matrices)
    errors = [_error(work, scheme) for scheme in schemes]
    rates = [count / median(measured) for measured in seconds]
    return Comparison(label, name, with_importance, *rates, *errors)


def _importance(random: np.random.Generator, columns: int, with_importance: bool) -> torch.Tensor | None:
    if not with_importance:
        return None
    return torch.from_numpy(np.exp(IMPORTANCE_DEVIATION * random.standard_normal(columns)).astype(np.float32))


def _cpu_seconds(matrix: Matrix, importance: torch.Tensor | None, scheme: GgmlScheme) -> float:
    """Return the time of a search alone, without the conversion and the checks around it."""
    weights = ggml._importance(importance, matrix.shape[1], scheme)
    blocks = np.empty((len(matrix), scheme.row_nbytes(matrix.shape[1])), np.uint8)
    start = time.process_time()
    ggml._quantize_rows(matrix, blocks, scheme, None if weights is None else weights.numpy())
    return time.process_time() - start


def _error(work: list[tuple[Matrix, torch.Tensor | None]], scheme: GgmlScheme) -> float:
    """Return the weighted root mean square error, relative to the weights."""
    error, total = 0.0, 0.0
    for matrix, importance in work:
        weight, weights = torch.from_numpy(matrix), torch.ones(matrix.shape[1]) if importance is None else importance
        change = ggml.dequantize(ggml.quantize(weight, scheme, importance)) - weight.double()
        error += float((change.square() * weights).sum())
        total += float((weight.double().square() * weights).sum())
    return float(np.sqrt(error / total))


def comparisons(weights: Path | None) -> Iterator[Comparison]:
    """Compare all schemes on random weights and on those of a file."""
    sources = {"heavy-tailed": [random_weights(WEIGHTS_PER_RUN // COLUMNS)]}
    if weights:
        sources[weights.stem] = list(file_weights(weights))
    for label, matrices in sources.items():
        for name in GGML_BLOCKS:
            for with_importance in (False, True):
                yield compare(label, matrices, name, with_importance)


def main() -> None:
    """Print the comparisons, and write them on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for one in comparisons(arguments.weights):
        found.append(asdict(one))
        print(f"{one.weights} {one.scheme} {one.with_importance}: {one.rate / one.ggml_rate:.2f} times the rate,"
              f" {one.error / max(one.ggml_error, 1e-30):.4f} times the error", flush=True)  # fmt: skip
    if arguments.write:
        write_result("kernels", provenance("benchmarks.kernels", "gguf", "xllamacpp", "numba") | {"comparisons": found})


if __name__ == "__main__":
    main()
