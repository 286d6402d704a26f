"""The scaling model: traffic, memory and time from shapes and rates that are computed by hand."""

import json

import pytest

from benchmarks import scaling
from benchmarks.commands import RESULTS
from benchmarks.scaling import Matrix, Rates, Shape, block_nbytes, dense, forecast, inputs_nbytes, mixture, tiles_nbytes
from mcpmq.calibrate import observers

STAGES = ("forward", "Hessian accumulation", "Cholesky factorization", "GPTQ int4-g32")
RATES = Rates({stage: {8: 1e9, 64: 2e9} for stage in STAGES})
SMALL = Shape("small", 3, 8, ((Matrix(4, 8), Matrix(2, 8)), (Matrix(8, 64),)))
TOKENS = 128 * 700


def test_traffic_and_memory() -> None:
    """Inputs of two widths, half of their Gram matrices, and one code and a share of a scale."""
    weights = 6 * 8 + 8 * 64

    assert inputs_nbytes(SMALL) == 4 * TOKENS * (8 + 64)
    assert tiles_nbytes(SMALL, 3) == 4 * (8**2 + 64**2) / 2 * 3 / 4
    assert block_nbytes(SMALL) == weights * (1 + 2 / 32)


def test_phases_have_the_rate_of_their_columns() -> None:
    """Forward passes are divided among workers, blocks are sent to each; factors and rounding are not divided."""
    one, four = (scaling.phases(SMALL, workers, RATES) for workers in (1, 4))

    assert one["second pass"] == pytest.approx(3 * FORWARD)
    assert four["second pass"] == one["second pass"] / 4
    assert one["factors"] == pytest.approx(3 * (8**3 / 1e9 + 64**3 / 2e9) / 3)
    assert four["rounding"] == one["rounding"] == pytest.approx(3 * (6 * 8**2 / 1e9 + 8 * 64**2 / 2e9))
    assert four["blocks to workers"] == 4 * one["blocks to workers"]


FORWARD = 2 * TOKENS * (6 * 8 / 1e9 + 8 * 64 / 2e9)  # seconds of one process for a block
NARROW, WIDE = TOKENS * 8**2 / 1e9, TOKENS * 64**2 / 2e9  # of its products


def test_tiles_are_divided_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process all is added up; a worker with samples has fewer tiles than process 0, which has none.

    The wide input has tiles of 64, 56, ... 8 columns, 288 in all. The block has 560 weights, and a tile of 64 columns
    has 8 x 64 = 512 products for a token. Process 0 has the narrow input and then the tiles of 64, 48, 40, 16 and 8.
    """
    monkeypatch.setattr(observers, "TILE_COLUMNS", 8)

    assert scaling.first_pass_seconds(SMALL, 0, RATES) == pytest.approx(FORWARD + NARROW + WIDE)
    process_0, worker = 64 + 48 + 40 + 16 + 8, 56 + 32 + 24
    assert scaling.tile_shares(64, [64, 560]) == pytest.approx([process_0 / 288, worker / 288])
    expected = max(NARROW + process_0 / 288 * WIDE, FORWARD + worker / 288 * WIDE)
    assert scaling.first_pass_seconds(SMALL, 1, RATES) == pytest.approx(expected)


def test_the_time_is_the_sum_of_phases_that_do_not_overlap() -> None:
    """In the first pass of the samples, the inputs are on the network while processes compute."""
    found = scaling.phases(SMALL, 2, RATES)
    row = forecast(SMALL, 2, RATES)

    seconds = sum(found.values()) - min(found["first pass and products"], found["inputs to all"])
    assert row.hours == round(seconds / 3600, 2)
    assert found[row.first_bottleneck] == max(found.values())


def test_experts_receive_a_share_of_the_tokens() -> None:
    """The inputs of all experts together are those of the active ones; each has a Gram matrix of its own."""
    routed = mixture("m", 1, 8, 8, 2, experts=4, active=2, ffn=6)
    plain = dense("d", 1, 8, 6, 2)

    assert inputs_nbytes(routed) == 4 * TOKENS * (8 + 8 + 2 * 8 + 2 * 6)
    assert inputs_nbytes(plain) == 4 * TOKENS * (8 + 8 + 8 + 6)
    assert tiles_nbytes(routed, 1) > tiles_nbytes(plain, 1)


def test_committed_models_have_their_published_size() -> None:
    """The matrices of all layers have about 6.5, 68 and 234 billion weights, without embedding and head."""
    found = [round(shape.layers * scaling._weights(shape) / 1e9, 1) for shape in scaling.SHAPES]

    assert found == [6.5, 68.5, 233.8]


def test_the_committed_result_is_that_of_the_committed_rates() -> None:
    """The rows follow from the script and the measured rates of the stages alone."""
    committed = json.loads((RESULTS / "scaling.json").read_text())

    assert committed["rows"] == json.loads(json.dumps(scaling.compute()))
