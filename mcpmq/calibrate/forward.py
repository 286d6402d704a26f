"""Run calibration samples through a model one block at a time, with the modality of every token known."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mcpmq.calibrate.block_files import BlockReader
from mcpmq.calibrate.exchange import (
    ONE_PROCESS,
    AddingExchange,
    Exchange,
    own_samples,
    sample_index,
    sample_is_held_out,
)
from mcpmq.calibrate.memory import must_spill
from mcpmq.calibrate.modalities import (
    HEAD,
    LANGUAGE,
    is_predicted,
    modality_labels,
    sample_modalities,
    token_modalities,
)
from mcpmq.calibrate.observers import HessianObserver, HoldOut, TokenModalities
from mcpmq.calibrate.requirements import check_finite
from mcpmq.calibrate.shared_statistics import collect_from_all
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample
from mcpmq.execution.chunked_matmul import ParallelMap, chunk_linears, deterministic_threads
from mcpmq.execution.device import CPU, progress_label
from mcpmq.execution.hooks import observe_inputs
from mcpmq.execution.layerwise import Replay, run_layerwise
from mcpmq.execution.spilling import SpillFile
from mcpmq.execution.torch_model import StoredWeight, TorchModel, build_model, rows_to_float, to_float
from mcpmq.families.encoding import encode_sample
from mcpmq.families.family import Family, Processor, TensorSpec
from mcpmq.families.inputs import Inputs
from mcpmq.recipe import TokenWeights
from mcpmq.rounding.stats import InputStats
from mcpmq.system.freed_memory import map_large_blocks
from mcpmq.system.progress import Progress

EMBEDDING = "embedding"


class CalibrationVisitor(Protocol):
    """Loads each block of a calibration run, and reads or changes it before the samples pass through it."""

    def load(self, block: nn.Module) -> None:
        """Load the weights of a block. The head needs none: it returns its input."""

    def visit(self, block: nn.Module, replay: Replay) -> None:
        """Process a loaded block; `replay` runs the samples through it and discards the outputs."""


@dataclass(frozen=True, slots=True)
class CalibrationRun:
    """A checkpoint's model without weights, and the encoded samples of this process to run through it.

    indices: of the samples among those of all processes. num_samples: of all processes.
    """

    checkpoint: Checkpoint
    model: TorchModel
    processor: Processor
    inputs: Sequence[Inputs]
    progress: Progress
    parallel_map: ParallelMap
    threads: int  # threads of torch before the run, which computes on one
    spill: SpillFile | None = None  # for the hidden states of waiting samples
    reader: BlockReader | None = None  # on devices other than the CPU
    exchange: Exchange = ONE_PROCESS
    indices: Sequence[int] = ()
    num_samples: int = 0

    def load_original(self, block: nn.Module) -> None:
        """Load the weights of a block from the checkpoint; the head stays empty."""
        if is_head(self.model, block):
            return
        if self.reader is None:
            self.load_block(block, self.checkpoint.load)
            return
        weights = self.reader.read(list(self.model.blocks).index(block))
        self.load_block(block, lambda spec: weights[spec.name])

    def load_block(self, block: nn.Module, read: Callable[[TensorSpec], StoredWeight]) -> None:
        """Load the weights of a block that `read` returns, [out, in]; of the embedding the rows of the samples only."""
        self.model.load_block(block, lambda spec: self._to_float(read(spec), spec))

    def _to_float(self, stored: StoredWeight, spec: TensorSpec) -> Tensor:
        if spec.name != EMBEDDING:
            return to_float(stored, spec, self.model.device)
        used = sorted({token for one in self.inputs for token in one.tokens.tolist()})
        return rows_to_float(stored, used, self.model.device)

    def input_modules(self, specs: Mapping[str, TensorSpec]) -> dict[str, str | None]:
        """Return the module that feeds each weight, by the weight's name in its block; see `capture_inputs`."""
        return {name: input_module(self.checkpoint.family, spec, name) for name, spec in specs.items()}

    def modalities(self, block: nn.Module, weights: Mapping[str, float]) -> TokenModalities:
        """Return the modalities of a block's input tokens, with these token weights."""
        return modality_labels(block_component(self.model, block), weights)

    def collect_stats(
        self,
        block: nn.Module,
        specs: Mapping[str, TensorSpec],
        replay: Callable[[], None],
        weights: TokenWeights,
        held_out_in_gram: bool = True,
    ) -> dict[str, tuple[InputStats, ...]]:
        """Collect input statistics of weights of a loaded block, by common name; `specs` is by name in the block.

        A weight that receives no tokens has no statistics. Without `held_out_in_gram`, held-out samples are not added
        to the statistics; some of their inputs are kept either way.

        Raises:
            DatasetError: an input is not finite.
        """
        modules, is_layer = self.input_modules(specs), block_component(self.model, block) == LANGUAGE
        collect = partial(observe_inputs, block, modules, replay, stop_at_last=is_layer)
        new_observer = self.new_observer(block, weights, held_out_in_gram)
        stats = collect_from_all(self.exchange, new_observer, collect, self.multiplied_weights(block))
        for name, parts in stats.items():
            check_finite(specs[name], parts)
        return {spec.name: stats.get(name, ()) for name, spec in specs.items()}

    def new_observer(
        self, block: nn.Module, weights: TokenWeights, held_out_in_gram: bool
    ) -> Callable[..., HessianObserver]:
        """Return a function that creates an observer of inputs of the block: of their columns, and of drift."""
        hold_out = HoldOut(sample_is_held_out.get, held_out_in_gram)
        modalities = self.modalities(block, weights.model_dump())
        return partial(HessianObserver.create, modalities, self.parallel_map, hold_out, self.model.device)

    def multiplied_weights(self, block: nn.Module) -> int:
        """Return the number of weights that every token is multiplied with in the forward pass of a block."""
        return 0 if is_head(self.model, block) else _weights(self.model.blocks[block].values())

    @property
    def original_samples(self) -> range:
        """Indices of the forward passes of the original model; those of the quantized model are the samples'."""
        return range(len(self.inputs), 2 * len(self.inputs))

    def sample_pairs(self, replay: Replay, observed: Container[int]) -> list[tuple[int, int]]:
        """Return the indices of those samples that wait before a block: in the original and in the quantized model."""
        count = len(self.inputs)
        return [(index + count, index) for index in replay.waiting() if index < count and index in observed]


