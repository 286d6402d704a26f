"""Searches for the scales of ggml's blocks against ggml's own searches and brute force."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.grids import ggml, kernels
from mcpmq.grids.limits import scale_limits
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme
from tests.grids.kernels.hashes import weights
from tests.grids.kernels.oracle import best_error


def _error(weight: torch.Tensor, scheme: GgmlScheme, importance: torch.Tensor | None) -> float:
    """Return the weighted root mean square error, relative to the weight."""
    weights = torch.ones(weight.shape[1]) if importance is None else importance
    error = ggml.dequantize(ggml.quantize(weight, scheme, importance)) - weight.double()
    total = float((weight.double().square() * weights).sum()) or 1.0
    return math.sqrt(float((error.square() * weights).sum()) / total)


def _errors(weight: torch.Tensor, name: str, importance: torch.Tensor | None) -> tuple[float, float]:
    """Return the errors of the kernels and of ggml."""
    return _error(weight, GgmlScheme(name), importance), _error(weight, GgmlScheme(name, "ggml"), importance)


@pytest.mark.parametrize("name", GGML_BLOCKS)
@pytest.mark.parametrize("with_importance", [False, True])
def test_the_error_on_heavy_tailed_weights_is_at_most_that_of_ggml(name: str, with_importance: bool) -> None:
    """Weights of Student's t distribution, columns of different sizes, and importance over two decades."""
    random = np.random.default_rng(11)
    columns = np.exp(0.3 * random.standard_normal(1024))
    weight = torch.from_numpy((random.standard_t(4, (128, 1024)) * columns * 0.016).astype(np.float32))
    importance = torch.from_numpy(np.exp(1.2 * random.standard_normal(1024)).astype(np.float32))

    ours, ggmls = _errors(weight, name, importance if with_importance else None)

    assert ours <= ggmls


KINDS = ("normal", "zeros", "constants", "outlier", "one value", "positive", "integers", "groups")


def _blocks(kind: str, largest: float, seed: int) -> torch.Tensor:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((40, 512))
    if kind in ("zeros", "one value"):
        rows *= 0
    if kind in ("outlier", "one value"):
        rows[np.arange(40), random.integers(0, 512, 40)] = 100
    if kind == "constants":
        rows[:] = random.standard_normal((40, 1))
    if kind == "positive":
        rows = np.abs(rows)
    if kind == "integers":
        rows = np.round(rows)
    if kind == "groups":
        rows *= np.repeat(10 ** random.uniform(-3, 0, (40, 16)), 32, axis=1)
    return torch.from_numpy((rows / max(np.abs(rows).max(), 1) * largest).astype(np.float32))


@pytest.mark.parametrize("name", GGML_BLOCKS)
@given(
    kind=st.sampled_from(KINDS),
    size=st.floats(0, 1),
    seed=st.integers(0, 10**6),
    weighted=st.booleans(),
)
@settings(max_examples=20, deadline=None, database=None, derandomize=True)
def test_the_error_on_unusual_blocks_is_at_most_that_of_ggml(
    name: str, kind: str, size: float, seed: int, weighted: bool
) -> None:
    """Up to 2 %, or a thousandth of the weight; the sizes are those that the scheme represents."""
    limits = scale_limits(GgmlScheme(name), 512)
    assert limits
    smallest, largest = 64 * limits.min_magnitude, limits.max_magnitude / 4
    weight = _blocks(kind, smallest * (largest / smallest) ** size, seed)
    importance = torch.rand(512, generator=torch.Generator().manual_seed(seed)) + 0.01 if weighted else None

    ours, ggmls = _errors(weight, name, importance)

    assert ours <= 1.02 * ggmls + 1e-3


@pytest.mark.parametrize(
    ("name", "bound"), [("q4_0", 1.02), ("q5_0", 1.02), ("q8_0", 1.2), ("iq4_nl", 1.02), ("q4_1", 1.02)]
)
def test_the_error_of_a_block_is_near_that_of_brute_force(name: str, bound: float) -> None:
    """Scales, and offsets, in very small steps give slightly less error in the mean of 40 blocks."""
    random = np.random.default_rng(5)
    weight = random.standard_t(4, (40, 32)).astype(np.float32)
    importance = np.exp(random.standard_normal(32)).astype(np.float32)
    values = ggml.dequantize(
        ggml.quantize(torch.from_numpy(weight), GgmlScheme(name), torch.from_numpy(importance))
    ).numpy()

    errors = ((values - weight) ** 2 * importance).sum(1)
    best = np.array([best_error(row, importance, name) for row in weight])

    assert np.sqrt(errors / best).mean() < bound


