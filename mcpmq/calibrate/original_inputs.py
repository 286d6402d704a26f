"""Record the inputs of a block's stages in the original model, from one pass of the samples.

A stage whose outputs are added to a residual stream has the stream instead.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from mcpmq.calibrate.stages import Stage, StageObserver
from mcpmq.execution.layerwise import Replay
from mcpmq.execution.spilling import SpillFile, StoredTensor, store

STREAM = ""  # instead of the name of a matrix


@dataclass(frozen=True, slots=True)
class StageValues:
    """The values of a stage in the forward pass of one sample.

    calls: those of its observer. stored: by the first matrix that uses the inputs, or STREAM.
    """

    calls: int
    stored: Mapping[str, StoredTensor]

    @classmethod
    def store(cls, observer: StageObserver, spill: SpillFile | None) -> Self:
        """Store the values of an observer of copies."""
        values = observer.inputs if observer.stage.stream is None else {STREAM: observer.states}
        joined = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in values.items() if parts}
        return cls(observer.calls, {name: store(value, spill) for name, value in joined.items()})

    def load(self) -> dict[str, Tensor]:
        """Return the values."""
        return {name: one.load() for name, one in self.stored.items()}

    def free(self) -> None:
        """Release the places of the values in a file."""
        for one in self.stored.values():
            one.free()


@dataclass(frozen=True, slots=True)
class OriginalInputs:
    """Inputs, or the stream, of every stage and sample, float32 [tokens, columns].

    values: by stage, by sample of the quantized model.
    """

    values: dict[Stage, dict[int, StageValues]]

    @classmethod
    def record(
        cls,
        block: nn.Module,
        stages: Sequence[Stage],
        input_modules: Mapping[str, str | None],
        replay: Replay,
        samples: Collection[tuple[int, int]],
        spill: SpillFile | None,
        *,
        contains_blocks: bool,
    ) -> Self:
        """Record samples while they pass a block with its original weights.

        `samples` are indices in the original and in the quantized model; `input_modules` is as in `capture_inputs`. The
        values are in `spill`, if it is not None. Samples do not pass a block that contains others: they cannot with
        hooks, and it is replayed.
        """
        observers = [StageObserver(stage, copies=True) for stage in stages]
        found = cls({stage: {} for stage in stages})
        with ExitStack() as hooks:
            for observer in observers:
                hooks.enter_context(observer.hooks(block, input_modules))
            for original, quantized in samples:
                for observer in observers:
                    observer.begin()
                (replay if contains_blocks else replay.advance_with_hooks)((original,))
                for observer in observers:
                    found.values[observer.stage][quantized] = StageValues.store(observer, spill)
        return found

    def free(self, stage: Stage) -> None:
        """Remove the values of a stage."""
        for one in self.values.pop(stage).values():
            one.free()
