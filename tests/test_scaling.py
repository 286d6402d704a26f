"""The scaling model: traffic, memory and time from shapes and rates that are computed by hand."""

import json

import pytest

from benchmarks import scaling
from benchmarks.commands import RESULTS
from benchmarks.scaling import Matrix, Rates, Shape, block_nbytes, dense, forecast, gram_nbytes, inputs_nbytes, mixture

STAGES = ("forward", "Hessian accumulation", "Cholesky factorization", "GPTQ int4-g32")
RATES = Rates({stage: {8: 1e9, 64: 2e9} for stage in STAGES})
SMALL = Shape("small", 3, 8, ((Matrix(4, 8), Matrix(2, 8)), (Matrix(8, 64),)))
TOKENS = 128 * 700


def test_traffic_and_memory() -> None:
    """Inputs of two widths, eight sums of half of their Gram matrices, and one code and a share of a scale."""
    weights = 6 * 8 + 8 * 64

    assert inputs_nbytes(SMALL) == 4 * TOKENS * (8 + 64)
    assert gram_nbytes(SMALL) == 8 * 4 * (8**2 + 64**2) / 2
    assert block_nbytes(SMALL) == weights * (1 + 2 / 32)


def test_phases_have_the_rate_of_their_columns() -> None:
    """Forward passes are divided among workers, blocks are sent to each; the others do not depend on workers."""
    one, four = (scaling.phases(SMALL, workers, RATES) for workers in (1, 4))

    assert one["forward passes"] == pytest.approx(3 * 2 * 2 * TOKENS * (6 * 8 / 1e9 + 8 * 64 / 2e9))
    assert four["forward passes"] == one["forward passes"] / 4
    assert four["Gram products"] == one["Gram products"] == pytest.approx(3 * TOKENS * (8**2 / 1e9 + 64**2 / 2e9))
    assert one["factors"] == pytest.approx(3 * (8**3 / 1e9 + 64**3 / 2e9) / 3)
    assert one["rounding"] == pytest.approx(3 * (6 * 8**2 / 1e9 + 8 * 64**2 / 2e9))
    assert four["blocks to workers"] == 4 * one["blocks to workers"]


def test_the_time_is_the_sum_of_phases_that_do_not_overlap() -> None:
    """The first pass of the samples, their inputs on the network, and the products run at the same time."""
    found = scaling.phases(SMALL, 2, RATES)
    row = forecast(SMALL, 2, RATES)

    longest = max(found["forward passes"] / 2, found["inputs to process 0"], found["Gram products"])
    others = found["factors"] + found["rounding"] + found["blocks to workers"] + found["forward passes"] / 2
    assert row.hours == round((longest + others) / 3600, 2)
    assert found[row.first_bottleneck] == max(found.values())


def test_experts_receive_a_share_of_the_tokens() -> None:
    """The inputs of all experts together are those of the active ones; each has a Gram matrix of its own."""
    routed = mixture("m", 1, 8, 8, 2, experts=4, active=2, ffn=6)
    plain = dense("d", 1, 8, 6, 2)

    assert inputs_nbytes(routed) == 4 * TOKENS * (8 + 8 + 2 * 8 + 2 * 6)
    assert inputs_nbytes(plain) == 4 * TOKENS * (8 + 8 + 8 + 6)
    assert gram_nbytes(routed) > gram_nbytes(plain)


def test_committed_models_have_their_published_size() -> None:
    """The matrices of all layers have about 6.5, 68 and 234 billion weights, without embedding and head."""
    found = [round(shape.layers * scaling._weights(shape) / 1e9, 1) for shape in scaling.SHAPES]

    assert found == [6.5, 68.5, 233.8]


def test_the_committed_result_is_that_of_the_committed_rates() -> None:
    """The rows follow from the script and the measured rates of the stages alone."""
    committed = json.loads((RESULTS / "scaling.json").read_text())

    assert committed["rows"] == json.loads(json.dumps(scaling.compute()))
