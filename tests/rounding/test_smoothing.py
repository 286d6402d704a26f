"""Scales that move between neighbours change no output, and the search finds the best of them by brute force."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.execution.chunked_matmul import all_threads, one_by_one, torch_threads
from mcpmq.families.family import Fold
from mcpmq.grids import dequantize
from mcpmq.plan import Plan, make_plan
from mcpmq.recipe import Recipe
from mcpmq.rounding import ROUNDERS, smoothing
from mcpmq.rounding.smoothing import (
    EXPONENTS,
    Channels,
    Method,
    Reader,
    Scales,
    Scaling,
    awq_scale,
    scaled_stats,
    scalings,
    search,
    smoothquant_scale,
)
from mcpmq.rounding.stats import LayerStats
from tests.rounding.oracle import sample_layer, scheme_of, stats_of
from tests.smoothing_tools import drawn_scales, scaled_logits

HEAD_WIDTH = 64  # of the tiny model
MAGNITUDES = arrays("float32", st.integers(1, 40), elements=st.sampled_from([0.0, 1e-30, 1e-6, 0.5, 1.0, 30.0, 1e9]))


# --- what is computed stays ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(tiny_checkpoint: Path) -> Plan:
    """The tiny checkpoint with every place where scales may move."""
    recipe = {"name": "smooth", "smooth": "awq", "weights": {"*": "int8-g32"}}
    return make_plan(Checkpoint.open(tiny_checkpoint), Recipe.model_validate(recipe))


def _logits(plan: Plan, samples: CalibrationSet, scaling: Mapping[str, Scaling]) -> list[Tensor]:
    processor = plan.checkpoint.family.processor(plan.checkpoint.path)
    inputs = [processor.encode(one.id, one.image, one.prompt, one.answer) for one in list(samples)[::4]]
    return scaled_logits(plan, inputs, scaling)


def test_scales_move_and_no_output_changes(plan: Plan, mixed_set: CalibrationSet) -> None:
    """Norms, values and shared heads, gated rows, and the packed and the transposed matrix of the resampler, in every
    layer at once; the same scales in the readers alone change everything."""
    found = drawn_scales(plan)
    assert len(found) == 2 * 4 + 2 * 3 + 2
    scaling = scalings(found)
    before, after = _logits(plan, mixed_set, {}), _logits(plan, mixed_set, scaling)

    for one, other in zip(before, after, strict=True):
        assert float((one - other).abs().max()) < 1e-5 * float(one.abs().max())
    halves = {name: Scaling(columns=one.columns) for name, one in scaling.items()}
    assert float((before[0] - _logits(plan, mixed_set, halves)[0]).abs().max()) > 0.1


def test_attention_may_share_a_value_head() -> None:
    """Four query heads read two value heads: columns of the first two take the scales of the first."""
    channels, values = Channels(4, 2), torch.tensor([1.0, 2, 3, 4])

    spread = channels.spread(values, 8)

    assert spread.tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
    assert channels.shared(spread).tolist() == values.tolist()
    assert channels.shared(torch.arange(8.0)).tolist() == [1, 2, 5, 6]
    assert channels.shared(torch.arange(8.0), largest=True).tolist() == [2, 3, 6, 7]


# --- scales ----------------------------------------------------------------------------------------------------------


@given(MAGNITUDES, st.sampled_from(EXPONENTS["awq"]))
def test_scales_are_finite_and_dead_channels_keep_theirs(drawn: object, exponent: float) -> None:
    """No magnitude makes a scale that is zero or not a number; a channel that was always zero has 1."""
    magnitude = torch.from_numpy(drawn)

    scale = awq_scale(magnitude, exponent)
    both = smoothquant_scale(magnitude, magnitude.flip(0), exponent)

    for found, dead in ((scale, magnitude == 0), (both, (magnitude == 0) | (magnitude.flip(0) == 0))):
        assert found.isfinite().all()
        assert (found > 0).all()
        assert (found[dead] == 1).all()
        if not dead.all():
            torch.testing.assert_close(found[~dead].max() * found[~dead].min(), torch.tensor(1.0))


def test_scales_are_those_of_the_papers() -> None:
    """A power of the mean magnitude; the largest input's power over the other power of the largest weight; each but for
    one factor for all channels, which no grid notices."""
    seen, weights = torch.tensor([1.0, 4, 9]), torch.tensor([2.0, 1, 3])

    mean, both = awq_scale(seen, 0.5), smoothquant_scale(seen, weights, 0.25)

    torch.testing.assert_close(mean / mean[0], seen**0.5)
    expected = seen**0.25 / weights**0.75
    torch.testing.assert_close(both / both[0], expected / expected[0])


# --- the search ------------------------------------------------------------------------------------------------------


def _readers(text: str, inputs: Tensor, seed: int = 0) -> list[Reader]:
    columns = inputs.shape[1]
    return [Reader(sample_layer(rows, columns, seed + rows)[0], scheme_of(text), stats_of(inputs)) for rows in (24, 40)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("text", "width"), [("int4-g32", 256), ("int4-g32-asym", 64), ("q4_k", 256)])
def test_the_search_finds_what_brute_force_finds(text: str, width: int, weighted: bool) -> None:
    """Every exponent tried on the outputs themselves: rounded by the rounder, of inputs that were really divided."""
    inputs = sample_layer(1, 256, seed=3)[1]
    readers, channels = _readers(text, inputs), Channels(width, 32)

    found = search(Fold("", "", ()), "awq", readers, channels, weighted, one_by_one)

    errors = {}
    for exponent in (0.0, *EXPONENTS["awq"]):
        scale = awq_scale(channels.shared(inputs.abs().sum(0)), exponent) if exponent else torch.ones(width)
        errors[exponent] = sum(_square_error(one, inputs, channels.spread(scale, 256), weighted) for one in readers)
    best = min(errors, key=errors.__getitem__)
    assert best > 0  # else this would prove little
    assert found is not None
    assert found.exponent == best
    assert found.channels.shape == (width,)
    torch.testing.assert_close(found.columns, channels.spread(found.channels, 256))


def _square_error(reader: Reader, inputs: Tensor, columns: Tensor, weighted: bool) -> float:
    """Of the outputs, with every input divided and every column multiplied."""
    rounder, divided = ROUNDERS["importance" if weighted else "rtn"], inputs / columns
    rounded = dequantize(rounder(reader.weight * columns, reader.scheme, stats_of(divided)))
    return float((divided @ rounded.T - inputs @ reader.weight.T).square().sum())


def test_no_scales_are_found_where_none_help() -> None:
    """Inputs that are all alike: any other exponent than 0 gives the same scales, and the simplest is taken."""
    inputs = torch.ones(64, 128)

    assert search(Fold("", "", ()), "awq", _readers("int4-g32", inputs), Channels(128, 32), False, one_by_one) is None


def test_inputs_in_8_bits_ask_for_scales_that_weights_alone_do_not() -> None:
    """One channel a hundred times the others: 8 bits for all of them leave the others nothing, until scales move."""
    inputs = torch.randn(512, 128, generator=torch.Generator().manual_seed(0))
    inputs[:, 5] *= 100
    weight = 0.05 * torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    reader = Reader(weight, scheme_of("int8-row"), stats_of(inputs))

    found = search(Fold("", "", ()), "smoothquant", [reader], Channels(128, 32), False, one_by_one)

    assert found is not None
    plain, smooth = _in_8_bits(inputs, weight), _in_8_bits(inputs / found.columns, weight * found.columns)
    expected = inputs @ weight.T
    assert (smooth - expected).norm() < 0.2 * (plain - expected).norm()


def _in_8_bits(inputs: Tensor, weight: Tensor) -> Tensor:
    """Both rounded, one step for all inputs."""
    step = inputs.abs().max() / 127
    return (inputs / step).round() * step @ dequantize(ROUNDERS["rtn"](weight, scheme_of("int8-row"), None)).T


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_threads_change_no_scale(method: Method) -> None:
    """Whoever tries an exponent, on however many threads."""
    inputs = sample_layer(1, 256, seed=3)[1]
    asked = Fold("", "", ()), method, _readers("int4-g32", inputs), Channels(256, 32), True
    alone = search(*asked, one_by_one)
    with torch_threads(4), all_threads() as each:
        shared = search(*asked, each)

    assert alone is not None
    assert shared is not None
    assert alone.exponent == shared.exponent
    assert torch.equal(alone.columns, shared.columns)


def test_some_rows_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large matrix is searched on rows from all over it, as many as are quickly tried."""
    monkeypatch.setattr(smoothing, "SEARCHED_WEIGHTS", 10 * 64)
    reader = Reader(torch.arange(100.0)[:, None].expand(100, 64), scheme_of("int8-row"), stats_of(torch.ones(2, 64)))

    assert reader.sample().weight[:, 0].tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]


