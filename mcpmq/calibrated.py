"""Rounding by sight: calibration samples pass through the model block by block, each block is rounded by what it sees,
and later blocks see what the rounded ones make of the samples.

Matrix products go to all threads in pieces of a fixed size, everything else is computed on one: the same inputs give
the same bytes with any number of threads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcpmq import native
from mcpmq.calibration import CalibrationSet, Sample
from mcpmq.errors import CalibrationError
from mcpmq.families.family import Inputs
from mcpmq.native import NativeModel
from mcpmq.observe import ANSWER, MODALITIES, TEXT, VISION, Labels, LayerStats, observe
from mcpmq.pieces import Each, all_threads, share_linears, torch_threads
from mcpmq.plan import Plan, Step, block_of
from mcpmq.progress import Progress
from mcpmq.quantized import Tokens, read_weight, write_block
from mcpmq.recipe import GgmlScheme, IntegerScheme, Modalities
from mcpmq.rounded import rounded
from mcpmq.safetensors_file import read_header
from mcpmq.stream import lockstep

HEAD, LANGUAGE = "head", "language"  # components that see tokens; all others see images only

# The modality of every token of the sample whose forward is running; each sample runs in a context of its own.
_passing: ContextVar[Tensor] = ContextVar("modalities")


def needs_samples(plan: Plan, step: Step) -> bool:
    """Whether a weight is rounded by what it sees: a matrix on a grid, under a recipe that does so."""
    on_a_grid = isinstance(step.scheme, IntegerScheme | GgmlScheme)
    return plan.recipe.round != "rtn" and on_a_grid and step.spec.role == "matrix"


def refuse_unseen(plan: Plan, calibration: CalibrationSet | None) -> tuple[Sample, ...]:
    """The samples that a plan needs: none if it looks at nothing.

    Raises:
        CalibrationError: it needs a calibration set and there is none, or it quantizes what sees only images and no
            sample has one.
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
    return calibration.samples


def _unseen(name: str, samples: int) -> CalibrationError:
    return CalibrationError(
        f"`{name}` saw no token of the {samples} calibration samples",
        f'add samples that pass through it, or write `"{name}" = "keep"` last in the recipe',
    )


def round_by_sight(plan: Plan, samples: Sequence[Sample], files: Mapping[str, Path], progress: Progress) -> None:
    """Write the files of all blocks that need samples; a block that has its file is filled from it and passed.

    In memory: one block in float32, its Gram matrices (4 bytes x columns squared for every distinct input), what
    rounding one weight takes, and of every sample its pixels and its hidden states before one block in float32.

    Raises:
        CalibrationError: a weight saw nothing, or what is not finite.
        CheckpointError: a weight is not finite.
    """
    checkpoint = plan.checkpoint
    processor = checkpoint.family.processor(checkpoint.path)
    inputs = [
        processor.encode(sample.id, sample.image, sample.prompt, sample.answer)
        for sample in progress(samples, "reading samples")
    ]
    model = native.build(checkpoint.family, checkpoint.config, checkpoint.specs)
    blocks, steps = list(model.blocks), {step.name: step for step in plan.steps}
    ticks = iter(progress(blocks, "calibrating"))
    threads = torch.get_num_threads()
    passing = [{"kinds": kinds_of(one), "tensors": processor.arguments(one)} for one in inputs]
    with all_threads() as each, torch.inference_mode():
        share_linears(model.module, each)
        rounding = _Rounding(plan, steps, model, files, len(inputs), threads, each, ticks)
        rounding.skip_logits()
        lockstep(rounding.forward, blocks, passing, load=rounding.load, release=native.empty, visit=rounding.visit)
    rounding.finish()


def kinds_of(inputs: Inputs) -> Tensor:
    """The modality of every token, uint8 [length], as in MODALITIES: vision inside of the spans of images, else text
    in the prompt and answer from `answer_start`."""
    kinds = torch.full((len(inputs.tokens),), TEXT, dtype=torch.uint8)
    kinds[inputs.answer_start :] = ANSWER
    for begin, end in inputs.image_bounds.tolist():
        kinds[begin:end] = VISION
    return kinds


