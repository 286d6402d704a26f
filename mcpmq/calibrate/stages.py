"""The stages of a block: matrices that share inputs, in the order of the forward pass, and their observation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mcpmq.execution.hooks import register_input_hook
from mcpmq.families.residual import LAYER_OUTPUT


@dataclass(frozen=True, slots=True)
class Stream:
    """The residual stream after the outputs of a stage were added.

    reader: the module of the block that reads it, or LAYER_OUTPUT. scale: factor of the outputs before the addition.
    """

    reader: str
    scale: float


@dataclass(frozen=True, slots=True)
class Stage:
    """Matrices with the same inputs, by their names in the block, in the order of the forward pass.

    stream: the residual stream that their outputs are added to, if there is one.
    """

    parameters: tuple[str, ...]
    stream: Stream | None = None


def find_stages(
    block: nn.Module,
    input_modules: Mapping[str, str | None],
    replay: Callable[[tuple[int]], None],
    samples: Sequence[int],
) -> list[Stage]:
    """Return the stages of a block, from the first sample that runs all matrices, or else from all samples.

    `input_modules` is as in `capture_inputs`. A matrix that no sample runs is in no stage.
    """
    calls: list[tuple[str, Tensor]] = []
    stages: list[list[str]] = []
    with ExitStack() as hooks:
        for parameter, module in input_modules.items():
            observe = lambda name, inputs: calls.append((name, inputs))  # noqa: E731
            hooks.enter_context(register_input_hook(block, parameter, module, observe))
        for sample in samples:
            calls.clear()
            replay((sample,))
            _add_stages(stages, calls)
            if sum(map(len, stages)) == len(input_modules):
                break
    return [Stage(tuple(parameters)) for parameters in stages]


def _add_stages(stages: list[list[str]], calls: Sequence[tuple[str, Tensor]]) -> None:
    """Add the matrices of one forward pass that are in no stage; a stage has consecutive ones with the same tensor.

    A packed projection, which has several inputs, is a stage of its own.
    """
    previous: tuple[str, Tensor] | None = None
    for name, inputs in calls:
        parameter = name.partition("|")[0]
        if not any(parameter in stage for stage in stages):
            if parameter == name and previous and previous[1] is inputs and previous[0] in stages[-1]:
                stages[-1].append(parameter)
            else:
                stages.append([parameter])
        previous = parameter, inputs


@dataclass(slots=True)
class StageObserver:
    """Observes a stage in the forward pass of one sample after another.

    A sample may run the matrices several times. inputs: float32 [tokens, columns], of every run, by the first matrix
    that uses them. states: the residual stream after every run, float32 [tokens, columns]. owners: from a matrix, with
    a suffix in a packed projection, to the first one with the same input, of all samples. calls: of the hooks. copies:
    whether tensors are copied, because the pass goes on and may change them in place.
    """

    stage: Stage
    after_call: Callable[[], None] = lambda: None
    copies: bool = False
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    states: list[Tensor] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)
    latest: tuple[str, Tensor] | None = None
    calls: int = 0

    def begin(self) -> None:
        """Begin the pass of a sample."""
        self.inputs, self.states, self.latest, self.calls = {}, [], None, 0

    @contextmanager
    def hooks(self, block: nn.Module, input_modules: Mapping[str, str | None]) -> Iterator[None]:
        """Observe the block inside the context; `input_modules` is as in `capture_inputs`."""
        with ExitStack() as hooks:
            for parameter in self.stage.parameters:
                hooks.enter_context(register_input_hook(block, parameter, input_modules[parameter], self._add_inputs))
            if self.stage.stream is not None:
                hooks.enter_context(self._register_stream_hook(block, self.stage.stream.reader))
            yield

    def _register_stream_hook(self, block: nn.Module, reader: str) -> AbstractContextManager[object]:
        if reader == LAYER_OUTPUT:
            return block.register_forward_hook(lambda _, __, output: self._add_states(output))
        return block.get_submodule(reader).register_forward_pre_hook(lambda _, args: self._add_states(args[0]))

    def _add_inputs(self, name: str, inputs: Tensor) -> None:
        if self.latest and self.latest[1] is inputs and self.latest[0] != name:
            self.owners.setdefault(name, self.latest[0])
        else:
            self.latest = name, inputs
            self.owners.setdefault(name, name)
            self.inputs.setdefault(name, []).append(self._rows(inputs))
        self._end_call()

    def _add_states(self, output: Any) -> None:
        self.states.append(self._rows(output[0] if isinstance(output, tuple) else output))
        self._end_call()

    def _end_call(self) -> None:
        self.calls += 1
        self.after_call()

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor.detach().flatten(0, -2).to(torch.float32, copy=self.copies)