# --- what is seen once they moved ------------------------------------------------------------------------------------


def test_statistics_are_those_of_scaled_inputs() -> None:
    """As if observed anew, for all readers of a place, whether or not they share what they saw."""
    inputs, columns = sample_layer(1, 48, seed=5)[1], torch.rand(48, generator=torch.Generator().manual_seed(1)) + 0.5
    expected, shared, other = stats_of(inputs / columns), stats_of(inputs), stats_of(inputs)
    stats = {"q": (shared,), "k": (shared,), "v": (stats_of(inputs),), "o": (other,)}
    untouched = other.gram.clone()

    found = scaled_stats(stats, [Scales(Fold("", "norm", ("q", "k", "v", "kept")), 0.5, columns, columns)])

    assert found["q"][0] is found["k"][0]
    for name in ("q", "v"):
        _close(found[name][0], expected)
    assert torch.equal(found["o"][0].gram, untouched)


def _close(one: LayerStats, other: LayerStats) -> None:
    torch.testing.assert_close(one.gram, other.gram, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.absolute, other.absolute)
    torch.testing.assert_close(one.largest, other.largest)
    assert (one.tokens, one.weight) == (other.tokens, other.weight)


def test_rows_are_scaled_from_any_row_on() -> None:
    """A weight that is read piece by piece is scaled as one that is read at once; a bias has rows too."""
    weight, scaling = torch.randn(7, 3).bfloat16(), Scaling(torch.arange(1.0, 8), torch.tensor([1.0, 2, 4]))
    expected = weight.float() * torch.tensor([1.0, 2, 4]) / torch.arange(1.0, 8)[:, None]

    pieces = [scaling.applied(weight[:3]), scaling.applied(weight[3:], 3)]

    assert torch.equal(torch.cat(pieces), expected)
    assert torch.equal(Scaling(rows=torch.arange(1.0, 8)).applied(weight[:, 0]), weight[:, 0] / torch.arange(1.0, 8))
    assert Scaling().applied(weight) is weight