@dataclass(frozen=True, slots=True)
class _Rounding:
    """The blocks of a native model on their way to their files."""

    plan: Plan
    steps: Mapping[str, Step]  # by common name
    model: NativeModel
    files: Mapping[str, Path]
    samples: int
    threads: int  # of the rounder
    each: Each
    ticks: Iterator[nn.Module]  # one for every block that samples pass

    def skip_logits(self) -> None:
        """Let the head hand on what it sees: nobody asks what it would say, so it needs no weights either."""
        for block in filter(self._is_head, self.model.blocks):
            vars(block)["forward"] = lambda hidden: hidden

    def forward(self, kinds: Tensor, tensors: Mapping[str, Any]) -> None:
        """One sample through the model; the head sees all positions but those of images, where nothing is said."""
        _passing.set(kinds)
        given = {name: torch.from_numpy(value) for name, value in tensors.items()}
        self.model.module(**given, logits_to_keep=(kinds != VISION).nonzero()[:, 0], use_cache=False)

    def load(self, block: nn.Module) -> None:
        """Fill a block with what its file holds, or with the original's weights."""
        next(self.ticks, None)
        if self._file(block).is_file():
            self._fill_from_file(block)
        elif not self._is_head(block):
            checkpoint = self.plan.checkpoint
            self.model.fill(block, lambda spec: native.floats_of(checkpoint.load(spec), spec))

    def visit(self, block: nn.Module, replay: Callable[[], None]) -> None:
        """Round a block by what it sees, write its file, and fill it with what the file holds."""
        file = self._file(block)
        if file.is_file():
            return
        steps, labels = self.plan.blocks[self._name(block)], self._labels(block)
        names = {name: spec for name, spec in self.model.blocks[block].items() if self._needs(spec.name)}
        seen = observe(block, {name: self._fed_by(block, name) for name in names}, replay, labels, self.each)
        stats = {spec.name: seen.pop(name, ()) for name, spec in names.items()}
        for step in filter(partial(needs_samples, self.plan), steps):
            self._refuse_unseen(step.name, stats.get(step.name, ()))
        tokens = {name: _fewest(parts) for name, parts in stats.items()}
        native.empty(block)  # its floats make room for those of rounding
        with torch_threads(self.threads):
            weights = {step.name: rounded(self.plan, step, stats.pop(step.name, ())) for step in steps}
        write_block(file, weights, tokens)
        self._fill_from_file(block)

    def finish(self) -> None:
        """Close the progress; refuse what no sample passed."""
        for _ in self.ticks:
            pass
        for name, file in self.files.items():
            if not file.is_file():
                raise _unseen(
                    next(step.name for step in self.plan.blocks[name] if self._needs(step.name)), self.samples
                )

    def _needs(self, name: str) -> bool:
        return needs_samples(self.plan, self.steps[name])

    def _name(self, block: nn.Module) -> str:
        return block_of(next(iter(self.model.blocks[block].values())).name)

    def _file(self, block: nn.Module) -> Path:
        return self.files[self._name(block)]

    def _is_head(self, block: nn.Module) -> bool:
        return block is self.model.module.get_output_embeddings()  # type: ignore[operator]

    def _fill_from_file(self, block: nn.Module) -> None:
        if self._is_head(block):
            return
        entries = read_header(self._file(block))
        self.model.fill(
            block, lambda spec: native.floats_of(read_weight(entries, spec, self.steps[spec.name].scheme), spec)
        )

    def _fed_by(self, block: nn.Module, parameter: str) -> str | None:
        """The module inside the block whose output a parameter multiplies that no linear holds."""
        name = self.model.blocks[block][parameter].parameters[0]
        feeder = dict(self.plan.checkpoint.family.fed_by).get(name)
        return feeder.removeprefix(name.removesuffix(parameter)) if feeder else None

    def _labels(self, block: nn.Module) -> Labels:
        component = next(iter(self.model.blocks[block].values())).component
        if component not in (HEAD, LANGUAGE):
            return Labels(lambda count: torch.full((count,), VISION, dtype=torch.uint8), torch.ones(len(MODALITIES)))
        weights = (self.plan.recipe.modalities or Modalities()).model_dump()
        of = _spoken if component == HEAD else _passed
        return Labels(of, torch.tensor([weights[kind] for kind in MODALITIES]))

    def _refuse_unseen(self, name: str, parts: tuple[LayerStats, ...]) -> None:
        if not parts or any(part.weight == 0 for part in parts):
            raise _unseen(name, self.samples)
        if not all(part.gram.diagonal().isfinite().all() for part in parts):
            raise CalibrationError(
                f"`{name}` saw values that are not finite", "the checkpoint overflows on a sample, or is damaged"
            )


def _passed(_: int) -> Tensor:
    return _passing.get()


def _spoken(_: int) -> Tensor:
    kinds = _passing.get()
    return kinds[kinds != VISION]


def _fewest(parts: tuple[LayerStats, ...]) -> Tokens:
    return dict(min(parts, key=lambda part: part.weight).tokens)
