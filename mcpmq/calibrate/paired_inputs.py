"""Statistics of one stage's inputs in the quantized model, and of their difference from the original model.

Every sample passes through the block with the weights that are rounded so far, on its hidden states in the quantized
model. Only the inputs of one sample are in memory at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mcpmq.calibrate.observers import HessianObserver
from mcpmq.calibrate.original_inputs import STREAM, OriginalInputs, StageValues
from mcpmq.calibrate.stages import Stage, StageObserver
from mcpmq.errors import DatasetError
from mcpmq.execution.layerwise import Replay, ReplayStopped
from mcpmq.rounding.stats import Drift, InputStats

NewObserver = Callable[[int, Drift], HessianObserver]
"""Creates an observer of inputs with this number of columns; it adds to the drift."""

NO_VALUES = StageValues(0, {})


@dataclass(frozen=True, slots=True)
class QuantizedBlock:
    """A block with weights of the quantized model, the samples that wait before it, and their original inputs.

    weights: by parameter; those of matrices that are not rounded yet are the original ones, scaled.
    """

    block: nn.Module
    weights: dict[str, Tensor]
    replay: Replay
    samples: Sequence[int]
    original: OriginalInputs

    def collect_stats(
        self,
        stage: Stage,
        input_modules: Mapping[str, str | None],
        column_scales: Mapping[str, Tensor | None],
        new_observer: NewObserver,
        observers: dict[str, Any] | None = None,
    ) -> dict[str, tuple[InputStats, ...]]:
        """Return the statistics of a stage with drift, by parameter; the block has its weights afterwards.

        `column_scales` are those of smoothed matrices: inputs of the quantized model are divided by them. `observers`
        gets the observers, by the first matrix that uses them.

        Raises:
            DatasetError: a sample runs the stage less often than in the original model, or in the quantized one only.
        """
        pairs = _InputPairs(stage, column_scales, new_observer, {} if observers is None else observers)
        self._set_parameters()
        with pairs.observed.hooks(self.block, input_modules):
            for sample in self.samples:
                pairs.begin(self.original.values[stage][sample])
                self.replay((sample,))
                pairs.check_calls()
        return pairs.results()

    def _set_parameters(self) -> None:
        for name, value in self.weights.items():
            path, _, leaf = name.rpartition(".")
            setattr(self.block.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))


@dataclass(slots=True)
class _InputPairs:
    """Observes a stage in the quantized model, sample by sample, and adds the inputs with their differences."""

    stage: Stage
    column_scales: Mapping[str, Tensor | None]
    new_observer: NewObserver
    observers: dict[str, HessianObserver]  # by the first matrix
    original: StageValues = NO_VALUES  # of the present sample
    observed: StageObserver = field(init=False)

    def __post_init__(self) -> None:
        self.observed = StageObserver(self.stage, self._end_pass)

    def begin(self, original: StageValues) -> None:
        """Begin the pass of a sample with these values in the original model."""
        self.original = original
        self.observed.begin()

    def check_calls(self) -> None:
        """Check that the pass of the sample had the calls of the original model, so that all inputs have counterparts.

        Raises:
            DatasetError: it did not.
        """
        if self.observed.calls != self.original.calls:
            raise DatasetError(
                f"a sample runs the stage of `{self.stage.parameters[0]}` {self.observed.calls} times in the quantized"
                f" model and {self.original.calls} times in the original one",
                'use `targets = "layer"`, which needs no pairs of inputs',
            )

    def results(self) -> dict[str, tuple[InputStats, ...]]:
        """Return the statistics by parameter."""
        by_owner = {owner: observer.result() for owner, observer in self.observers.items()}
        results: dict[str, tuple[InputStats, ...]] = {}
        for name, owner in self.observed.owners.items():
            parameter = name.partition("|")[0]
            results[parameter] = (*results.get(parameter, ()), by_owner[owner])
        return results

    def _end_pass(self) -> None:
        """Add the inputs of the sample after as many calls as in the original model; its forward pass ends here."""
        if self.observed.calls < self.original.calls:
            return
        if self.observed.calls > self.original.calls:
            raise ReplayStopped
        original = self.original.load()
        for name, parts in self.observed.inputs.items():
            inputs = torch.cat(parts)
            self._add(name, inputs, self._drift(name, inputs, original))
        raise ReplayStopped

    def _drift(self, name: str, inputs: Tensor, original: Mapping[str, Tensor]) -> Tensor:
        """Return the difference of the original model from the quantized one, of the stream or of inputs."""
        if self.stage.stream:
            return (original[STREAM] - torch.cat(self.observed.states)) / self.stage.stream.scale
        scale = self.column_scales.get(name.partition("|")[0])
        return (original[name] if scale is None else original[name] / scale) - inputs

    def _add(self, name: str, inputs: Tensor, drift: Tensor) -> None:
        if name not in self.observers:
            products = drift.new_empty(inputs.shape[1], drift.shape[1])
            self.observers[name] = self.new_observer(inputs.shape[1], Drift(self.stage.stream is not None, products))
        self.observers[name].update(inputs, drift)
