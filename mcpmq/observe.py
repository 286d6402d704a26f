"""What every linear of a block sees while calibration samples pass through it: sums of x xT, by modality.

Sums run over the tokens in the order of the samples, in tiles: the same samples give the same bytes on any threads.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import multi_head_attention_forward

from mcpmq.pieces import Each, one_by_one

MODALITIES = ("vision", "text", "answer")
VISION, TEXT, ANSWER = range(3)

WAITING_TOKENS = 2048  # rows gathered before they enter a sum: a large matrix is then written a few times only
TILE_COLUMNS = 1024  # only tiles on and above the diagonal are multiplied


@dataclass(frozen=True, slots=True)
class LayerStats:
    """What one linear saw.

    gram: float32 [columns, columns], the weighted sum of x xT over its inputs x. absolute: float32 [columns], the
    weighted sum of |x|. lowest, highest: float32 [columns], the least and the greatest of those x that weigh anything,
    and of 0. tokens: how many of each modality there were, whatever their weight. weight: the sum of the weights.
    """

    gram: Tensor
    absolute: Tensor
    lowest: Tensor
    highest: Tensor
    tokens: Mapping[str, int]
    weight: float

    @property
    def largest(self) -> Tensor:
        """The largest |x|: float32 [columns]."""
        return self.highest.maximum(-self.lowest)

    def __add__(self, other: Self) -> "LayerStats":
        """What was seen here and there."""
        return LayerStats(
            self.gram + other.gram,
            self.absolute + other.absolute,
            self.lowest.minimum(other.lowest),
            self.highest.maximum(other.highest),
            {kind: self.tokens[kind] + other.tokens[kind] for kind in MODALITIES},
            self.weight + other.weight,
        )


@dataclass(frozen=True, slots=True)
class Labels:
    """Which modality every token is of, for the sample that is passing, and what each modality weighs.

    `of(count)` gives the uint8 [count] modalities (as in MODALITIES) of a linear's input of so many rows; `weights` is
    float32 [3].
    """

    of: Callable[[int], Tensor]
    weights: Tensor


@dataclass(slots=True)
class _Sum:
    """One Gram matrix and the magnitudes of its columns, as they grow."""

    gram: Tensor
    absolute: Tensor
    lowest: Tensor
    highest: Tensor
    each: Each
    tokens: Counter[str] = field(default_factory=Counter)
    weight: float = 0.0
    waiting: list[Tensor] = field(default_factory=list)

    def add(self, rows: Tensor, labels: Labels) -> None:
        """Count some inputs, float32 [tokens, columns], and let them wait."""
        kinds = labels.of(len(rows))
        self.tokens.update(dict(zip(MODALITIES, torch.bincount(kinds, minlength=3).tolist(), strict=True)))
        weights = labels.weights[kinds.long()]
        self.weight += float(weights.double().sum())
        rows, weights = rows[weights > 0], weights[weights > 0]
        self.absolute += weights @ rows.abs()
        self.lowest = torch.cat([self.lowest[None], rows]).amin(0)
        self.highest = torch.cat([self.highest[None], rows]).amax(0)
        self.waiting.append(rows * weights.sqrt()[:, None])
        if sum(map(len, self.waiting)) >= WAITING_TOKENS:
            self.flush()

    def flush(self) -> None:
        rows = torch.cat(self.waiting or [self.gram[:0]])
        self.waiting.clear()
        self.each(partial(self._enter, rows), range(0, len(self.gram), TILE_COLUMNS))

    def _enter(self, rows: Tensor, begin: int) -> None:
        end = begin + TILE_COLUMNS
        self.gram[begin:end, begin:].addmm_(rows[:, begin:end].T, rows[:, begin:])

    def stats(self) -> LayerStats:
        """What was summed up; the matrix is handed over, not copied."""
        self.flush()
        for begin in range(0, len(self.gram), TILE_COLUMNS):  # mirrored in place: a second matrix would not fit
            end = begin + TILE_COLUMNS
            corner = self.gram[begin:end, begin:end].triu()
            self.gram[begin:end, begin:end] = corner + corner.triu(1).T
            self.gram[end:, begin:end] = self.gram[begin:end, end:].T
        tokens = {kind: self.tokens[kind] for kind in MODALITIES}
        return LayerStats(self.gram, self.absolute, self.lowest, self.highest, tokens, self.weight)


@dataclass(slots=True)
class _Sums:
    """The sums of one block; linears that are fed the same tensor one after the other share one."""

    labels: Labels
    each: Each
    by_owner: dict[str, _Sum] = field(default_factory=dict)
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
        if name not in self.by_owner:
            columns = rows.shape[1]
            absolute, lowest, highest = torch.zeros(3, columns)
            self.by_owner[name] = _Sum(torch.zeros(columns, columns), absolute, lowest, highest, self.each)
        self.by_owner[name].add(rows, self.labels)


def observe(
    block: nn.Module,
    parameters: Mapping[str, str | None],
    replay: Callable[[], None],
    labels: Labels,
    each: Each = one_by_one,
) -> dict[str, tuple[LayerStats, ...]]:
    """Let every sample pass through a block and sum up what its matrices see.

    `parameters` are the matrices to watch, by their names inside the block; a value names the module inside the block
    whose output the parameter multiplies, where no linear holds it. A matrix gets one LayerStats, the packed
    projection of an nn.MultiheadAttention three, each for a third of its rows: they see queries, keys and values. A
    matrix that saw nothing is not in the result. `each` may share the tiles of the sums out to threads.
    """
    sums = _Sums(labels, each)
    with ExitStack() as hooks:
        for name, fed_by in parameters.items():
            hooks.enter_context(_watching(block, name, fed_by, sums))
        replay()
    stats = {owner: one.stats() for owner, one in sums.by_owner.items()}
    found: dict[str, tuple[LayerStats, ...]] = {}
    for name, owner in sums.owners.items():
        parameter = name.partition("|")[0]
        found[parameter] = (*found.get(parameter, ()), stats[owner])
    return found


@contextmanager
def _watching(block: nn.Module, parameter: str, fed_by: str | None, sums: _Sums) -> Iterator[None]:
    see = partial(sums.see, parameter)
    holder, _, leaf = parameter.rpartition(".")
    module = block.get_submodule(holder)
    outer = block.get_submodule(holder.rpartition(".")[0])
    if fed_by is not None:
        handle = block.get_submodule(fed_by).register_forward_hook(lambda _, __, output: see(output))
    elif isinstance(module, nn.MultiheadAttention) and leaf == "in_proj_weight":
        handle = module.register_forward_pre_hook(partial(_see_packed, parameter, sums), with_kwargs=True)
    elif isinstance(outer, nn.MultiheadAttention):
        handle = outer.register_forward_pre_hook(lambda at, args: see(before_output_projection(at, *args[:3])))
    else:
        assert isinstance(module, nn.Linear), f"{parameter} is in no linear, and the family does not say what feeds it"
        handle = module.register_forward_pre_hook(lambda _, args: see(args[0]))
    with handle:
        yield


def _see_packed(parameter: str, sums: _Sums, _: nn.Module, args: tuple[Tensor, ...], named: Mapping[str, Any]) -> None:
    queries_keys_values = {**dict(zip(("query", "key", "value"), args, strict=False)), **named}
    for name in ("query", "key", "value"):
        sums.see(f"{parameter}|{name}", queries_keys_values[name])


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
        torch.eye(attention.embed_dim),
        torch.zeros(attention.embed_dim),
        training=False,
        need_weights=False,
    )[0]
    return mixed
