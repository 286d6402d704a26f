"""What a matrix multiplies is seen whole, whatever module holds it, and its hooks are gone afterwards."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mcpmq.execution.hooks import watch, watching


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Kept:
    """A sum that keeps all rows as they are."""

    def __init__(self, columns: int) -> None:
        self.rows = torch.empty(0, columns)

    def add(self, rows: Tensor) -> None:
        self.rows = torch.cat([self.rows, rows])

    def stats(self) -> Tensor:
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
        return self.gate(x).tanh() * self.up(x)


class Attends(nn.Module):
    """Packed attention as a resampler has it, and a bare matrix behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.matrix = nn.Parameter(random(8, 8, seed=9))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen = [self.attention(query, key, value, need_weights=False)[0] for _ in range(2)]
        result: Tensor = self.norm(torch.stack(seen)) @ self.matrix
        return result

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What the output projection is fed, by the definition of attention."""
        weights, biases = self.attention.in_proj_weight.chunk(3), self.attention.in_proj_bias.chunk(3)
        q, k, v = (
            (x @ weight.T + bias).reshape(-1, 2, 4).transpose(0, 1)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        chances = (q @ k.transpose(1, 2) / 4**0.5).softmax(-1)
        return (chances @ v).transpose(0, 1).flatten(1)


MLP = dict.fromkeys(("gate.weight", "up.weight", "down.weight"))


def replay_of(block: nn.Module, *samples: tuple[Tensor, ...]) -> Callable[[], None]:
    def replay() -> None:
        for sample in samples:
            block(*sample)

    return replay


@torch.inference_mode()
def test_all_rows_of_all_samples_are_seen_in_order() -> None:
    """Batches are laid end to end."""
    block, samples = Mlp(), [random(2, length, 6, seed=length) for length in (5, 3)]

    seen = watch(block, MLP, replay_of(block, *[(one,) for one in samples]), Kept)

    rows = torch.cat([one.flatten(0, 1) for one in samples])
    hidden = torch.cat([block.hidden(one).flatten(0, 1) for one in samples])
    for name, expected in zip(MLP, (rows, rows, hidden), strict=True):
        assert torch.equal(seen[name][0], expected)


@torch.inference_mode()
def test_linears_that_are_fed_the_same_share_one_sum() -> None:
    """A matrix of columns squared is not held twice; what another sample was fed is never the same."""
    block, made = Mlp(), list[Kept]()

    def new_sum(columns: int) -> Kept:
        made.append(Kept(columns))
        return made[-1]

    watch(block, MLP, replay_of(block, (random(5, 6),), (random(5, 6),)), new_sum)

    assert [len(one.rows) for one in made] == [10, 10]  # gate and up, down


@torch.inference_mode()
def test_packed_attention_and_a_bare_matrix_are_seen_too() -> None:
    """Queries, keys and values each by their rows; the output projection, which is never called; a parameter."""
    block, (query, key, value) = Attends(), (random(3, 8), random(5, 8, seed=1), random(5, 8, seed=2))
    parameters = {"attention.in_proj_weight": None, "attention.out_proj.weight": None, "matrix": "norm"}

    seen = watch(block, parameters, replay_of(block, (query, key, value)), Kept)

    mixed = block.mixed(query, key, value)
    expected = [query, key, value, mixed, block.norm(block.attention.out_proj(mixed))]
    found = [rows for parameter in parameters for rows in seen[parameter]]
    for rows, x in zip(found, expected, strict=True):
        assert torch.allclose(rows, torch.cat([x, x]), atol=1e-5)  # the block attends twice


@torch.inference_mode()
def test_what_is_not_passed_is_not_there() -> None:
    """A matrix that saw nothing has no statistics that could be taken for some."""
    assert watch(Mlp(), {"up.weight": None}, lambda: None, Kept) == {}


@torch.inference_mode()
def test_a_block_may_be_watched_while_others_are_passed() -> None:
    """All sums can be open at once; a block that is itself the linear is seen too."""
    first, second = Mlp(), nn.Linear(6, 2)
    with watching(first, MLP, Kept) as in_first, watching(second, {"weight": None}, Kept) as in_second:
        for seed in range(2):
            second(first(random(4, 6, seed=seed)))

    hidden = torch.cat([first(random(4, 6, seed=seed)) for seed in range(2)])
    assert torch.equal(in_second()["weight"][0], hidden)
    assert in_first().keys() == MLP.keys()


@torch.inference_mode()
def test_hooks_are_gone_afterwards() -> None:
    """Also when the forward pass fails."""
    block = Mlp()
    with pytest.raises(RuntimeError, match="shapes"):
        watch(block, {"up.weight": None}, replay_of(block, (random(5, 3),)), Kept)

    assert not any(module._forward_pre_hooks or module._forward_hooks for module in block.modules())
