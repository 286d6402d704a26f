"""Smoothing scales change no output, and the search finds the best of them, checked by brute force."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.execution.chunked_matmul import deterministic_threads, serial_map
from mcpmq.families.family import SmoothingMapping
from mcpmq.grids import dequantize
from mcpmq.plan import Plan, make_plan
from mcpmq.recipe import Recipe
from mcpmq.rounding import ROUNDING_FUNCTIONS, rtn, smoothing
from mcpmq.rounding.smoothing import (
    EXPONENTS,
    BalanceLayer,
    Channels,
    SmoothingMethod,
    SmoothingScales,
    WeightScaling,
    awq_scale,
    scale_stats,
    search_scales,
    smoothquant_scale,
    weight_scalings,
)
from mcpmq.rounding.stats import InputStats
from mcpmq.system.torch_threads import torch_threads
from tests.rounding.oracle import grid_scheme, input_stats, random_layer
from tests.smoothing_tools import random_scales, scaled_logits

MAGNITUDES = arrays("float32", st.integers(1, 40), elements=st.sampled_from([0.0, 1e-30, 1e-6, 0.5, 1.0, 30.0, 1e9]))
NO_MAPPING = SmoothingMapping("", "", ())


# --- outputs stay the same -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(tiny_checkpoint: Path) -> Plan:
    """A plan for the tiny checkpoint with every smoothing mapping."""
    recipe = {"name": "smooth", "smooth": "awq", "weights": {"*": "int8-g32"}}
    return make_plan(Checkpoint.open(tiny_checkpoint), Recipe.model_validate(recipe))


def _logits(plan: Plan, samples: SampleSet, scaling: Mapping[str, WeightScaling]) -> list[Tensor]:
    processor = plan.checkpoint.family.open_processor(plan.checkpoint.path)
    inputs = [processor.encode(one.id, one.image, one.prompt, one.answer) for one in list(samples)[::4]]
    return scaled_logits(plan, inputs, scaling)


def test_scaled_weights_give_the_same_logits(plan: Plan, mixed_set: SampleSet) -> None:
    """Random scales on all mappings of all layers change no logits; in the balance layers alone they do.

    The mappings include norms, values with shared heads, gated rows, and the packed and transposed matrices of the
    resampler.
    """
    scales = random_scales(plan)
    assert len(scales) == 2 * 4 + 2 * 3 + 2
    scaling = weight_scalings(scales)
    before, after = _logits(plan, mixed_set, {}), _logits(plan, mixed_set, scaling)

    for one, other in zip(before, after, strict=True):
        assert float((one - other).abs().max()) < 1e-5 * float(one.abs().max())
    columns_only = {name: WeightScaling(column_scale=one.column_scale) for name, one in scaling.items()}
    assert float((before[0] - _logits(plan, mixed_set, columns_only)[0]).abs().max()) > 0.1


def test_query_heads_share_the_channels_of_a_value_head() -> None:
    """With four query heads and two value heads, the columns of the first two heads share the first value head."""
    channels, values = Channels(4, 2), torch.tensor([1.0, 2, 3, 4])

    expanded = channels.expand(values, 8)

    assert expanded.tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
    assert channels.reduce(expanded).tolist() == values.tolist()
    assert channels.reduce(torch.arange(8.0)).tolist() == [1, 2, 5, 6]
    assert channels.reduce(torch.arange(8.0), use_max=True).tolist() == [2, 3, 6, 7]


# --- scales ----------------------------------------------------------------------------------------------------------


@given(MAGNITUDES, st.sampled_from(EXPONENTS["awq"]))
def test_scales_are_finite_and_those_of_dead_channels_are_one(drawn: object, exponent: float) -> None:
    """No magnitude gives a scale of zero, infinity or NaN; the product of minimum and maximum is 1."""
    magnitude = torch.from_numpy(drawn)

    awq = awq_scale(magnitude, exponent)
    smoothquant = smoothquant_scale(magnitude, magnitude.flip(0), exponent)

    for scale, dead in ((awq, magnitude == 0), (smoothquant, (magnitude == 0) | (magnitude.flip(0) == 0))):
        assert scale.isfinite().all()
        assert (scale > 0).all()
        assert (scale[dead] == 1).all()
        if not dead.all():
            torch.testing.assert_close(scale[~dead].max() * scale[~dead].min(), torch.tensor(1.0))


@pytest.mark.parametrize("exponent", [0.2, 0.75])
def test_scales_are_those_of_the_papers(exponent: float) -> None:
    """AWQ: magnitude^e. SmoothQuant: input^e / weight^(1 - e). Both up to one factor for all channels."""
    inputs, weights = torch.tensor([1.0, 4, 9]), torch.tensor([2.0, 1, 3])

    awq, smoothquant = awq_scale(inputs, exponent), smoothquant_scale(inputs, weights, exponent)

    torch.testing.assert_close(awq / awq[0], inputs**exponent)
    expected = inputs**exponent / weights ** (1 - exponent)
    torch.testing.assert_close(smoothquant / smoothquant[0], expected / expected[0])


# --- the search ------------------------------------------------------------------------------------------------------


def _balance_layers(text: str, inputs: Tensor, seed: int = 0) -> list[BalanceLayer]:
    scheme, columns = grid_scheme(text), inputs.shape[1]
    return [BalanceLayer(random_layer(rows, columns, seed + rows)[0], scheme, input_stats(inputs)) for rows in (24, 40)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("text", "count"), [("int4-g32", 256), ("int4-g32-asym", 64), ("q4_k", 256)])
def test_the_search_finds_the_exponent_of_brute_force(text: str, count: int, weighted: bool) -> None:
    """Brute force tries every exponent on the outputs, with scaled weights that are rounded and divided inputs."""
    inputs = random_layer(1, 256, seed=3)[1]
    layers, channels = _balance_layers(text, inputs), Channels(count, 32)

    found = search_scales(NO_MAPPING, "awq", layers, channels, weighted, serial_map)

    errors = {}
    for exponent in (0.0, *EXPONENTS["awq"]):
        scale = channels.reduce(inputs.abs().mean(0)) ** exponent
        columns = channels.expand(scale / (scale.max() * scale.min()).sqrt(), 256)
        errors[exponent] = sum(_square_error(one, inputs, columns, weighted) for one in layers)
    best = min(errors, key=errors.__getitem__)
    assert best > 0  # the inputs are such that scales help
    assert found is not None
    assert found.exponent == best
    assert found.channel_scale.shape == (count,)
    torch.testing.assert_close(found.column_scale, channels.expand(found.channel_scale, 256))


def _square_error(layer: BalanceLayer, inputs: Tensor, column_scale: Tensor, weighted: bool) -> float:
    """Return the error of the outputs with divided inputs and multiplied columns."""
    quantize, divided = ROUNDING_FUNCTIONS["rtn-imatrix" if weighted else "rtn"], inputs / column_scale
    rounded = dequantize(quantize(layer.weight * column_scale, layer.scheme, input_stats(divided)))
    return float((divided @ rounded.T - inputs @ layer.weight.T).square().sum())


def test_no_scales_are_found_for_equal_inputs() -> None:
    """With equal inputs every exponent gives the same scales, and the first candidate, no scales, is selected."""
    inputs = torch.ones(64, 128)
    layers = _balance_layers("int4-g32", inputs)

    assert search_scales(NO_MAPPING, "awq", layers, Channels(128, 32), False, serial_map) is None


def _outlier_layer() -> tuple[Tensor, Tensor, BalanceLayer]:
    """Return inputs with one channel a hundred times the others, a weight, and its int8 layer."""
    inputs = torch.randn(512, 128, generator=torch.Generator().manual_seed(0))
    inputs[:, 5] *= 100
    weight = 0.05 * torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    return inputs, weight, BalanceLayer(weight, grid_scheme("int8-row"), input_stats(inputs))


def test_smoothquant_scales_help_8_bit_inputs_with_an_outlier_channel() -> None:
    """Per-tensor 8-bit inputs lose the small channels; the scales cut the error of the outputs to a fifth."""
    inputs, weight, layer = _outlier_layer()

    found = search_scales(NO_MAPPING, "smoothquant", [layer], Channels(128, 32), False, serial_map)

    assert found is not None
    plain = _fake_quantized_outputs(inputs, weight)
    smoothed = _fake_quantized_outputs(inputs / found.column_scale, weight * found.column_scale)
    expected = inputs @ weight.T
    assert (smoothed - expected).norm() < 0.2 * (plain - expected).norm()


@pytest.mark.parametrize("spread", [0.0, 0.6])
def test_the_predicted_error_of_8_bit_inputs_is_that_of_rounding_them(spread: float) -> None:
    """The error that the search minimizes is within 10 % of the measured one, with and without scales."""
    inputs, weight, layer = _outlier_layer()
    column_scale = inputs.abs().amax(0) ** spread

    predicted = smoothing._output_error(layer, column_scale, "smoothquant", weighted=False)

    outputs = _fake_quantized_outputs(inputs / column_scale, weight * column_scale)
    assert predicted == pytest.approx(float((outputs - inputs @ weight.T).square().sum()), rel=0.1)


def _fake_quantized_outputs(inputs: Tensor, weight: Tensor) -> Tensor:
    """Round inputs per tensor and weights per row to 8 bits, and multiply them."""
    step = inputs.abs().max() / 127
    return (inputs / step).round() * step @ dequantize(rtn.quantize(weight, grid_scheme("int8-row"))).T


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_threads_change_no_scale(method: SmoothingMethod) -> None:
    """The exponents may be distributed over any number of threads."""
    inputs = random_layer(1, 256, seed=3)[1]
    arguments = NO_MAPPING, method, _balance_layers("int4-g32", inputs), Channels(256, 32), True
    serial = search_scales(*arguments, serial_map)
    with torch_threads(4), deterministic_threads() as parallel_map:
        parallel = search_scales(*arguments, parallel_map)

    assert serial is not None
    assert parallel is not None
    assert serial.exponent == parallel.exponent
    assert torch.equal(serial.column_scale, parallel.column_scale)


def test_large_matrices_are_searched_on_evenly_spaced_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of sampled weights is bounded."""
    monkeypatch.setattr(smoothing, "SEARCH_WEIGHTS", 10 * 64)
    weight = torch.arange(100.0)[:, None].expand(100, 64)
    layer = BalanceLayer(weight, grid_scheme("int8-row"), input_stats(torch.ones(2, 64)))

    assert layer.sample_rows().weight[:, 0].tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_at_most_512_rows_are_searched() -> None:
    """About every second of 1030 rows is sampled, and all of fewer rows."""
    tall = BalanceLayer(
        torch.arange(1030.0)[:, None].expand(1030, 64), grid_scheme("int8-row"), input_stats(torch.ones(2, 64))
    )

    assert tall.sample_rows().weight[:, 0].tolist() == [1030 * index // 512 for index in range(512)]
    assert len(replace(tall, weight=tall.weight[:300]).sample_rows().weight) == 300


# --- applying scales -------------------------------------------------------------------------------------------------


def test_scaled_statistics_equal_those_of_scaled_inputs() -> None:
    """Statistics that several layers share are scaled once; those of other layers do not change."""
    inputs, columns = random_layer(1, 48, seed=5)[1], torch.rand(48, generator=torch.Generator().manual_seed(1)) + 0.5
    expected, shared, other = input_stats(inputs / columns), input_stats(inputs), input_stats(inputs)
    stats = {"q": (shared,), "k": (shared,), "v": (input_stats(inputs),), "o": (other,)}
    unchanged = other.gram.clone()
    mapping = SmoothingMapping("", "norm", ("q", "k", "v", "kept"))

    scaled = scale_stats(stats, [SmoothingScales(mapping, 0.5, columns, columns)])

    assert scaled["q"][0] is scaled["k"][0]
    for name in ("q", "v"):
        _assert_close(scaled[name][0], expected)
    assert torch.equal(scaled["o"][0].gram, unchanged)


def _assert_close(one: InputStats, other: InputStats) -> None:
    torch.testing.assert_close(one.gram, other.gram, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.abs_sum, other.abs_sum)
    torch.testing.assert_close(one.abs_max, other.abs_max)
    assert (one.token_counts, one.total_weight) == (other.token_counts, other.total_weight)


def test_a_weight_is_scaled_in_any_chunks_of_rows() -> None:
    """Chunks from any row on are scaled as the whole weight; a bias [rows] takes the row scale."""
    weight, scaling = torch.randn(7, 3).bfloat16(), WeightScaling(torch.arange(1.0, 8), torch.tensor([1.0, 2, 4]))
    expected = weight.float() * torch.tensor([1.0, 2, 4]) / torch.arange(1.0, 8)[:, None]

    chunks = [scaling.apply(weight[:3]), scaling.apply(weight[3:], 3)]

    assert torch.equal(torch.cat(chunks), expected)
    bias = weight[:, 0]
    assert torch.equal(WeightScaling(row_scale=torch.arange(1.0, 8)).apply(bias), bias / torch.arange(1.0, 8))
    assert WeightScaling().apply(weight) is weight


def test_an_offset_norm_is_divided_with_its_offset() -> None:
    """A norm that multiplies by 1 + weight has 1 + scaled weight = (1 + weight) / scale."""
    weight, scale = torch.tensor([0.5, -0.25, 3.0]), torch.tensor([2.0, 0.5, 4.0])

    scaled = WeightScaling(row_scale=scale, norm_offset=1.0).apply(weight)

    torch.testing.assert_close(1 + scaled, (1 + weight) / scale)