@pytest.mark.parametrize("name", GGML_BLOCKS)
def test_rows_are_independent(name: str) -> None:
    """The bytes of a row do not depend on the other rows, on their number, or on the threads."""
    weight = torch.randn(150, 512, generator=torch.Generator().manual_seed(2))
    importance = torch.rand(512, generator=torch.Generator().manual_seed(3))

    whole = ggml.quantize(weight, GgmlScheme(name), importance).blocks
    parts = [ggml.quantize(part, GgmlScheme(name), importance).blocks for part in weight.split([1, 63, 64, 22])]

    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", GGML_BLOCKS)
@pytest.mark.parametrize("exponent", [-40, 30])
def test_only_ratios_of_importances_count(name: str, exponent: int) -> None:
    """A power of two times all importances gives equal bytes: no error is compared with a constant."""
    weight, importance = (values[:12] if values.dim() > 1 else values for values in weights())
    scheme = GgmlScheme(name)

    scaled = ggml.quantize(weight, scheme, importance * 2.0**exponent).blocks

    assert torch.equal(scaled, ggml.quantize(weight, scheme, importance).blocks)


@pytest.mark.parametrize(("name", "exponent"), [("q3_k", -6), ("iq3_s", -4), ("q4_0", -2)])
def test_a_power_of_two_times_the_weights_changes_no_code(name: str, exponent: int) -> None:
    """Down to the exponent where scales of these weights are below the normal numbers of fp16."""
    weight, scheme = weights()[0], GgmlScheme(name)
    small, large = (ggml.dequantize(ggml.quantize(weight * 2.0**power, scheme)) for power in (exponent, 6))

    assert torch.equal(small * 2.0 ** (6 - exponent), large)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("q4_1", 0.1),
        ("q5_k", 0.1),
        ("q6_k", 0.1),
        ("iq4_nl", 0.1),
        ("q8_0", 0.1),
        ("iq4_xs", 0.1),
        ("q3_k", 0.2),
        ("q2_k", 0.4),
        ("iq3_s", 0.3),
    ],
)
def test_the_largest_values_overflow_no_scale(name: str, bound: float) -> None:
    """Blocks of the largest values that a scheme accepts, of both signs, are finite and near them."""
    scheme = GgmlScheme(name)
    limits = scale_limits(scheme, 256)
    assert limits
    largest = limits.max_magnitude
    generator = torch.Generator().manual_seed(3)
    signs, ramps = torch.randn(3, 256, generator=generator).sign(), torch.rand(3, 256, generator=generator) - 1
    weight = largest * torch.cat([torch.ones(3, 256), signs, ramps])

    values = ggml.dequantize(ggml.quantize(weight, scheme))

    assert (values - weight).abs().max() < bound * largest


INTERPRETED = """
import sys, numpy as np
from mcpmq.grids.kernels import compiler
compiler.LANES = 4
from mcpmq.grids import kernels
values, importance, blocks = np.load(sys.argv[1]).values()
kernels.quantize_rows(sys.argv[2], values, importance, blocks)
sys.stdout.buffer.write(blocks.tobytes())
"""


@pytest.mark.parametrize(
    ("name", "columns"), [("q4_k", 256), ("q4_0", 32), ("iq4_xs", 256), ("q3_k", 256), ("q2_k", 256), ("iq3_s", 256)]
)
def test_compiled_and_interpreted_kernels_write_equal_bytes(name: str, columns: int, tmp_path: Path) -> None:
    """Compilation neither reorders nor fuses operations, so the bytes depend neither on the processor nor on lanes."""
    random = np.random.default_rng(7)
    values = random.standard_t(4, (3, columns)).astype(np.float32)
    importance = random.random(columns, np.float32) + np.float32(0.1)
    blocks = np.zeros((3, GgmlScheme(name).row_nbytes(columns)), np.uint8)
    path = tmp_path / "arrays.npz"
    np.savez(path, values=values, importance=importance, blocks=blocks)
    interpreted = subprocess.run(
        [sys.executable, "-c", INTERPRETED, str(path), name],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, check=True,
    ).stdout  # fmt: skip

    kernels.quantize_rows(name, values, importance, blocks)

    assert blocks.tobytes() == interpreted


@pytest.mark.parametrize("name", GGML_BLOCKS)
def test_the_error_of_outputs_without_importance_is_at_most_that_of_ggml(name: str) -> None:
    """For correlated inputs of different sizes, which the search does not know; ggml weights errors by magnitude."""
    random = np.random.default_rng(17)
    weight = torch.from_numpy((random.standard_t(5, (256, 512)) * 0.02).astype(np.float32))
    sizes = np.exp(0.7 * random.standard_normal(512))
    mixed = np.eye(512) + 0.2 * random.standard_normal((512, 512)) / math.sqrt(512)
    inputs = torch.from_numpy((random.standard_normal((1024, 512)) @ mixed * sizes).astype(np.float32))

    errors = [
        float(((ggml.dequantize(ggml.quantize(weight, scheme)) - weight) @ inputs.T).square().sum())
        for scheme in (GgmlScheme(name), GgmlScheme(name, "ggml"))
    ]

    assert errors[0] <= errors[1]