def _weights(specs: Iterable[TensorSpec]) -> int:
    return sum(prod(spec.shape) for spec in specs if spec.role == "matrix")


@contextmanager
def open_calibration(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    progress: Progress,
    device: torch.device,
    with_hessian: Sequence[str] = (),
    with_original: bool = False,
    memory_limit: int | None = None,
    spill_folder: Path | None = None,
    exchange: Exchange = ONE_PROCESS,
) -> Iterator[CalibrationRun]:
    """Encode the samples and build the model; inside, torch is deterministic and in inference mode.

    `with_hessian` are the weights, by common name, whose Hessians the visitor collects. `with_original` is that of
    `run_calibration`. Hidden states that do not fit into memory, or into the bytes of `memory_limit`, go to a file in
    `spill_folder`, by default that of the system. With several processes each encodes its own samples.

    Raises:
        DatasetError: the samples do not fit into the memory of the device.
    """
    processor = checkpoint.family.open_processor(checkpoint.path)
    indices = own_samples(len(samples), exchange)
    inputs = encode_samples(processor, [samples[index] for index in indices], progress)
    has_hessians = exchange.rank == 0 or isinstance(exchange, AddingExchange)
    hessians = with_hessian if has_hessians else ()
    spills = must_spill(checkpoint, inputs, hessians, device, with_original, memory_limit)
    model = build_model(checkpoint.family, checkpoint.config, checkpoint.specs, device)
    threads = torch.get_num_threads()
    if memory_limit is not None:
        map_large_blocks()
    with ExitStack() as stack:
        spill = stack.enter_context(SpillFile.create(spill_folder)) if spills else None
        parallel_map = stack.enter_context(deterministic_threads(device))
        stack.enter_context(torch.inference_mode())
        reader = None if device == CPU else stack.enter_context(BlockReader.open(checkpoint, _block_specs(model)))
        shared = spill, reader, exchange, indices, len(samples)
        yield CalibrationRun(checkpoint, model, processor, inputs, progress, parallel_map, threads, *shared)


