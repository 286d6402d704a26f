"""Calibration samples on their way through a native model: one block in memory, every token of known modality."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcpmq.calibrate.observers import Labels
from mcpmq.dataset import Sample
from mcpmq.execution.chunked_matmul import Each, share_linears
from mcpmq.execution.device import CPU
from mcpmq.execution.layerwise import Visit, lockstep
from mcpmq.execution.torch_model import NativeModel
from mcpmq.families.family import Family, Inputs, Processor, TensorSpec
from mcpmq.rounding.stats import ANSWER, MODALITIES, TEXT, VISION
from mcpmq.system.progress import Progress

HEAD, LANGUAGE = "head", "language"  # components that see tokens; all others see images only

# The modality of every token of the sample whose forward is running; each sample runs in a context of its own.
_passing: ContextVar[Tensor] = ContextVar("modalities")


def read_samples(processor: Processor, samples: Sequence[Sample], progress: Progress) -> list[Inputs]:
    """Every sample as the model takes it."""
    return [
        processor.encode(sample.id, sample.image, sample.prompt, sample.answer)
        for sample in progress(samples, "reading samples")
    ]


def pass_samples(
    model: NativeModel,
    processor: Processor,
    inputs: Sequence[Inputs],
    each: Each,
    load: Callable[[nn.Module], None],
    visit: Visit,
) -> None:
    """Let samples pass through all blocks, as `lockstep` does, with the model's linears shared out by `each`.

    The head sees all positions but those of images, where nothing is said. Nobody asks what it would say: it hands on
    what it sees and needs no weights.
    """
    if model.device == CPU:  # others share out products themselves
        share_linears(model.module, each)
    for block in filter(partial(is_head, model), model.blocks):
        vars(block)["forward"] = lambda hidden: hidden
    passing = [{"kinds": kinds_of(one), "tensors": processor.arguments(one)} for one in inputs]
    lockstep(partial(_forward, model), list(model.blocks), passing, load=load, release=model.empty, visit=visit)


def _forward(model: NativeModel, kinds: Tensor, tensors: Mapping[str, Any]) -> None:
    kinds = kinds.to(model.device)
    _passing.set(kinds)
    given = {name: torch.from_numpy(value).to(model.device) for name, value in tensors.items()}
    model.module(**given, logits_to_keep=(kinds != VISION).nonzero()[:, 0], use_cache=False)


def is_head(model: NativeModel, block: nn.Module) -> bool:
    """Whether a block says the next token; it may be the embedding once more."""
    return block is model.module.get_output_embeddings()  # type: ignore[operator]


def component_of(model: NativeModel, block: nn.Module) -> str:
    """The component that a block is part of."""
    if is_head(model, block):
        return HEAD
    return next(iter(model.blocks[block].values())).component


def kinds_of(inputs: Inputs) -> Tensor:
    """The modality of every token, uint8 [length], as in MODALITIES: vision inside of the spans of images, else text
    in the prompt and answer from `answer_start`."""
    kinds = torch.full((len(inputs.tokens),), TEXT, dtype=torch.uint8)
    kinds[inputs.answer_start :] = ANSWER
    for begin, end in inputs.image_bounds.tolist():
        kinds[begin:end] = VISION
    return kinds


def labels_of(component: str, weights: Mapping[str, float], device: torch.device = CPU) -> Labels:
    """What the tokens that a component sees are, and what they weigh; where only images pass all weigh the same."""
    if component not in (HEAD, LANGUAGE):
        alike = torch.ones(len(MODALITIES), device=device)
        return Labels(lambda count: torch.full((count,), VISION, dtype=torch.uint8, device=device), alike)
    of = _spoken if component == HEAD else _passed
    return Labels(of, torch.tensor([weights[kind] for kind in MODALITIES], device=device))


def _passed(_: int) -> Tensor:
    return _passing.get()


def _spoken(_: int) -> Tensor:
    kinds = _passing.get()
    return kinds[kinds != VISION]


def fed_by(family: Family, spec: TensorSpec, parameter: str) -> str | None:
    """The module inside the block whose output a parameter, of this name there, multiplies and that no linear holds."""
    name = spec.parameters[0]
    feeder = dict(family.fed_by).get(name)
    return feeder.removeprefix(name.removesuffix(parameter)) if feeder else None
