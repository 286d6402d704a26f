"""Hooks capture all inputs of every kind of matrix, and are removed afterwards."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from mcpmq.execution.hooks import capture_inputs, observe_inputs
from mcpmq.execution.layerwise import ReplayStopped


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class RowObserver:
    """An observer that keeps all rows."""

    def __init__(self, columns: int) -> None:
        self.rows = torch.empty(0, columns)

    def update(self, rows: Tensor) -> None:
        self.rows = torch.cat([self.rows, rows])

    def result(self) -> Tensor:
        return self.rows


class Mlp(nn.Module):
    """Two linears that share an input, and one after them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(self.hidden(x))
        return result

    def hidden(self, x: Tensor) -> Tensor:
        result: Tensor = self.gate(x).tanh() * self.up(x)
        return result


class Attends(nn.Module):
    """Packed attention and a bare matrix after a norm, as in a resampler."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.matrix = nn.Parameter(random(8, 8, seed=9))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = [self.attention(query, key, value, need_weights=False)[0] for _ in range(2)]
        result: Tensor = self.norm(torch.stack(outputs)) @ self.matrix
        return result

    def before_projection(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The input of the output projection, by the definition of attention."""
        weights, biases = self.attention.in_proj_weight.chunk(3), self.attention.in_proj_bias.chunk(3)
        q, k, v = (
            (x @ weight.T + bias).reshape(-1, 2, 4).transpose(0, 1)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        probabilities = (q @ k.transpose(1, 2) / 4**0.5).softmax(-1)
        return (probabilities @ v).transpose(0, 1).flatten(1)


MLP = dict.fromkeys(("gate.weight", "up.weight", "down.weight"))


def replay_of(block: nn.Module, *samples: tuple[Tensor, ...]) -> Callable[[], None]:
    def replay() -> None:
        for sample in samples:
            block(*sample)

    return replay


@torch.inference_mode()
def test_all_rows_of_all_samples_are_observed_in_order() -> None:
    """Observers receive the rows of batches one after the other."""
    block, samples = Mlp(), [random(2, length, 6, seed=length) for length in (5, 3)]

    results = observe_inputs(block, MLP, replay_of(block, *[(one,) for one in samples]), RowObserver)

    rows = torch.cat([one.flatten(0, 1) for one in samples])
    hidden = torch.cat([block.hidden(one).flatten(0, 1) for one in samples])
    for name, expected in zip(MLP, (rows, rows, hidden), strict=True):
        assert torch.equal(results[name][0], expected)


@torch.inference_mode()
def test_linears_with_the_same_input_share_an_observer() -> None:
    """Gate and up share one observer; the inputs of two samples are distinct even if they are equal."""
    block, created = Mlp(), list[RowObserver]()

    def new_observer(columns: int) -> RowObserver:
        created.append(RowObserver(columns))
        return created[-1]

    observe_inputs(block, MLP, replay_of(block, (random(5, 6),), (random(5, 6),)), new_observer)

    assert [len(one.rows) for one in created] == [10, 10]  # gate and up, down


@torch.inference_mode()
def test_later_samples_can_stop_at_the_last_matrix() -> None:
    """The first sample shows which matrix is the last one; it multiplies nothing for the others. All are observed."""
    block, samples, multiplied = Mlp(), [random(2, 6, seed=seed) for seed in range(3)], list[int]()
    block.down.register_forward_hook(lambda *_: multiplied.append(1))
    samples.append(random(5, 6, seed=9))

    def replay() -> None:
        for sample in samples:
            with suppress(ReplayStopped):
                block(sample)

    stopped = observe_inputs(block, MLP, replay, RowObserver, stop_at_last=True)

    assert len(multiplied) == 1
    whole = observe_inputs(block, MLP, replay, RowObserver)
    for name in MLP:
        assert torch.equal(stopped[name][0], whole[name][0])


@torch.inference_mode()
def test_packed_attention_and_a_bare_matrix_are_observed() -> None:
    """The packed projection has queries, keys and values; the output projection and a bare parameter one input."""
    block, (query, key, value) = Attends(), (random(3, 8), random(5, 8, seed=1), random(5, 8, seed=2))
    parameters = {"attention.in_proj_weight": None, "attention.out_proj.weight": None, "matrix": "norm"}

    results = observe_inputs(block, parameters, replay_of(block, (query, key, value)), RowObserver)

    attended = block.before_projection(query, key, value)
    expected = [query, key, value, attended, block.norm(block.attention.out_proj(attended))]
    found = [rows for parameter in parameters for rows in results[parameter]]
    for rows, x in zip(found, expected, strict=True):
        assert torch.allclose(rows, torch.cat([x, x]), atol=1e-5)  # the block attends twice


@torch.inference_mode()
def test_a_matrix_without_inputs_has_no_result() -> None:
    """Statistics of no inputs cannot be confused with those of inputs that are zero."""
    assert observe_inputs(Mlp(), {"up.weight": None}, lambda: None, RowObserver) == {}


@torch.inference_mode()
def test_several_blocks_are_captured_at_once() -> None:
    """Hooks on several blocks are active together, also on a block that is an nn.Linear."""
    first, second = Mlp(), nn.Linear(6, 2)
    with (
        capture_inputs(first, MLP, RowObserver) as in_first,
        capture_inputs(second, {"weight": None}, RowObserver) as in_second,
    ):
        for seed in range(2):
            second(first(random(4, 6, seed=seed)))

    hidden = torch.cat([first(random(4, 6, seed=seed)) for seed in range(2)])
    assert torch.equal(in_second()["weight"][0], hidden)
    assert in_first().keys() == MLP.keys()


@torch.inference_mode()
def test_hooks_are_removed_after_an_error() -> None:
    """A failed forward pass leaves no hook on any module."""
    block = Mlp()
    with pytest.raises(RuntimeError, match="shapes"):
        observe_inputs(block, {"up.weight": None}, replay_of(block, (random(5, 3),)), RowObserver)

    assert not any(module._forward_pre_hooks or module._forward_hooks for module in block.modules())
