"""Calibrate and quantize one block at a time; the next block gets the quantized block's outputs.

Matrix products run on all threads in chunks of a fixed size, all other operations on one thread: equal inputs give
equal bytes on any number of threads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mcpmq.calibrate.block import BlockQuantizer, BlockStats, smoothing_scales
from mcpmq.calibrate.forward import HEAD, LANGUAGE, CalibrationRun, is_head, open_calibration, run_calibration
from mcpmq.calibrate.selection import BlockLoss, candidates, held_out_samples, hessian_mse, output_mse
from mcpmq.dataset import Sample, SampleSet
from mcpmq.errors import DatasetError
from mcpmq.execution.device import CPU
from mcpmq.execution.layerwise import Replay
from mcpmq.execution.torch_model import to_float
from mcpmq.plan import Plan, TensorPlan, block_name
from mcpmq.quantized_model import BlockWriter, read_weight, write_block
from mcpmq.recipe import TokenWeights
from mcpmq.rounding.fold import find_folds
from mcpmq.rounding.smoothing import SmoothingScales, scale_stats, weight_scalings
from mcpmq.system.progress import Progress
from mcpmq.system.safetensors_file import read_header


def needs_calibration(plan: Plan, tensor: TensorPlan) -> bool:
    """Return whether a weight's codes, smoothing scales or activation range depend on calibration samples."""
    calibrated = plan.recipe.method != "rtn" or tensor.name in plan.smoothed_weights or tensor.activation is not None
    return calibrated and tensor.is_quantized and tensor.spec.role == "matrix"


