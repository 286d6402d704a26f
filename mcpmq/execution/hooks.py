"""Forward hooks that capture the input of every weight matrix in a block."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import multi_head_attention_forward

from mcpmq.execution.layerwise import ReplayStopped

Stats = TypeVar("Stats")
Result = TypeVar("Result", covariant=True)


class Observer(Protocol[Result]):
    """Accumulates the inputs of one matrix."""

    def update(self, rows: Tensor) -> None:
        """Add inputs, float32 [tokens, columns]."""

    def result(self) -> Result:
        """Return the statistics; called once, after all inputs."""


def observe_inputs(
    block: nn.Module,
    parameters: Mapping[str, str | None],
    replay: Callable[[], None],
    new_observer: Callable[[int], Observer[Stats]],
    stop_at_last: bool = False,
    observers: dict[str, Any] | None = None,
) -> dict[str, tuple[Stats, ...]]:
    """Return statistics of the inputs of a block's matrices over one replay of the samples; see `capture_inputs`.

    With `stop_at_last`, for a block that uses the same matrices for every sample, samples after the first one do not go
    on behind the last matrix.
    """
    with capture_inputs(block, parameters, new_observer, stop_at_last, observers) as results:
        replay()
    return results()


@contextmanager
def capture_inputs(
    block: nn.Module,
    parameters: Mapping[str, str | None],
    new_observer: Callable[[int], Observer[Stats]],
    stop_at_last: bool = False,
    observers: dict[str, Any] | None = None,
) -> Iterator[Callable[[], dict[str, tuple[Stats, ...]]]]:
    """Observe the inputs of a block's matrices inside the context; yield a function that returns the statistics.

    `parameters` maps each matrix, by its name in the block, to the module in the block whose output it multiplies, or
    to None for the weight of an nn.Linear or nn.MultiheadAttention. `new_observer` creates an observer for inputs of
    this number of columns.

    The result has one statistic per matrix, but three for the packed projection of an nn.MultiheadAttention: those of
    queries, keys and values, each for a third of its rows. A matrix without inputs is missing. `observers` gets the
    observers, by the first matrix that uses them.
    """
    inputs = _SharedInputs(new_observer, stop_at_last, {} if observers is None else observers)
    with ExitStack() as hooks:
        for name, input_module in parameters.items():
            hooks.enter_context(register_input_hook(block, name, input_module, inputs.observe))
        hooks.enter_context(block.register_forward_hook(lambda *_: inputs.end_sample()))
        yield inputs.results


@dataclass(slots=True)
class _SharedInputs(Generic[Stats]):
    """The observers of one block; consecutive matrices with the same input tensor share one."""

    new_observer: Callable[[int], Observer[Stats]]
    stop_at_last: bool = False
    observers: dict[str, Observer[Stats]] = field(default_factory=dict)  # by the first matrix that uses them
    owners: dict[str, str] = field(default_factory=dict)  # from a matrix to the first matrix with the same input
    latest: tuple[str, Tensor] | None = None
    used: list[str] = field(default_factory=list)  # the matrices that the current sample has used
    all_used: list[str] | None = None  # those that the first sample has used

    def observe(self, name: str, inputs: Tensor) -> None:
        """Add the inputs of a matrix, [..., columns], unless they are those of the matrix before it.

        Raises:
            ReplayStopped: it is the last matrix, and nothing after it is needed.
        """
        self._add(name, inputs)
        self.used.append(name)
        if self.stop_at_last and self.used == self.all_used:
            self.end_sample()
            raise ReplayStopped

    def _add(self, name: str, inputs: Tensor) -> None:
        if self.latest and self.latest[1] is inputs and self.latest[0] != name:
            self.owners.setdefault(name, self.latest[0])
            return
        self.latest = name, inputs
        assert self.owners.setdefault(name, name) == name  # sharing is the same for every sample
        rows = inputs.detach().flatten(0, -2).float()
        if name not in self.observers:
            self.observers[name] = self.new_observer(rows.shape[1])
        self.observers[name].update(rows)

    def end_sample(self) -> None:
        """Release the inputs of the current sample."""
        self.latest = None
        self.all_used = self.all_used or self.used
        self.used = []

    def results(self) -> dict[str, tuple[Stats, ...]]:
        """Return the statistics of every matrix that had inputs."""
        by_owner = {owner: observer.result() for owner, observer in self.observers.items()}
        results: dict[str, tuple[Stats, ...]] = {}
        for name, owner in self.owners.items():
            parameter = name.partition("|")[0]
            results[parameter] = (*results.get(parameter, ()), by_owner[owner])
        return results


def register_input_hook(
    block: nn.Module, parameter: str, input_module: str | None, observe_input: Callable[[str, Tensor], None]
) -> AbstractContextManager[object]:
    """Call `observe_input(parameter, inputs)` with the inputs of a matrix inside the context; see `capture_inputs`.

    The name of a packed projection gets the suffix `|query`, `|key` or `|value`, in this order.
    """
    observe = partial(observe_input, parameter)
    path, _, leaf = parameter.rpartition(".")
    module = block.get_submodule(path)
    parent = block.get_submodule(path.rpartition(".")[0])
    if input_module is not None:
        return block.get_submodule(input_module).register_forward_hook(lambda _, __, output: observe(output))
    if isinstance(module, nn.MultiheadAttention) and leaf == "in_proj_weight":
        return module.register_forward_pre_hook(partial(_observe_packed, parameter, observe_input), with_kwargs=True)
    if isinstance(parent, nn.MultiheadAttention):
        return parent.register_forward_pre_hook(
            lambda attention, args: observe(attention_before_projection(attention, *args[:3]))
        )
    assert isinstance(module, nn.Linear), f"{parameter} is not in an nn.Linear, and its family has no input_from for it"
    return module.register_forward_pre_hook(lambda _, args: observe(args[0]))


def _observe_packed(
    parameter: str,
    observe: Callable[[str, Tensor], None],
    _: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Any],
) -> None:
    arguments = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
    for name in ("query", "key", "value"):
        observe(f"{parameter}|{name}", arguments[name])


def attention_before_projection(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the input of the output projection, [queries, channels].

    nn.MultiheadAttention does not call its projection as a module, so attention is computed with an identity instead.
    """
    output: Tensor = multi_head_attention_forward(
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
    return output