def _block_specs(model: TorchModel) -> list[tuple[TensorSpec, ...]]:
    """Return the specs of every block; none for the head."""
    return [() if is_head(model, block) else tuple(specs.values()) for block, specs in model.blocks.items()]


def run_calibration(
    run: CalibrationRun,
    visitor: CalibrationVisitor,
    label: str,
    held_out: Container[int] = (),
    with_original: bool = False,
) -> None:
    """Run all samples through all blocks; each block is loaded, visited, passed and unloaded once.

    With `with_original` each sample has a second forward pass, for the original model: the visitor lets
    `original_samples` pass through original weights before it loads those of the quantized model.

    The head receives all positions but those of images and audio. Logits are not needed during calibration, so the head
    returns its input and loads no weights. `label` is for the progress, `held_out` has the indices of held-out samples
    among those of all processes.
    """
    model = run.model
    if model.device == CPU:  # other devices distribute matrix products themselves
        chunk_linears(model.module, run.parallel_map)
    for block in filter(partial(is_head, model), model.blocks):
        vars(block)["forward"] = lambda hidden: hidden
    samples = [
        {"index": index, "modalities": token_modalities(one), "is_held_out": index in held_out, "inputs": one}
        for index, one in zip(run.indices, run.inputs, strict=True)
    ]
    if with_original:
        samples *= 2
    blocks = list(model.blocks)
    devices = run.exchange.size if isinstance(run.exchange, AddingExchange) else 1
    ticks = iter(run.progress(blocks, progress_label(label, model.device, devices)))

    def load(block: nn.Module) -> None:
        next(ticks, None)
        visitor.load(block)

    forward = partial(_forward, run)
    options: dict[str, Any] = {"load": load, "release": model.unload_block, "visit": visitor.visit, "spill": run.spill}
    run_layerwise(forward, blocks, samples, **options, next_position=lambda one: min(run.exchange.gather(one)))
    for _ in ticks:  # blocks that no sample passed through
        pass


def _forward(run: CalibrationRun, index: int, modalities: Tensor, is_held_out: bool, inputs: Inputs) -> None:
    model = run.model
    sample_index.set(index)
    sample_is_held_out.set(is_held_out)
    sample_modalities.set(modalities)
    arrays = run.processor.model_inputs(inputs)
    tensors = {name: torch.from_numpy(value).to(model.device) for name, value in arrays.items()}
    if run.spill:  # only memory of torch can be spilled
        tensors = {name: value.clone() for name, value in tensors.items()}
    del arrays
    predicted = is_predicted(modalities).nonzero()[:, 0].to(model.device)
    model.module(**tensors, logits_to_keep=predicted, use_cache=False)


def encode_samples(processor: Processor, samples: Sequence[Sample], progress: Progress) -> list[Inputs]:
    """Encode samples into model inputs."""
    return [encode_sample(processor, sample) for sample in progress(samples, "encoding samples")]


def is_head(model: TorchModel, block: nn.Module) -> bool:
    """Return whether a block is the language model head, which may be tied to the embedding."""
    return block is model.module.get_output_embeddings()  # type: ignore[operator]


def block_component(model: TorchModel, block: nn.Module) -> str:
    """Return the component that a block is part of."""
    if is_head(model, block):
        return HEAD
    return next(iter(model.blocks[block].values())).component


def input_module(family: Family, spec: TensorSpec, parameter: str) -> str | None:
    """Return the module in a block whose output is multiplied by `parameter`, for weights that no nn.Linear holds.

    `parameter` is the weight's name in the block.
    """
    name = spec.parameter_names[0]
    module = dict(family.input_from).get(name)
    return module.removeprefix(name.removesuffix(parameter)) if module else None
