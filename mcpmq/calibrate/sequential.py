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
from mcpmq.calibrate.expert_counts import round_without_tokens
from mcpmq.calibrate.forward import (
    CalibrationRun,
    check_stats,
    has_tokens,
    is_head,
    no_tokens_error,
    open_calibration,
    run_calibration,
)
from mcpmq.calibrate.modalities import encoder_modality
from mcpmq.calibrate.selection import BlockLoss, candidates, held_out_samples, hessian_mse, output_mse
from mcpmq.calibrate.stagewise import StagewiseRounder
from mcpmq.dataset import Sample, SampleSet
from mcpmq.errors import DatasetError
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
from mcpmq.rounding.stats import AUDIO, VISION
from mcpmq.system.progress import Progress
from mcpmq.system.safetensors_file import read_header


def needs_calibration(plan: Plan, tensor: TensorPlan) -> bool:
    """Return whether a weight's codes, smoothing scales or activation range depend on calibration samples."""
    calibrated = plan.recipe.method != "rtn" or tensor.name in plan.smoothed_weights or tensor.has_input_range
    return calibrated and tensor.is_quantized and tensor.spec.role == "matrix"


def require_calibration(plan: Plan, calibration: SampleSet | None) -> tuple[Sample, ...]:
    """Return the samples that a plan needs, none if no weight needs calibration.

    Raises:
        DatasetError: the plan needs a calibration set and none was given; it quantizes weights that only process
            images or audio and no sample has one; or it selects methods on held-out samples and there are too few.
    """
    calibrated = [tensor for tensor in plan.tensors if needs_calibration(plan, tensor)]
    if not calibrated:
        return ()
    if calibration is None:
        raise DatasetError(
            f"recipe `{plan.recipe.name}` needs calibration for {len(calibrated)} weights, and no calibration set was"
            " given",
            "pass a directory of images and questions with `--calibration`",
        )
    present = {
        VISION: any(sample.has_vision for sample in calibration),
        AUDIO: any(sample.audio for sample in calibration),
    }
    for tensor in calibrated:
        if not present.get(encoder_modality(tensor.spec.component), True):
            raise no_tokens_error(tensor.name, len(calibration))
    if plan.recipe.selects_per_block:
        _check_held_out([sample.has_vision for sample in calibration])
    return calibration.samples


def _check_held_out(has_image: list[bool]) -> None:
    for value, kind in ((True, "image"), (False, "text-only")):
        if has_image.count(value) == 1:
            raise DatasetError(
                f"the calibration set has only one {kind} sample; at least two are needed because one is held out",
                f"add another {kind} sample, or remove this one",
            )


def calibrate_sequentially(
    plan: Plan,
    samples: Sequence[Sample],
    files: Mapping[str, Path],
    progress: Progress,
    device: torch.device = CPU,
    write: BlockWriter = write_block,
    memory_limit: int | None = None,
) -> None:
    """Write the files of all blocks that need calibration; a block whose file exists is loaded from it.

    Peak memory on the device: one block in float32, its Hessians (4 bytes x columns squared for every distinct input),
    the working memory for one weight, the pixels of every sample, and its hidden states before one block in float32.
    Hidden states that do not fit into memory, or into the bytes of `memory_limit`, are in a file beside the blocks.
    Where methods are selected: also two copies of the block's codes, and its outputs for the held-out fifth of the
    samples. With the outputs of the original model as targets, hidden states and the float32 block are there twice,
    and one input at a time has a Hessian and the products of its drift.

    Raises:
        DatasetError: a weight has no inputs, or inputs that are not finite, or the samples do not fit into memory.
        CheckpointError: a weight is not finite.
    """
    with_hessian = [tensor.name for tensor in plan.tensors if needs_calibration(plan, tensor)]
    with_original, folder = plan.recipe.has_model_targets, next(iter(files.values())).parent
    options = device, with_hessian, with_original, memory_limit, folder
    with ExitStack() as stack:
        run = stack.enter_context(open_calibration(plan.checkpoint, samples, progress, *options))
        if device != CPU:
            write = stack.enter_context(BackgroundWriter.open(write))
        quantizer = _SequentialQuantizer(
            run,
            plan,
            {tensor.name: tensor for tensor in plan.tensors},
            files,
            held_out_samples([sample.modality for sample in run.inputs]),
            write,
        )
        run_calibration(run, quantizer, "calibrating", quantizer.held_out, with_original)
    quantizer.check_complete()


