"""The stages of a block: matrices that share inputs, in the order of the forward pass."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor, nn

from mcpmq.execution.hooks import register_input_hook


@dataclass(frozen=True, slots=True)
class Stage:
    """Matrices with the same inputs, by their names in the block, in the order of the forward pass.

    is_repeated: whether the forward pass of a sample runs a matrix of the block several times.
    """

    parameters: tuple[str, ...]
    is_repeated: bool = False


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
    is_repeated = False
    with ExitStack() as hooks:
        for parameter, module in input_modules.items():
            observe = lambda name, inputs: calls.append((name, inputs))  # noqa: E731
            hooks.enter_context(register_input_hook(block, parameter, module, observe))
        for sample in samples:
            calls.clear()
            replay((sample,))
            is_repeated |= len(calls) > len({name for name, _ in calls})
            _add_stages(stages, calls)
            if sum(map(len, stages)) == len(input_modules):
                break
    return [Stage(tuple(parameters), is_repeated) for parameters in stages]


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
