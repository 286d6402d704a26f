"""Calibrate and quantize one block at a time; the next block gets the quantized block's outputs.

Matrix products run on all threads in chunks of a fixed size, all other operations on one thread: equal inputs give
equal bytes on any number of threads.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mcpmq.calibrate.block import BlockQuantizer, BlockStats, Rounder, StatsRounder, smoothing_scales
from mcpmq.calibrate.block_files import BackgroundWriter
from mcpmq.calibrate.exchange import ONE_PROCESS, Exchange, broadcast
from mcpmq.calibrate.expert_counts import round_without_tokens
from mcpmq.calibrate.forward import (
    CalibrationRun,
    block_component,
    is_head,
    open_calibration,
    run_calibration,
)
from mcpmq.calibrate.observed_samples import ObservedSamples, SampleSize
from mcpmq.calibrate.requirements import check_stats, has_tokens, needs_calibration, no_tokens_error
from mcpmq.calibrate.selection import BlockLoss, candidates, held_out_samples, hessian_mse, output_mse
from mcpmq.calibrate.stagewise import StagewiseRounder
from mcpmq.dataset import Sample
from mcpmq.execution.device import CPU
from mcpmq.execution.layerwise import Replay
from mcpmq.execution.torch_model import StoredWeight
from mcpmq.families.blocks import block_name, is_expert
from mcpmq.families.family import TensorSpec
from mcpmq.plan import Plan, TensorPlan
from mcpmq.quantized_model import BlockWriter, read_weight, write_block
from mcpmq.recipe import TokenWeights
from mcpmq.rounding.fold import find_folds
from mcpmq.rounding.smoothing import SmoothingScales, scale_stats, weight_scalings
from mcpmq.system.freed_memory import release_freed_memory
from mcpmq.system.progress import Progress
from mcpmq.system.safetensors_file import read_header


def calibrate_sequentially(
    plan: Plan,
    samples: Sequence[Sample],
    files: Mapping[str, Path],
    progress: Progress,
    device: torch.device = CPU,
    write: BlockWriter = write_block,
    memory_limit: int | None = None,
    exchange: Exchange = ONE_PROCESS,
) -> None:
    """Write the files of all blocks that need calibration; a block whose file exists is loaded from it.

    Peak memory on the device: one block in float32, its Hessians (4 bytes x columns squared for every distinct input),
    the working memory for one weight, the pixels of every sample, and its hidden states before one block in float32.
    Hidden states that do not fit into memory, or into the bytes of `memory_limit`, are in a file beside the blocks.
    Where methods are selected: also two copies of the block's codes, and its outputs for the held-out samples. With
    targets of the original model hidden states are there twice, and four more in a block, but one Hessian at a time.

    With several processes all call this function with all samples; `files` are those of process 0, which writes them.

    Raises:
        DatasetError: a weight has no inputs, or inputs that are not finite, or the samples do not fit into memory.
        CheckpointError: a weight is not finite.
    """
    with_hessian = [tensor.name for tensor in plan.tensors if needs_calibration(plan, tensor)]
    with_original, folder = plan.recipe.has_model_targets, next(iter(files.values())).parent
    options = device, with_hessian, with_original, memory_limit, folder, exchange
    with ExitStack() as stack:
        run = stack.enter_context(open_calibration(plan.checkpoint, samples, progress, *options))
        if device != CPU:
            write = stack.enter_context(BackgroundWriter.open(write))
        quantizer = _SequentialQuantizer(
            run,
            plan,
            {tensor.name: tensor for tensor in plan.tensors},
            files,
            _observed_samples(run),
            write,
            frozenset(broadcast(exchange, lambda: [name for name, file in files.items() if file.is_file()])),
        )
        run_calibration(run, quantizer, "calibrating", quantizer.samples.held_out, with_original)
    if exchange.rank == 0:
        quantizer.check_complete()


def _observed_samples(run: CalibrationRun) -> ObservedSamples:
    """Return the sizes of the samples of all processes, and those that are held out."""
    architecture = run.checkpoint.architecture
    own = {at: SampleSize.of(one, architecture) for at, one in zip(run.indices, run.inputs, strict=True)}
    found = {at: size for part in run.exchange.gather(own) for at, size in part.items()}
    sizes = [found[at] for at in sorted(found)]
    return ObservedSamples(sizes, held_out_samples([size.modality for size in sizes]))


@dataclass(frozen=True, slots=True)
class _SequentialQuantizer:
    """Calibration visitor that writes one file per block."""

    run: CalibrationRun
    plan: Plan
    tensors: Mapping[str, TensorPlan]  # by common name
    files: Mapping[str, Path]  # by block
    samples: ObservedSamples  # of all processes; those that are held out compare methods and shrinkages
    write: BlockWriter
    finished: frozenset[str]  # blocks whose files exist when the run begins

    def load(self, block: nn.Module) -> None:
        """Load the quantized weights of a block if its file exists and only they are needed, else the original ones."""
        if self._is_finished(block) and not self.plan.recipe.has_model_targets:
            self._load_quantized(block)
        else:
            self.run.load_original(block)

    def visit(self, block: nn.Module, replay: Replay) -> None:
        """Quantize a block, write its file, and load the quantized weights.

        Samples in the original model pass through the original weights.
        """
        with_original, quantized = self.plan.recipe.has_model_targets, None
        if self._is_finished(block):
            if not with_original:
                return
        else:
            quantized = self._quantize(block, replay)
        if with_original:
            self._advance_original(block, replay)
        self._load_quantized(block, quantized)

    def _advance_original(self, block: nn.Module, replay: Replay) -> None:
        """Let the samples of the original model that still wait pass through its weights; unload the block."""
        if set(replay.waiting()).intersection(self.run.original_samples):
            if not self._is_finished(block):
                self.run.load_original(block)
            replay.advance(self.run.original_samples)
        self.run.model.unload_block(block)  # before the other weights are read

    def _quantize(self, block: nn.Module, replay: Replay) -> Mapping[str, StoredWeight] | None:
        """Write the file of a block that has its original weights; afterwards it has none.

        Return the quantized weights if they need not be read from the file: on devices other than the CPU, and in
        processes that have no files.
        """
        plan, name, in_stages = self.plan, _name(self.run, block), self._is_rounded_in_stages(block)
        methods = candidates(plan.recipe, can_smooth=name in plan.smoothing_mappings)
        loss = self._block_loss(block, replay) if len(methods) > 1 else None
        methods = methods if loss else methods[:1]
        stats: BlockStats = {}
        if not in_stages or methods[-1].smoothing:
            stats = self._collect_stats(block, partial(replay, self._observed(block)), held_out_in_gram=not loss)
        if is_expert(name) and broadcast(self.run.exchange, lambda: not stats):
            return self._quantize_without_tokens(name)
        weights = self._original_weights(block)
        folds, scales = find_folds(plan, name, weights), []
        if folds and stats:
            stats |= scale_stats(stats, folds)
        if methods[-1].smoothing:
            search = partial(smoothing_scales, plan, name, _apply(folds, weights), stats, self.run.parallel_map)
            scales = broadcast(self.run.exchange, search)
        methods = tuple(method for method in methods if scales or not method.smoothing)
        on_device = self.run.model.device != CPU
        loaded = weights if on_device and not is_head(self.run.model, block) else {}
        rounder: Rounder = StatsRounder(plan, name, stats, scales, self.run.threads, loaded, self.run.exchange)
        if in_stages:
            stats.clear()
            rounder = StagewiseRounder.create(
                *(self.run, plan, name, block, self._matrices(block), replay, self._observed(block)),
                held_out_in_gram=not loss,
            )
        del weights
        self.run.model.unload_block(block)  # frees the float weights that the rounder does not need
        release_freed_memory()
        quantized, result = BlockQuantizer(plan, name, rounder, scales, folds).quantize(methods, loss)
        if self.run.exchange.rank:
            return quantized
        self.write(self.files[name], quantized, result)
        return quantized if on_device else None

    def _quantize_without_tokens(self, expert: str) -> Mapping[str, StoredWeight] | None:
        """Write the file of an expert that is rounded to nearest; return its weights as `_quantize` does."""
        quantized, result = broadcast(self.run.exchange, partial(round_without_tokens, self.plan, expert))
        if self.run.exchange.rank:
            return quantized
        self.write(self.files[expert], quantized, result)
        return None

    def _is_rounded_in_stages(self, block: nn.Module) -> bool:
        """Return whether the targets of a block are outputs of the original model.

        Those of the head are its own. So are those of an expert: in the original model it may get other tokens.
        """
        is_own = is_head(self.run.model, block) or is_expert(_name(self.run, block))
        return self.plan.recipe.has_model_targets and not is_own

    def _observed(self, block: nn.Module) -> list[int]:
        """Return the numbers of the samples of this process that calibrate a block."""
        columns = (self.tensors[spec.name].matrix_shape[1] for spec in self._matrices(block).values())
        chosen = self.samples.of_block(block_component(self.run.model, block), max(columns, default=0))
        return [number for number, at in enumerate(self.run.indices) if at in chosen]

    def _matrices(self, block: nn.Module) -> dict[str, TensorSpec]:
        """Return the matrices of a block that need calibration, by parameter."""
        return {
            name: spec
            for name, spec in self.run.model.blocks[block].items()
            if needs_calibration(self.plan, self.tensors[spec.name])
        }

    def _collect_stats(self, block: nn.Module, replay: Callable[[], None], held_out_in_gram: bool = True) -> BlockStats:
        """Return the statistics of all matrices of a block; of an expert without tokens none."""
        specs = self._matrices(block)
        stats = self.run.collect_stats(block, specs, replay, self._token_weights(), held_out_in_gram)
        if self.run.exchange.rank:
            return {}
        if is_expert(_name(self.run, block)) and not all(map(has_tokens, stats.values())):
            return {}
        for spec in specs.values():
            check_stats(spec, stats[spec.name], self.run.num_samples)
        return stats

    def _block_loss(self, block: nn.Module, replay: Replay) -> BlockLoss | None:
        """Return the loss on held-out samples; of a block that is rounded in stages, against the original model.

        None for an expert that no token of held-out samples is routed to.
        """
        held_out = [one for one in self._observed(block) if self.run.indices[one] in self.samples.held_out]
        model, exchange, quantized = self.run.model, self.run.exchange, partial(replay, held_out)
        routed = set(held_out).intersection(replay.waiting())
        if is_expert(_name(self.run, block)) and not any(exchange.gather(bool(routed))):
            return None
        if not is_head(model, block):
            modalities = self.run.modalities(block, self._token_weights().model_dump())
            indices = [self.run.original_samples[number] for number in held_out]
            original = partial(replay, indices) if self._is_rounded_in_stages(block) else quantized
            return output_mse(model, block, original, quantized, modalities, exchange)
        [spec] = model.blocks[block].values()
        found = self._collect_stats(block, quantized)
        if exchange.rank:
            return lambda *_: broadcast(exchange, lambda: 0.0)
        [stats] = found[spec.name]
        loss = hessian_mse(self.plan.checkpoint, spec, stats, self.run.parallel_map)
        return lambda *arguments: broadcast(exchange, lambda: loss(*arguments))

    def check_complete(self) -> None:
        """Round the experts that no sample passed through to nearest.

        Raises:
            DatasetError: no sample passed through another block.
        """
        for name, file in self.files.items():
            if is_expert(name) and not file.is_file():
                self.write(file, *round_without_tokens(self.plan, name))
            if not file.is_file():
                tensors = self.plan.blocks[name]
                missing = next(tensor.name for tensor in tensors if needs_calibration(self.plan, tensor))
                raise no_tokens_error(missing, self.run.num_samples)

    def _original_weights(self, block: nn.Module) -> dict[str, Tensor]:
        """Return the loaded weights of a block by common name, [out, in]."""
        values = {name: value.detach() for name, value in block.named_parameters()}
        specs = self.run.model.blocks[block]
        return {spec.name: values[name].T if spec.transposed else values[name] for name, spec in specs.items()}

    def _token_weights(self) -> TokenWeights:
        return self.plan.recipe.token_weights or TokenWeights()

    def _is_finished(self, block: nn.Module) -> bool:
        return _name(self.run, block) in self.finished

    def _load_quantized(self, block: nn.Module, quantized: Mapping[str, StoredWeight] | None = None) -> None:
        if is_head(self.run.model, block):
            return
        if quantized is not None:
            self.run.load_block(block, lambda spec: quantized[spec.name])
            return
        file, specs = self.files[_name(self.run, block)], self.run.model.blocks[block].values()
        read = partial(_read_weight, file, self.tensors)
        if self.run.exchange.size > 1 and self._is_finished(block):
            stored = broadcast(self.run.exchange, lambda: {spec.name: read(spec) for spec in specs})
            self.run.load_block(block, lambda spec: stored[spec.name])
        elif self.run.inputs:
            self.run.load_block(block, read)


def _read_weight(file: Path, tensors: Mapping[str, TensorPlan], spec: TensorSpec) -> StoredWeight:
    return read_weight(read_header(file), spec, tensors[spec.name].scheme)


def _apply(folds: Sequence[SmoothingScales], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    scaling = weight_scalings(folds)
    return {name: scaling[name].apply(weight) if name in scaling else weight for name, weight in weights.items()}


def _name(run: CalibrationRun, block: nn.Module) -> str:
    return block_name(next(iter(run.model.blocks[block].values())).name)
