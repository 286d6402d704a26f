"""Run a checkpoint, or a dequantized quantized model, in PyTorch in float32, one block in memory at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers.modeling_utils  # noqa: F401 - part of the baseline RSS, not of the model's memory
from numpy.typing import NDArray
from torch import Tensor, nn

from mcpmq.artifact import MANIFEST
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import EngineError
from mcpmq.execution.device import CPU, device_name, resolve_device
from mcpmq.execution.layerwise import run_layerwise
from mcpmq.execution.torch_model import StoredWeight, TorchModel, build_model, to_float
from mcpmq.families import family_named
from mcpmq.families.blocks import block_name
from mcpmq.families.family import Family, TensorSpec
from mcpmq.families.inputs import Inputs, slice_size
from mcpmq.grids.activation import InputGrid
from mcpmq.quantized_model import QuantizedModel
from mcpmq.runners.fake_quant import fake_quantize_activations
from mcpmq.runners.generation import Predictions, without_answer
from mcpmq.runners.runner import Logits, Metric, Result
from mcpmq.runners.torch_generation import predict

# Tokens that pass through a block together, and pixels and audio samples that count as one token: they bound the memory
# for activations. A batch of this size takes much longer to compute than the weights to read, so they are read for
# every batch.
BATCH_TOKENS, PIXELS_PER_TOKEN = 8192, 1600
AUDIO_SAMPLES_PER_TOKEN = 320  # one frame of an audio encoder
STREAMED_NOTE = "weights read block by block and computed in float32: one block is in memory at a time"
MEMORY_FRACTION = 0.8  # of the available memory, for all blocks in float32
FLOAT32_NBYTES = 4

# The id of the running sample; `run_layerwise` runs each sample in a context of its own.
_sample_id: ContextVar[str] = ContextVar("sample_id")


@dataclass(frozen=True, slots=True)
class WeightStore:
    """The weights of a model, read again on every use."""

    specs: tuple[TensorSpec, ...]
    read: Callable[[TensorSpec], StoredWeight]  # [out, in]
    activation_grids: Mapping[str, Sequence[InputGrid]] = field(default_factory=dict)  # by matrix name

    def load_float32(self, spec: TensorSpec, device: torch.device = CPU) -> Tensor:
        """Return a weight in float32 on a device, where it is converted, in the orientation of the parameter."""
        return to_float(self.read(spec), spec, device)


@dataclass(frozen=True, slots=True)
class TorchRunner:
    """A torch model whose blocks are loaded and unloaded while samples pass through it."""

    model: TorchModel
    weights: WeightStore
    arguments: Callable[[Inputs], Mapping[str, NDArray[Any]]]
    notes: tuple[str, ...]

    def run(self, samples: Sequence[Inputs], metric: Metric[Result]) -> Iterator[Result]:
        """Yield `metric(sample, logits)` for each sample, in order.

        The metric is called inside the forward pass, so only the logits of one sample are in memory.
        """

        def forward(sample: Inputs) -> Result:
            _sample_id.set(sample.id)
            return metric(sample, self._logits(sample))

        blocks = list(self.model.blocks)
        for batch in batches(samples, BATCH_TOKENS):
            arguments = [{"sample": sample} for sample in batch]
            with torch.inference_mode():
                results = run_layerwise(forward, blocks, arguments, load=self._load, release=self.model.unload_block)
            yield from results

    def _logits(self, sample: Inputs) -> Iterator[Logits]:
        device = self.model.device
        tensors = {name: torch.from_numpy(value).to(device) for name, value in self.arguments(sample).items()}
        positions = torch.from_numpy(sample.measured - 1).to(device)  # each predicts the next token
        logits = self.model.module(**tensors, logits_to_keep=positions, use_cache=False).logits[0]
        assert len(logits) == len(positions), "the module must return the requested logits only"
        yield from logits.float().cpu().numpy()

    def predict(self, sample: Inputs) -> Predictions:
        """Yield the logits after the prompt, then those after every token that is sent; needs `load_all`."""
        _sample_id.set(sample.id)
        return predict(self.model.module, self.arguments(without_answer(sample)))

    def load_all(self) -> None:
        """Load all blocks in float32.

        Raises:
            EngineError: they need more memory than is available.
        """
        needed = FLOAT32_NBYTES * sum(prod(spec.shape) for spec in self.weights.specs)
        available = psutil.virtual_memory().available
        if needed > MEMORY_FRACTION * available:
            raise EngineError(
                f"the model needs {needed:,} bytes of memory in float32; {available:,} bytes are available",
                "export it to GGUF: llama.cpp computes with quantized weights",
            )
        for block in self.model.blocks:
            self._load(block)

    def _load(self, block: nn.Module) -> None:
        self.model.load_block(block, partial(self.weights.load_float32, device=self.model.device))


def _check_finite(name: str, _: nn.Module, __: Any, output: Any) -> None:
    values = output[0] if isinstance(output, tuple) else output
    if isinstance(values, Tensor) and not values.isfinite().all():
        raise EngineError(
            f"sample `{_sample_id.get()}`: first non-finite values in the output of `{name}`",
            "its weights or activations overflow",
        )


def batches(samples: Sequence[Inputs], max_tokens: int) -> Iterator[list[Inputs]]:
    """Yield samples in order, in batches of at most `max_tokens` tokens (see `_size`) and at least one sample."""
    batch: list[Inputs] = []
    for sample in samples:
        if batch and sum(map(_size, (*batch, sample))) > max_tokens:
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def _size(sample: Inputs) -> int:
    """Return the number of tokens of a sample, or of its pixels and audio samples if these need more memory."""
    pixels = sum(prod(slice_size(part)) for part in sample.slices)
    audio = sum(map(len, sample.audio))
    return max(len(sample.tokens), pixels // PIXELS_PER_TOKEN + audio // AUDIO_SAMPLES_PER_TOKEN)


def open_runner(path: Path, threads: int, adapters: Sequence[str | Path] = (), device: str = "cpu") -> TorchRunner:
    """Open a checkpoint with LoRA adapters, or a quantized model, whose weights are dequantized, on a device.

    One block at a time is in memory, in float32; its weights are read again for every batch of samples.

    Raises:
        McpmqError: the folder is neither, its files are damaged, or the device is not available.
    """
    torch_device = resolve_device(device)
    if not (path / MANIFEST).is_file():
        return open_checkpoint(Checkpoint.open(path, adapters=adapters), threads, torch_device)
    torch.set_num_threads(threads)
    family, config, weights, notes = _quantized(path)
    return build_runner(path, family, config, weights, (*notes, STREAMED_NOTE), torch_device)


def open_checkpoint(checkpoint: Checkpoint, threads: int, device: torch.device = CPU) -> TorchRunner:
    """Return the runner of an open checkpoint, also of one with a trimmed vocabulary."""
    torch.set_num_threads(threads)
    weights = WeightStore(checkpoint.specs, checkpoint.load_float32)
    return build_runner(checkpoint.path, checkpoint.family, checkpoint.config, weights, (STREAMED_NOTE,), device)


def build_runner(
    path: Path,
    family: Family,
    config: Mapping[str, Any],
    weights: WeightStore,
    notes: tuple[str, ...],
    device: torch.device = CPU,
) -> TorchRunner:
    """Build the family's torch module and connect it to a weight store; `path` holds the processor's files."""
    if device != CPU:
        notes = (*notes, f"computed on {device_name(device)}")
    model = build_model(family, config, weights.specs, device)
    fake_quantize_activations(family, model, weights.activation_grids)
    for block, parameters in model.blocks.items():
        name = block_name(next(iter(parameters.values())).name)
        block.register_forward_hook(partial(_check_finite, name))
    return TorchRunner(model, weights, family.open_processor(path).model_inputs, notes)


def _quantized(path: Path) -> tuple[Family, Mapping[str, Any], WeightStore, tuple[str, ...]]:
    quantized = QuantizedModel.open(path)
    grids = {name: found for name in quantized.specs if (found := quantized.input_grids(name))}
    specs = tuple(quantized.specs.values())
    weights = WeightStore(specs, lambda spec: quantized.load(spec.name), grids)
    notes = ["weights dequantized to float32 before use"]
    if grids:
        notes.append(f"inputs of {len(grids)} matrices fake-quantized on the grids of the artifact")
    return family_named(quantized.artifact.manifest.family), quantized.config, weights, tuple(notes)
