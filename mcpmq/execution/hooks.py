"""What the matrices of a block multiply, whatever module holds them, as samples pass."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import multi_head_attention_forward

Stats = TypeVar("Stats")
Seen = TypeVar("Seen", covariant=True)


class Sum(Protocol[Seen]):
    """What is kept of all inputs of a matrix."""

    def add(self, rows: Tensor) -> None:
        """Enter some inputs, float32 [tokens, columns]."""

    def stats(self) -> Seen:
        """What was seen; asked once, when all inputs are in."""


def watch(
    block: nn.Module,
    parameters: Mapping[str, str | None],
    replay: Callable[[], None],
    new_sum: Callable[[int], Sum[Stats]],
) -> dict[str, tuple[Stats, ...]]:
    """What the matrices of a block see while every sample passes through it; see `watching`."""
    with watching(block, parameters, new_sum) as seen:
        replay()
    return seen()


@contextmanager
def watching(
    block: nn.Module, parameters: Mapping[str, str | None], new_sum: Callable[[int], Sum[Stats]]
) -> Iterator[Callable[[], dict[str, tuple[Stats, ...]]]]:
    """Sum up what the matrices of a block see inside; the sums are there to be asked for afterwards.

    `parameters` are the matrices to watch, by their names inside the block; a value names the module inside the block
    whose output the parameter multiplies, where no linear holds it. `new_sum` makes an empty sum for inputs of so many
    columns. A matrix gets the statistics of one, the packed projection of an nn.MultiheadAttention of three, each for a
    third of its rows: they see queries, keys and values. A matrix that saw nothing is not in the result.
    """
    feeds = _Feeds(new_sum)
    with ExitStack() as hooks:
        for name, fed_by in parameters.items():
            hooks.enter_context(_watching(block, name, fed_by, feeds))
        hooks.enter_context(block.register_forward_hook(lambda *_: feeds.forget()))
        yield feeds.stats


@dataclass(slots=True)
class _Feeds(Generic[Stats]):
    """The sums of one block; linears that are fed the same tensor one after the other share one."""

    new_sum: Callable[[int], Sum[Stats]]
    sums: dict[str, Sum[Stats]] = field(default_factory=dict)  # by owner
    owners: dict[str, str] = field(default_factory=dict)
    latest: tuple[str, Tensor] | None = None

    def see(self, name: str, inputs: Tensor) -> None:
        """Enter what a matrix is fed now, [..., columns], unless the matrix before it was fed the same."""
        if self.latest and self.latest[1] is inputs and self.latest[0] != name:
            self.owners.setdefault(name, self.latest[0])
            return
        self.latest = name, inputs
        assert self.owners.setdefault(name, name) == name  # a model feeds its linears alike for every sample
        rows = inputs.detach().flatten(0, -2).float()
        if name not in self.sums:
            self.sums[name] = self.new_sum(rows.shape[1])
        self.sums[name].add(rows)

    def forget(self) -> None:
        """Let go of the inputs of a sample that has passed."""
        self.latest = None

    def stats(self) -> dict[str, tuple[Stats, ...]]:
        stats = {owner: one.stats() for owner, one in self.sums.items()}
        found: dict[str, tuple[Stats, ...]] = {}
        for name, owner in self.owners.items():
            parameter = name.partition("|")[0]
            found[parameter] = (*found.get(parameter, ()), stats[owner])
        return found


@contextmanager
def _watching(block: nn.Module, parameter: str, fed_by: str | None, feeds: _Feeds[Stats]) -> Iterator[None]:
    see = partial(feeds.see, parameter)
    holder, _, leaf = parameter.rpartition(".")
    module = block.get_submodule(holder)
    outer = block.get_submodule(holder.rpartition(".")[0])
    if fed_by is not None:
        handle = block.get_submodule(fed_by).register_forward_hook(lambda _, __, output: see(output))
    elif isinstance(module, nn.MultiheadAttention) and leaf == "in_proj_weight":
        handle = module.register_forward_pre_hook(partial(_see_packed, parameter, feeds), with_kwargs=True)
    elif isinstance(outer, nn.MultiheadAttention):
        handle = outer.register_forward_pre_hook(lambda at, args: see(before_output_projection(at, *args[:3])))
    else:
        assert isinstance(module, nn.Linear), f"{parameter} is in no linear, and the family does not say what feeds it"
        handle = module.register_forward_pre_hook(lambda _, args: see(args[0]))
    with handle:
        yield


def _see_packed(
    parameter: str, feeds: _Feeds[Stats], _: nn.Module, args: tuple[Tensor, ...], named: Mapping[str, Any]
) -> None:
    queries_keys_values = {**dict(zip(("query", "key", "value"), args, strict=False)), **named}
    for name in ("query", "key", "value"):
        feeds.see(f"{parameter}|{name}", queries_keys_values[name])


def before_output_projection(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What the output projection is about to see; it is no module call, so attention is done once more without it."""
    mixed: Tensor = multi_head_attention_forward(
        query,
        key,
        value,
        attention.embed_dim,
        attention.num_heads,
        attention.in_proj_weight,
        attention.in_proj_bias,
        None,
        None,
        False,
        0.0,
        torch.eye(attention.embed_dim, device=query.device),
        torch.zeros(attention.embed_dim, device=query.device),
        training=False,
        need_weights=False,
    )[0]
    return mixed
