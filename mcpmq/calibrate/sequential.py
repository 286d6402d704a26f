"""Rounding by sight: calibration samples pass through the model block by block, each block is rounded by what it sees,
and later blocks see what the rounded ones make of the samples.

Matrix products go to all threads in pieces of a fixed size, everything else is computed on one: the same inputs give
the same bytes with any number of threads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mcpmq.calibrate.block import Stats, Trial, scales_of
from mcpmq.calibrate.forward import (
    HEAD,
    LANGUAGE,
    component_of,
    fed_by,
    is_head,
    labels_of,
    pass_samples,
    read_samples,
)
from mcpmq.calibrate.memory import refuse_what_does_not_fit
from mcpmq.calibrate.observers import Labels, observe
from mcpmq.calibrate.selection import Judge, by_gram, by_outputs, candidates, held_out
from mcpmq.dataset import CalibrationSet, Sample
from mcpmq.errors import CalibrationError
from mcpmq.execution import torch_model
from mcpmq.execution.chunked_matmul import Each, all_threads
from mcpmq.execution.device import CPU, told
from mcpmq.execution.layerwise import Replay
from mcpmq.execution.torch_model import NativeModel
from mcpmq.plan import Plan, Step, block_of
from mcpmq.quantized_model import read_weight, write_block
from mcpmq.recipe import Modalities
from mcpmq.rounding.stats import LayerStats
from mcpmq.system.progress import Progress
from mcpmq.system.safetensors_file import read_header


def needs_samples(plan: Plan, step: Step) -> bool:
    """Whether what a weight sees decides how it is rounded, which scales it takes, or over which range its inputs are
    rounded: a matrix on a grid."""
    asked = plan.recipe.round != "rtn" or step.name in plan.smoothed or step.activation is not None
    return asked and step.on_a_grid and step.spec.role == "matrix"


def refuse_unseen(plan: Plan, calibration: CalibrationSet | None) -> tuple[Sample, ...]:
    """The samples that a plan needs: none if it looks at nothing.

    Raises:
        CalibrationError: it needs a calibration set and there is none, it quantizes what sees only images and no
            sample has one, or it chooses by held-out samples and there are too few to hold one out.
    """
    needing = [step for step in plan.steps if needs_samples(plan, step)]
    if not needing:
        return ()
    if calibration is None:
        raise CalibrationError(
            f"recipe `{plan.recipe.name}` rounds {len(needing)} weights by what they see, and no calibration set was"
            " given",
            "name a folder of images and questions with `--calibration`",
        )
    if not any(sample.image for sample in calibration):
        for step in needing:
            if step.spec.component not in (HEAD, LANGUAGE):
                raise _unseen(step.name, len(calibration))
    if plan.recipe.chooses:
        _refuse_lone([bool(sample.image) for sample in calibration])
    return calibration.samples


def _refuse_lone(with_image: list[bool]) -> None:
    for kind, what in ((True, "with"), (False, "without")):
        if with_image.count(kind) == 1:
            raise CalibrationError(
                f"the calibration set has one sample {what} an image, which cannot both decide and judge",
                f"add another sample {what} an image, or remove this one",
            )


def _unseen(name: str, samples: int) -> CalibrationError:
    return CalibrationError(
        f"`{name}` saw no token of the {samples} calibration samples",
        f'add samples that pass through it, or write `"{name}" = "keep"` last in the recipe',
    )


def round_by_sight(
    plan: Plan, samples: Sequence[Sample], files: Mapping[str, Path], progress: Progress, device: torch.device = CPU
) -> None:
    """Write the files of all blocks that need samples; a block that has its file is filled from it and passed.

    In the memory of the device: one block in float32, its Gram matrices (4 bytes x columns squared for every distinct
    input), what rounding one weight takes, and of every sample its pixels and its hidden states before one block in
    float32. Where there is a choice, also the block's codes twice and what it puts out for the fifth of the samples
    that judge.

    Raises:
        CalibrationError: a weight saw nothing, or what is not finite; or the samples do not fit into memory.
        CheckpointError: a weight is not finite.
    """
    checkpoint = plan.checkpoint
    processor = checkpoint.family.processor(checkpoint.path)
    inputs = read_samples(processor, samples, progress)
    seeing = [step.name for step in plan.steps if needs_samples(plan, step)]
    refuse_what_does_not_fit(checkpoint, inputs, seeing, device)
    model = torch_model.build(checkpoint.family, checkpoint.config, checkpoint.specs, device)
    steps = {step.name: step for step in plan.steps}
    ticks = iter(progress(list(model.blocks), told("calibrating", device)))
    threads = torch.get_num_threads()
    judges = held_out([one.kind for one in inputs])
    with all_threads(device) as each, torch.inference_mode():
        rounding = _Rounding(plan, steps, model, files, len(inputs), judges, threads, each, ticks)
        pass_samples(model, processor, inputs, each, rounding.load, rounding.visit)
    rounding.finish()


@dataclass(frozen=True, slots=True)
class _Rounding:
    """The blocks of a native model on their way to their files."""

    plan: Plan
    steps: Mapping[str, Step]  # by common name
    model: NativeModel
    files: Mapping[str, Path]
    samples: int
    judges: frozenset[int]  # numbers of the samples that are held out where there is a choice
    threads: int  # of the rounder
    each: Each
    ticks: Iterator[nn.Module]  # one for every block that samples pass

    def load(self, block: nn.Module) -> None:
        """Fill a block with what its file holds, or with the original's weights."""
        next(self.ticks, None)
        if self._file(block).is_file():
            self._fill_from_file(block)
        elif not is_head(self.model, block):
            checkpoint = self.plan.checkpoint
            self.model.fill(block, lambda spec: torch_model.floats_of(checkpoint.load(spec), spec))

    def visit(self, block: nn.Module, replay: Replay) -> None:
        """Round a block by what it sees, write its file, and fill it with what the file holds."""
        file = self._file(block)
        if file.is_file():
            return
        plan, name = self.plan, self._name(block)
        tries, judge = candidates(plan.recipe, smoothing=name in plan.folds), None
        if len(tries) == 1:
            stats = self._observe(block, replay)
        else:
            stats = self._observe(block, partial(replay, frozenset(range(self.samples)) - self.judges))
            judge = self._judge(block, partial(replay, self.judges))
        scales = scales_of(plan, name, self._weights(block), stats, self.each) if tries[-1].smoothing else []
        self.model.empty(block)  # its floats make room for those of rounding
        tries = tuple(one for one in tries if scales or not one.smoothing)
        write_block(file, *Trial(plan, name, stats, scales, self.threads).best(tries, judge))
        self._fill_from_file(block)

    def _observe(self, block: nn.Module, replay: Callable[[], None]) -> Stats:
        names = {name: spec for name, spec in self.model.blocks[block].items() if self._needs(spec.name)}
        feeders = {name: fed_by(self.plan.checkpoint.family, spec, name) for name, spec in names.items()}
        seen = observe(block, feeders, replay, self._labels(block), self.each)
        stats = {spec.name: seen.pop(name, ()) for name, spec in names.items()}
        for name, parts in stats.items():
            self._refuse_unseen(name, parts)
        return stats

    def _judge(self, block: nn.Module, replay: Callable[[], None]) -> Judge:
        if not is_head(self.model, block):
            return by_outputs(self.model, block, replay, self._labels(block))
        [spec] = self.model.blocks[block].values()
        [stats] = self._observe(block, replay)[spec.name]
        return by_gram(self.plan.checkpoint, spec, stats, self.each)

    def finish(self) -> None:
        """Close the progress; refuse what no sample passed."""
        for _ in self.ticks:
            pass
        for name, file in self.files.items():
            if not file.is_file():
                raise _unseen(
                    next(step.name for step in self.plan.blocks[name] if self._needs(step.name)), self.samples
                )

    def _weights(self, block: nn.Module) -> dict[str, Tensor]:
        """What a block holds, by common name, [out, in]."""
        values = {name: value.detach() for name, value in block.named_parameters()}
        specs = self.model.blocks[block]
        return {spec.name: values[name].T if spec.transposed else values[name] for name, spec in specs.items()}

    def _labels(self, block: nn.Module) -> Labels:
        modalities = (self.plan.recipe.modalities or Modalities()).model_dump()
        return labels_of(component_of(self.model, block), modalities, self.model.device)

    def _needs(self, name: str) -> bool:
        return needs_samples(self.plan, self.steps[name])

    def _name(self, block: nn.Module) -> str:
        return block_of(next(iter(self.model.blocks[block].values())).name)

    def _file(self, block: nn.Module) -> Path:
        return self.files[self._name(block)]

    def _fill_from_file(self, block: nn.Module) -> None:
        if is_head(self.model, block):
            return
        entries = read_header(self._file(block))
        self.model.fill(
            block, lambda spec: torch_model.floats_of(read_weight(entries, spec, self.steps[spec.name].scheme), spec)
        )

    def _refuse_unseen(self, name: str, parts: tuple[LayerStats, ...]) -> None:
        if not parts or any(part.weight == 0 for part in parts):
            raise _unseen(name, self.samples)
        if not all(part.gram.diagonal().isfinite().all() for part in parts):
            raise CalibrationError(
                f"`{name}` saw values that are not finite", "the checkpoint overflows on a sample, or is damaged"
            )
