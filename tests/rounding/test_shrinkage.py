"""The choice of the shrinkage by held-out inputs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mcpmq.rounding import rtn
from mcpmq.rounding.shrinkage import choose_shrinkage, default_shrinkage, nearest_is_better
from mcpmq.rounding.stats import InputStats
from tests.rounding.oracle import grid_scheme, input_stats, random_layer


def _stats(training: Tensor, held_out: Tensor, in_gram: bool) -> InputStats:
    stats = input_stats(torch.cat([training, held_out]) if in_gram else training)
    return replace(stats, held_out_inputs=held_out, gram_has_held_out=in_gram)


@pytest.mark.parametrize("in_gram", [True, False])
@pytest.mark.parametrize("text", ["int4-g32", "q4_k", "iq4_nl"])
def test_few_tokens_need_more_shrinkage_than_many(text: str, in_gram: bool) -> None:
    """The Hessian of fewer tokens than columns has chance correlations, that of many tokens does not."""
    weight, inputs = random_layer(24, 256, tokens=8000)
    few, many = (
        choose_shrinkage(weight, grid_scheme(text), _stats(inputs[:count], inputs[-1000:], in_gram)).shrinkage
        for count in ((1100 if in_gram else 60), 7000)
    )

    assert many in (0.01, 0.03)
    assert few > many or in_gram


def test_the_held_out_inputs_do_not_train() -> None:
    """The choice is the same if the Hessian includes the held-out inputs."""
    weight, inputs = random_layer(24, 96, tokens=400)

    choices = {
        choose_shrinkage(weight, grid_scheme("int4-g32"), _stats(inputs[:300], inputs[300:], x)) for x in (False, True)
    }

    assert len(choices) == 1


def test_without_held_out_inputs_the_tokens_decide() -> None:
    """2n / (2n + tokens): 0.5 for 128 tokens of 64 columns."""
    weight, inputs = random_layer(4, 64, tokens=128)
    stats = input_stats(inputs)

    assert choose_shrinkage(weight, grid_scheme("int4-g32"), stats).shrinkage == default_shrinkage(stats) == 0.5


def test_round_to_nearest_is_preferred_where_calibration_misleads() -> None:
    """Columns that are weak in calibration compensate the others, which is harmful where they are strong."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 1, generator=generator) + 0.05 * torch.randn(500, 64, generator=generator)
    magnitudes = torch.tensor([1.0, 0.05]).repeat(32)
    inputs, opposite = inputs * magnitudes, inputs * magnitudes.flip(0)
    weight = 0.1 * torch.randn(32, 64, generator=generator)

    misled = choose_shrinkage(weight, grid_scheme("int4-g32"), _stats(inputs, opposite[:200], in_gram=False))

    assert misled.prefers_nearest
    assert not choose_shrinkage(weight, grid_scheme("int4-g32"), _stats(inputs, inputs[:200], False)).prefers_nearest


@pytest.mark.parametrize("text", ["int4-g32", "q4_k"])
def test_the_final_matrix_is_compared_in_all_rows(text: str) -> None:
    """One of 600 rows, which is in no sample, differs: the verdict is that of the outputs on the held-out inputs."""
    weight, inputs = random_layer(600, 256, tokens=40)
    scheme = grid_scheme(text)
    changed = weight.clone()
    changed[517] += weight[517].abs().max() * torch.sign(inputs[0])
    nearest, worse = rtn.quantize(weight, scheme), rtn.quantize(changed, scheme)

    assert nearest_is_better(weight, worse, nearest, inputs)
    assert not nearest_is_better(weight, nearest, worse, inputs)
    assert not nearest_is_better(weight, nearest, nearest, inputs)
