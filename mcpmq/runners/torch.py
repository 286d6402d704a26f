"""The model in PyTorch, in float32, block by block: the original as it was given, or a quantized one dequantized."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers.modeling_utils  # noqa: F401 - counted with the engine, not with the model, where memory is measured
from numpy.typing import NDArray
from torch import Tensor, nn

from mcpmq.artifact import MANIFEST
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import EngineError
from mcpmq.execution.layerwise import lockstep
from mcpmq.execution.torch_model import NativeModel, Stored, build, floats_of
from mcpmq.families import family_named
from mcpmq.families.family import Family, Inputs, TensorSpec
from mcpmq.grids.activation import InputGrid
from mcpmq.plan import block_of
from mcpmq.quantized_model import Quantized
from mcpmq.runners.fake_quant import round_inputs
from mcpmq.runners.runner import Judge, Logits, Result

# Tokens of the samples that go through a block together, which bounds what is held of them: few where
# a block costs little to fill, many where it is read from disk again.
KEPT_WAVE_TOKENS, READ_WAVE_TOKENS = 2048, 8192
RESIDENT_SHARE = 0.8  # of the available memory, for the stored weights and the largest of them beside its floats
FLOAT_NBYTES = 4

# The id of the sample whose forward is running; each sample runs in a context of its own.
_passing: ContextVar[str] = ContextVar("sample")


@dataclass(frozen=True, slots=True)
class Weights:
    """Where weights come from: kept in memory as they are stored, or read again whenever they are needed."""

    specs: tuple[TensorSpec, ...]
    read: Callable[[TensorSpec], Stored]  # [out, in]
    nbytes: int  # as stored
    kept: dict[str, Stored] = field(default_factory=dict)
    input_grids: Mapping[str, Sequence[InputGrid]] = field(default_factory=dict)  # of matrices whose inputs are rounded

    @property
    def resident_nbytes(self) -> int:
        """What keeping all of them takes, and one of them in float32 with what it is made from."""
        return self.nbytes + 2 * FLOAT_NBYTES * max(prod(spec.shape) for spec in self.specs)

    def keep_if_there_is_room(self) -> str:
        """Read every weight now, and never again, if they all fit into the available memory; what was done."""
        available = psutil.virtual_memory().available
        if self.resident_nbytes > RESIDENT_SHARE * available:
            return f"weights ({self.nbytes:,} bytes) read from disk block by block: {available:,} bytes were available"
        self.kept.update({spec.name: self.read(spec) for spec in self.specs})
        return f"weights ({self.nbytes:,} bytes) held in memory as stored, one block at a time in float32"

    def floats(self, spec: TensorSpec) -> Tensor:
        """One weight in float32, turned as the module holds it."""
        return floats_of(self.kept[spec.name] if self.kept else self.read(spec), spec)


@dataclass(frozen=True, slots=True)
class TorchRunner:
    """A native module whose blocks are filled and emptied while samples pass."""

    native: NativeModel
    weights: Weights
    arguments: Callable[[Inputs], Mapping[str, NDArray[Any]]]
    notes: tuple[str, ...]

    def run(self, samples: Sequence[Inputs], judge: Judge[Result]) -> Iterator[Result]:
        """For every sample in order, what `judge` makes of the logits of its answer.

        It is asked inside the pass: the logits of one sample only are ever in memory.
        """

        def forward(sample: Inputs) -> Result:
            _passing.set(sample.id)
            return judge(sample, self._logits(sample))

        for wave in waves(samples, KEPT_WAVE_TOKENS if self.weights.kept else READ_WAVE_TOKENS):
            asked = [{"sample": sample} for sample in wave]
            with torch.inference_mode():
                results = lockstep(forward, list(self.native.blocks), asked, load=self._fill, release=self.native.empty)
            yield from results

    def _logits(self, sample: Inputs) -> Iterator[Logits]:
        tensors = {name: torch.from_numpy(value) for name, value in self.arguments(sample).items()}
        # The token before predicts: the head is wanted at these positions only.
        positions = torch.arange(sample.answer_start - 1, len(sample.tokens) - 1)
        logits = self.native.module(**tensors, logits_to_keep=positions, use_cache=False).logits[0]
        assert len(logits) == len(positions), "a native module says the logits that it is asked for"
        yield from logits.float().numpy()

    def _fill(self, block: nn.Module) -> None:
        self.native.fill(block, self.weights.floats)


def _refuse_not_finite(name: str, _: nn.Module, __: Any, output: Any) -> None:
    values = output[0] if isinstance(output, tuple) else output
    if isinstance(values, Tensor) and not values.isfinite().all():
        raise EngineError(
            f"sample `{_passing.get()}`: values that are not finite first come out of `{name}`",
            "its weights or activations overflow",
        )


def waves(samples: Sequence[Inputs], limit: int) -> Iterator[list[Inputs]]:
    """Samples in order, as many at a time as have `limit` tokens together, at least one."""
    wave: list[Inputs] = []
    for sample in samples:
        if wave and sum(len(one.tokens) for one in (*wave, sample)) > limit:
            yield wave
            wave = []
        wave.append(sample)
    if wave:
        yield wave


def open_runner(path: Path, threads: int) -> TorchRunner:
    """Open a checkpoint folder, or what `quantize` wrote, whose weights are then dequantized.

    Weights stay in memory as they are stored where they fit, and are read again for every wave of samples where not;
    `notes` says which. Either way one block at a time is in float32, and the losses are the same.

    Raises:
        McpmqError: it is neither, or its files are broken.
    """
    torch.set_num_threads(threads)
    family, config, weights, notes = _quantized(path) if (path / MANIFEST).is_file() else _checkpoint(path)
    return assemble(path, family, config, weights, (*notes, weights.keep_if_there_is_room()))


def assemble(
    path: Path, family: Family, config: Mapping[str, Any], weights: Weights, notes: tuple[str, ...]
) -> TorchRunner:
    """The native module of the family and where its weights come from."""
    model = build(family, config, weights.specs)
    round_inputs(family, model, weights.input_grids)
    for block, parameters in model.blocks.items():
        name = block_of(next(iter(parameters.values())).name)
        block.register_forward_hook(partial(_refuse_not_finite, name))
    return TorchRunner(model, weights, family.processor(path).arguments, notes)


def _checkpoint(path: Path) -> tuple[Family, Mapping[str, Any], Weights, tuple[str, ...]]:
    checkpoint = Checkpoint.open(path)
    weights = Weights(checkpoint.specs, checkpoint.load, checkpoint.nbytes)
    return checkpoint.family, checkpoint.config, weights, ()


def _quantized(path: Path) -> tuple[Family, Mapping[str, Any], Weights, tuple[str, ...]]:
    quantized = Quantized.open(path)
    nbytes = sum(record.nbytes for record in quantized.records.values())
    grids = {name: found for name in quantized.specs if (found := quantized.input_grids(name))}
    specs = tuple(quantized.specs.values())
    weights = Weights(specs, lambda spec: quantized.load(spec.name), nbytes, input_grids=grids)
    notes = ["weights dequantized to float32 before use"]
    if grids:
        notes.append(f"inputs of {len(grids)} matrices rounded as the artifact says")
    return family_named(quantized.artifact.manifest.family), quantized.config, weights, tuple(notes)