def require_calibration(plan: Plan, calibration: SampleSet | None) -> tuple[Sample, ...]:
    """Return the samples that a plan needs, none if no weight needs calibration.

    Raises:
        DatasetError: the plan needs a calibration set and none was given; it quantizes weights that only process
            images and no sample has one; or it selects methods on held-out samples and there are too few.
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
    if not any(sample.image for sample in calibration):
        for tensor in calibrated:
            if tensor.spec.component not in (HEAD, LANGUAGE):
                raise _no_tokens_error(tensor.name, len(calibration))
    if plan.recipe.selects_per_block:
        _check_held_out([bool(sample.image) for sample in calibration])
    return calibration.samples


def _check_held_out(has_image: list[bool]) -> None:
    for value, kind in ((True, "image"), (False, "text-only")):
        if has_image.count(value) == 1:
            raise DatasetError(
                f"the calibration set has only one {kind} sample; at least two are needed because one is held out",
                f"add another {kind} sample, or remove this one",
            )


def _no_tokens_error(name: str, samples: int) -> DatasetError:
    return DatasetError(
        f"`{name}` receives no token of the {samples} calibration samples, or only tokens of weight 0",
        f'add samples that use it, or write `"{name}" = "keep"` last in the recipe',
    )


def calibrate_sequentially(
    plan: Plan,
    samples: Sequence[Sample],
    files: Mapping[str, Path],
    progress: Progress,
    device: torch.device = CPU,
    write: BlockWriter = write_block,
) -> None:
    """Write the files of all blocks that need calibration; a block whose file exists is loaded from it.

    Peak memory on the device: one block in float32, its Hessians (4 bytes x columns squared for every distinct input),
    the working memory for one weight, the pixels of every sample, and its hidden states before one block in float32.
    Where methods are selected: also two copies of the block's codes, and its outputs for the held-out fifth of the
    samples.

    Raises:
        DatasetError: a weight has no inputs, or inputs that are not finite, or the samples do not fit into memory.
        CheckpointError: a weight is not finite.
    """
    with_hessian = [tensor.name for tensor in plan.tensors if needs_calibration(plan, tensor)]
    with open_calibration(plan.checkpoint, samples, progress, device, with_hessian) as run:
        quantizer = _SequentialQuantizer(
            run,
            plan,
            {tensor.name: tensor for tensor in plan.tensors},
            files,
            held_out_samples([sample.modality for sample in run.inputs]),
            write,
        )
        run_calibration(run, quantizer, "calibrating", quantizer.held_out)
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
        """Load the quantized weights of a block if its file exists, else the original weights."""
        if self._file(block).is_file():
            self._load_quantized(block)
        else:
            self.run.load_original(block)

    def visit(self, block: nn.Module, replay: Replay) -> None:
        """Quantize a block, write its file, and load the quantized weights."""
        file = self._file(block)
        if file.is_file():
            return
        plan, name = self.plan, _name(self.run, block)
        methods, loss = candidates(plan.recipe, can_smooth=name in plan.smoothing_mappings), None
        if len(methods) == 1:
            stats = self._collect_stats(block, replay)
        else:
            stats = self._collect_stats(block, replay, held_out_in_gram=False)
            loss = self._block_loss(block, partial(replay, self.held_out))
        weights = self._original_weights(block)
        folds, scales = find_folds(plan, name, weights), []
        if folds:
            stats |= scale_stats(stats, folds)
            weights = _apply(folds, weights)
        if methods[-1].smoothing:
            scales = smoothing_scales(plan, name, weights, stats, self.run.parallel_map)
        del weights
        self.run.model.unload_block(block)  # frees the float weights for the quantizer
        methods = tuple(method for method in methods if scales or not method.smoothing)
        self.write(file, *BlockQuantizer(plan, name, stats, scales, self.run.threads, folds).quantize(methods, loss))
        self._load_quantized(block)

    def _collect_stats(self, block: nn.Module, replay: Callable[[], None], held_out_in_gram: bool = True) -> BlockStats:
        specs = {
            name: spec
            for name, spec in self.run.model.blocks[block].items()
            if needs_calibration(self.plan, self.tensors[spec.name])
        }
        stats = self.run.collect_stats(block, specs, replay, self._token_weights(), held_out_in_gram)
        for name, parts in stats.items():
            if not parts or any(part.total_weight == 0 for part in parts):
                raise _no_tokens_error(name, len(self.run.inputs))
        return stats

    def _block_loss(self, block: nn.Module, replay: Callable[[], None]) -> BlockLoss:
        model = self.run.model
        if not is_head(model, block):
            return output_mse(model, block, replay, self.run.modalities(block, self._token_weights().model_dump()))
        [spec] = model.blocks[block].values()
        [stats] = self._collect_stats(block, replay)[spec.name]
        return hessian_mse(self.plan.checkpoint, spec, stats, self.run.parallel_map)

    def check_complete(self) -> None:
        """Raise DatasetError if a block has no file because no sample passed through it."""
        for name, file in self.files.items():
            if not file.is_file():
                tensors = self.plan.blocks[name]
                missing = next(tensor.name for tensor in tensors if needs_calibration(self.plan, tensor))
                raise _no_tokens_error(missing, len(self.run.inputs))

    def _original_weights(self, block: nn.Module) -> dict[str, Tensor]:
        """Return the loaded weights of a block by common name, [out, in]."""
        values = {name: value.detach() for name, value in block.named_parameters()}
        specs = self.run.model.blocks[block]
        return {spec.name: values[name].T if spec.transposed else values[name] for name, spec in specs.items()}

    def _token_weights(self) -> TokenWeights:
        return self.plan.recipe.token_weights or TokenWeights()

    def _file(self, block: nn.Module) -> Path:
        return self.files[_name(self.run, block)]

    def _load_quantized(self, block: nn.Module) -> None:
        if is_head(self.run.model, block):
            return
        entries = read_header(self._file(block))
        self.run.model.load_block(
            block, lambda spec: to_float(read_weight(entries, spec, self.tensors[spec.name].scheme), spec)
        )


def _apply(folds: Sequence[SmoothingScales], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    scaling = weight_scalings(folds)
    return {
        name: scaling[name].apply(weight.cpu()).to(weight.device) if name in scaling else weight
        for name, weight in weights.items()
    }


def _name(run: CalibrationRun, block: nn.Module) -> str:
    return block_name(next(iter(run.model.blocks[block].values())).name)