@dataclass(frozen=True, slots=True)
class _SequentialQuantizer:
    """Calibration visitor that writes one file per block."""

    run: CalibrationRun
    plan: Plan
    tensors: Mapping[str, TensorPlan]  # by common name
    files: Mapping[str, Path]  # by block
    held_out: frozenset[int]  # indices of the samples that compare methods and shrinkages
    write: BlockWriter

    def load(self, block: nn.Module) -> None:
        """Load the quantized weights of a block if its file exists and only they are needed, else the original ones."""
        if self._file(block).is_file() and not self.plan.recipe.has_model_targets:
            self._load_quantized(block)
        else:
            self.run.load_original(block)

    def visit(self, block: nn.Module, replay: Replay) -> None:
        """Quantize a block, write its file, and load the quantized weights.

        Samples in the original model pass through the original weights.
        """
        with_original, quantized = self.plan.recipe.has_model_targets, None
        if self._file(block).is_file():
            if not with_original:
                return
        else:
            quantized = self._quantize(block, replay)
            if with_original:
                self.run.load_original(block)
        if with_original:
            replay.advance(self.run.original_samples)
            self.run.model.unload_block(block)  # before the other weights are read
        self._load_quantized(block, quantized)

    def _quantize(self, block: nn.Module, replay: Replay) -> Mapping[str, StoredWeight] | None:
        """Write the file of a block that has its original weights; afterwards it has none.

        Return the quantized weights if they need not be read from the file: on devices other than the CPU.
        """
        plan, name, in_stages = self.plan, _name(self.run, block), self._is_rounded_in_stages(block)
        methods = candidates(plan.recipe, can_smooth=name in plan.smoothing_mappings)
        loss = self._block_loss(block, replay) if len(methods) > 1 else None
        methods = methods if loss else methods[:1]
        stats: BlockStats = {}
        if not in_stages or methods[-1].smoothing:
            stats = self._collect_stats(block, partial(replay, range(len(self.run.inputs))), held_out_in_gram=not loss)
        if not stats and is_expert(name):
            self.write(self._file(block), *round_without_tokens(plan, name))
            return None
        weights = self._original_weights(block)
        folds, scales = find_folds(plan, name, weights), []
        if folds:
            stats |= scale_stats(stats, folds)
        if methods[-1].smoothing:
            scales = smoothing_scales(plan, name, _apply(folds, weights), stats, self.run.parallel_map)
        methods = tuple(method for method in methods if scales or not method.smoothing)
        on_device = self.run.model.device != CPU
        loaded = weights if on_device and not is_head(self.run.model, block) else {}
        rounder: Rounder = StatsRounder(plan, name, stats, scales, self.run.threads, loaded)
        if in_stages:
            stats.clear()
            rounder = StagewiseRounder.create(
                *(self.run, plan, name, block, self._matrices(block), replay), held_out_in_gram=not loss
            )
        del weights
        self.run.model.unload_block(block)  # frees the float weights that the rounder does not need
        quantized, result = BlockQuantizer(plan, name, rounder, scales, folds).quantize(methods, loss)
        self.write(self._file(block), quantized, result)
        return quantized if on_device else None

    def _is_rounded_in_stages(self, block: nn.Module) -> bool:
        """Return whether the targets of a block are outputs of the original model.

        Those of the head are its own. So are those of an expert: in the original model it may get other tokens.
        """
        is_own = is_head(self.run.model, block) or is_expert(_name(self.run, block))
        return self.plan.recipe.has_model_targets and not is_own

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
        if is_expert(_name(self.run, block)) and not all(map(has_tokens, stats.values())):
            return {}
        for spec in specs.values():
            check_stats(spec, stats[spec.name], len(self.run.inputs))
        return stats

    def _block_loss(self, block: nn.Module, replay: Replay) -> BlockLoss | None:
        """Return the loss on held-out samples; of a block that is rounded in stages, against the original model.

        None for an expert that no token of held-out samples is routed to.
        """
        model, quantized = self.run.model, partial(replay, self.held_out)
        if is_expert(_name(self.run, block)) and not self.held_out.intersection(replay.waiting()):
            return None
        if not is_head(model, block):
            modalities = self.run.modalities(block, self._token_weights().model_dump())
            indices = [self.run.original_samples[index] for index in self.held_out]
            original = partial(replay, indices) if self._is_rounded_in_stages(block) else quantized
            return output_mse(model, block, original, quantized, modalities)
        [spec] = model.blocks[block].values()
        [stats] = self._collect_stats(block, quantized)[spec.name]
        return hessian_mse(self.plan.checkpoint, spec, stats, self.run.parallel_map)

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
                raise no_tokens_error(missing, len(self.run.inputs))

    def _original_weights(self, block: nn.Module) -> dict[str, Tensor]:
        """Return the loaded weights of a block by common name, [out, in]."""
        values = {name: value.detach() for name, value in block.named_parameters()}
        specs = self.run.model.blocks[block]
        return {spec.name: values[name].T if spec.transposed else values[name] for name, spec in specs.items()}

    def _token_weights(self) -> TokenWeights:
        return self.plan.recipe.token_weights or TokenWeights()

    def _file(self, block: nn.Module) -> Path:
        return self.files[_name(self.run, block)]

    def _load_quantized(self, block: nn.Module, quantized: Mapping[str, StoredWeight] | None = None) -> None:
        if is_head(self.run.model, block):
            return
        if quantized is not None:
            self.run.load_block(block, lambda spec: quantized[spec.name])
            return
        entries = read_header(self._file(block))
        self.run.load_block(block, lambda spec: read_weight(entries, spec, self.tensors[spec.name].scheme))


def _apply(folds: Sequence[SmoothingScales], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    scaling = weight_scalings(folds)
    return {name: scaling[name].apply(weight) if name in scaling else weight for name, weight in weights.items()}


def _name(run: CalibrationRun, block: nn.Module) -> str:
    return block_name(next(iter(run.model.blocks[block].values())).name)
