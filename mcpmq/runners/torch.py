"""The model in PyTorch, in float32, block by block: the original as it was given, or a quantized one dequantized."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers.modeling_utils  # noqa: F401 - counted with the engine, not with the model, where memory is measured
from numpy.typing import NDArray
from torch import Tensor, nn

from mcpmq.artifact import MANIFEST
from mcpmq.checkpoint import Checkpoint
from mcpmq.families import family_named
from mcpmq.families.family import Family, Inputs, TensorSpec
from mcpmq.native import NativeModel, Stored, build, empty, floats_of
from mcpmq.quantized import Quantized
from mcpmq.stream import lockstep

# Tokens of the samples that go through a block together, which bounds what is held of them: few where
# a block costs little to fill, many where it is read from disk again.
KEPT_WAVE_TOKENS, READ_WAVE_TOKENS = 2048, 8192
RESIDENT_SHARE = 0.8  # of the available memory, for the stored weights and the largest of them beside its floats
FLOAT_NBYTES = 4


@dataclass(frozen=True, slots=True)
class Weights:
    """Where weights come from: kept in memory as they are stored, or read again whenever they are needed."""

    specs: tuple[TensorSpec, ...]
    read: Callable[[TensorSpec], Stored]  # [out, in]
    nbytes: int  # as stored
    kept: dict[str, Stored] = field(default_factory=dict)

    @property
    def resident_nbytes(self) -> int:
        """What keeping all of them takes, and one of them in float32 with what it is made from."""
        return self.nbytes + 2 * FLOAT_NBYTES * max(prod(spec.shape) for spec in self.specs)

    def keep_all(self) -> None:
        """Read every weight now, and never again."""
        self.kept.update({spec.name: self.read(spec) for spec in self.specs})

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

    def losses(self, samples: Sequence[Inputs]) -> Iterator[NDArray[np.float64]]:
        """For every sample in order, the natural-log loss of each token of `tokens[answer_start:]`."""
        for wave in waves(samples, KEPT_WAVE_TOKENS if self.weights.kept else READ_WAVE_TOKENS):
            arguments = [self._arguments(sample) for sample in wave]
            with torch.inference_mode():
                results = lockstep(self._losses, list(self.native.blocks), arguments, load=self._fill, release=empty)
            yield from results

    def _arguments(self, sample: Inputs) -> dict[str, Any]:
        tensors = {name: torch.from_numpy(value) for name, value in self.arguments(sample).items()}
        return {"answer": torch.from_numpy(sample.tokens[sample.answer_start :]), "tensors": tensors}

    def _losses(self, answer: Tensor, tensors: Mapping[str, Tensor]) -> NDArray[np.float64]:
        length = tensors["input_ids"].shape[1]
        # The token before predicts: the head is wanted at these positions only.
        positions = torch.arange(length - len(answer) - 1, length - 1)
        logits = self.native.module(**tensors, logits_to_keep=positions, use_cache=False).logits[0]
        assert len(logits) == len(answer), "a native module says the logits that it is asked for"
        chosen = logits.double().log_softmax(-1).gather(-1, answer[:, None])
        losses: NDArray[np.float64] = -chosen[:, 0].numpy()
        return losses

    def _fill(self, block: nn.Module) -> None:
        self.native.fill(block, self.weights.floats)


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
    available = psutil.virtual_memory().available
    if weights.resident_nbytes <= RESIDENT_SHARE * available:
        weights.keep_all()
        how = f"weights ({weights.nbytes:,} bytes) held in memory as stored, one block at a time in float32"
    else:
        how = f"weights ({weights.nbytes:,} bytes) read from disk block by block: {available:,} bytes were available"
    return assemble(path, family, config, weights, (*notes, how))


def assemble(
    path: Path, family: Family, config: Mapping[str, Any], weights: Weights, notes: tuple[str, ...]
) -> TorchRunner:
    """The native module of the family and where its weights come from."""
    return TorchRunner(build(family, config, weights.specs), weights, family.processor(path).arguments, notes)


def _checkpoint(path: Path) -> tuple[Family, Mapping[str, Any], Weights, tuple[str, ...]]:
    checkpoint = Checkpoint.open(path)
    weights = Weights(checkpoint.specs, checkpoint.load, checkpoint.nbytes)
    return checkpoint.family, checkpoint.config, weights, ()


def _quantized(path: Path) -> tuple[Family, Mapping[str, Any], Weights, tuple[str, ...]]:
    quantized = Quantized.open(path)
    nbytes = sum(record.nbytes for record in quantized.records.values())
    weights = Weights(tuple(quantized.specs.values()), lambda spec: quantized.load(spec.name), nbytes)
    family = family_named(quantized.artifact.manifest.family)
    return family, quantized.config, weights, ("weights dequantized to float32 before use",)
