"""Statistics of one stage's inputs in the quantized model, and of their difference from the original model.

Every sample passes through the block with its original weights, on its hidden states in the original model, and then
with the weights that are rounded so far, on its hidden states in the quantized model. Only the inputs of one sample are
in memory at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mcpmq.calibrate.observers import HessianObserver
from mcpmq.calibrate.stages import Stage
from mcpmq.execution.hooks import register_input_hook
from mcpmq.execution.layerwise import Replay, ReplayStopped
from mcpmq.families.residual import LAYER_OUTPUT
from mcpmq.rounding.stats import Drift, InputStats

NewObserver = Callable[[int, Drift], HessianObserver]
"""Creates an observer of inputs with this number of columns; it adds to the drift."""

_Parameter = tuple[nn.Module, str, nn.Parameter]  # the module in a block, the name in it, the value


@dataclass(frozen=True, slots=True)
class Stream:
    """The residual stream after the outputs of a stage were added.

    reader: the module of the block that reads it, or LAYER_OUTPUT. scale: factor of the outputs before the addition.
    """

    reader: str
    scale: float


@dataclass(frozen=True, slots=True)
class TwoModels:
    """A block, its weights in the original and in the quantized model, and the samples that wait before it in both.

    Weights are by parameter; those of matrices that are not rounded yet are the original ones, scaled.
    """

    block: nn.Module
    original: Mapping[str, Tensor]
    quantized: dict[str, Tensor]
    replay: Replay
    samples: Sequence[tuple[int, int]]  # index in the original, in the quantized model

    def collect_stats(
        self,
        stage: Stage,
        input_modules: Mapping[str, str | None],
        stream: Stream | None,
        column_scales: Mapping[str, Tensor | None],
        new_observer: NewObserver,
        observers: dict[str, Any] | None = None,
        *,
        advance_original: bool = False,
    ) -> dict[str, tuple[InputStats, ...]]:
        """Return the statistics of a stage with drift, by parameter; the block then has weights of the quantized model.

        `column_scales` are those of smoothed matrices: inputs of the quantized model are divided by them. `observers`
        gets the observers, by the first matrix that uses them. With `advance_original`, for a stage whose stream is the
        output of the layer, the samples of the original model have passed the block afterwards.
        """
        found = {} if observers is None else observers
        pair = _InputPair(stage, stream, column_scales, new_observer, found, advance_original)
        weights, new_weights = (_parameters(self.block, one) for one in (self.original, self.quantized))
        run_original = self.replay.advance_with_hooks if advance_original else self.replay
        with pair.hooks(self.block, input_modules):
            for original, quantized in self.samples:
                pair.begin_original()
                _set_parameters(weights)
                run_original((original,))
                pair.begin_quantized()
                _set_parameters(new_weights)
                self.replay((quantized,))
        return pair.results()


@dataclass(slots=True)
class _Rows:
    """Tensors of one sample: the inputs of a stage, [tokens, columns] by matrix, and the residual stream."""

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    stream: Tensor | None = None


@dataclass(slots=True)
class _InputPair:
    """Observes a stage in the original and then in the quantized model, sample by sample."""

    stage: Stage
    stream: Stream | None
    column_scales: Mapping[str, Tensor | None]
    new_observer: NewObserver
    observers: dict[str, HessianObserver]  # by the first matrix
    advances_original: bool  # whether the first pass of a sample goes on
    rows: list[_Rows] = field(default_factory=list)  # of the present sample: original, quantized
    latest: tuple[str, Tensor] | None = None
    owners: dict[str, str] = field(default_factory=dict)  # from a matrix to the first matrix with the same input

    def begin_original(self) -> None:
        """Begin the pass of a sample through the original block."""
        self.rows, self.latest = [_Rows()], None

    def begin_quantized(self) -> None:
        """Begin the pass of the same sample through the quantized block."""
        self.rows, self.latest = [*self.rows, _Rows()], None

    @contextmanager
    def hooks(self, block: nn.Module, input_modules: Mapping[str, str | None]) -> Iterator[None]:
        """Observe the block inside the context; each pass ends when everything was observed."""
        with ExitStack() as hooks:
            for parameter in self.stage.parameters:
                hooks.enter_context(register_input_hook(block, parameter, input_modules[parameter], self._observe))
            if self.stream is None:
                if self.stage.is_repeated:
                    hooks.enter_context(block.register_forward_hook(lambda *_: self._end_pass()))
            elif self.stream.reader == LAYER_OUTPUT:
                hooks.enter_context(block.register_forward_hook(lambda _, __, output: self._observe_stream(output)))
            else:
                reader = block.get_submodule(self.stream.reader)
                hooks.enter_context(reader.register_forward_pre_hook(lambda _, args: self._observe_stream(args[0])))
            yield

    def results(self) -> dict[str, tuple[InputStats, ...]]:
        """Return the statistics by parameter."""
        by_owner = {owner: observer.result() for owner, observer in self.observers.items()}
        results: dict[str, tuple[InputStats, ...]] = {}
        for name, owner in self.owners.items():
            parameter = name.partition("|")[0]
            results[parameter] = (*results.get(parameter, ()), by_owner[owner])
        return results

    def _observe(self, name: str, inputs: Tensor) -> None:
        if self.latest and self.latest[1] is inputs and self.latest[0] != name:
            self.owners.setdefault(name, self.latest[0])
        else:
            self.latest = name, inputs
            self.owners.setdefault(name, name)
            self.rows[-1].inputs.setdefault(name, []).append(_rows(inputs))
        last = self.stage.parameters[-1]
        if name in (last, f"{last}|value") and self.stream is None and not self.stage.is_repeated:
            self._end_pass()

    def _observe_stream(self, output: Any) -> None:
        self.rows[-1].stream = _rows(output[0] if isinstance(output, tuple) else output)
        if len(self.rows) == 2 or not self.advances_original:
            self._end_pass()

    def _end_pass(self) -> NoReturn:
        """End the forward pass of the sample; after the second one, add the pair to the statistics."""
        if len(self.rows) == 2:
            original, quantized = self.rows
            for name, parts in quantized.inputs.items():
                self._add(name, torch.cat(parts), original, quantized)
        raise ReplayStopped

    def _add(self, name: str, inputs: Tensor, original: _Rows, quantized: _Rows) -> None:
        if self.stream:
            assert original.stream is not None
            assert quantized.stream is not None
            drift = (original.stream - quantized.stream) / self.stream.scale
        else:
            before = torch.cat(original.inputs[name])
            scale = self.column_scales.get(name.partition("|")[0])
            drift = (before if scale is None else before / scale) - inputs
        if name not in self.observers:
            products = drift.new_empty(inputs.shape[1], drift.shape[1])
            self.observers[name] = self.new_observer(inputs.shape[1], Drift(self.stream is not None, products))
        self.observers[name].update(inputs, drift)


def _parameters(block: nn.Module, weights: Mapping[str, Tensor]) -> list[_Parameter]:
    """Return parameters of a block with their modules: `load_state_dict` for every short sample takes too long."""
    found = []
    for name, value in weights.items():
        path, _, leaf = name.rpartition(".")
        found.append((block.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False)))
    return found


def _set_parameters(parameters: Sequence[_Parameter]) -> None:
    for module, name, value in parameters:
        setattr(module, name, value)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten(0, -2).float()
