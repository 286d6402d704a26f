"""Samples pass a whole model, and it is known of every token, wherever it is seen, what it is."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mcpmq.calibrate.forward import (
    component_of,
    fed_by,
    is_head,
    kinds_of,
    labels_of,
    pass_samples,
    read_samples,
)
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.execution import torch_model
from mcpmq.execution.chunked_matmul import one_by_one
from mcpmq.execution.torch_model import NativeModel
from mcpmq.families.family import Inputs
from mcpmq.rounding.stats import MODALITIES, TEXT, VISION
from mcpmq.system.progress import silent

WEIGHTS = {"vision": 0.25, "text": 1.0, "answer": 2.0}


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def inputs(checkpoint: Checkpoint, mixed_set: CalibrationSet) -> list[Inputs]:
    """Samples with and without images."""
    return read_samples(checkpoint.family.processor(checkpoint.path), mixed_set.samples, silent)


def by_going_through(sample: Inputs) -> list[str]:
    """The modality of every token."""
    inside = {place for begin, end in sample.image_bounds.tolist() for place in range(begin, end)}
    return [
        "vision" if place in inside else "answer" if place >= sample.answer_start else "text"
        for place in range(len(sample.tokens))
    ]


def test_tokens_are_told_apart(inputs: list[Inputs]) -> None:
    """Image spans, prompt and answer; nothing else, and a text sample has no image span."""
    for sample in inputs:
        assert [MODALITIES[kind] for kind in kinds_of(sample).tolist()] == by_going_through(sample)
        assert (VISION in kinds_of(sample)) == (sample.kind == "image")


def test_what_is_seen_by_whom(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    """Every block is passed by as many rows as it has labels: a tower by images, layers by tokens, the head by all of
    these but images'. The head needs no weights."""
    model, sizes = torch_model.build(checkpoint.family, checkpoint.config, checkpoint.specs), dict[str, int]()

    def load(block: nn.Module) -> None:
        if not is_head(model, block):
            model.fill(block, lambda spec: torch_model.floats_of(checkpoint.load(spec), spec))

    def visit(block: nn.Module, replay: Callable[[], None]) -> None:
        linear = next((module for module in block.modules() if isinstance(module, nn.Linear)), None)
        if linear is not None:
            with linear.register_forward_pre_hook(lambda _, args: check(block, args[0])):
                replay()

    def check(block: nn.Module, rows: Tensor) -> None:
        component, count = component_of(model, block), rows[..., 0].numel()
        labels = labels_of(component, WEIGHTS)
        assert len(labels.of(count)) == count
        assert labels.weights[TEXT] == 1
        assert labels.weights[VISION] == (0.25 if component in ("language", "head") else 1)
        sizes[component] = sizes.get(component, 0) + count

    processor = checkpoint.family.processor(checkpoint.path)
    with torch.inference_mode():
        pass_samples(model, processor, inputs, one_by_one, load, visit)

    spoken = sum(kind != "vision" for sample in inputs for kind in by_going_through(sample))
    assert sizes["head"] == spoken
    assert sizes["language"] == 2 * sum(len(sample.tokens) for sample in inputs)  # two layers
    assert sizes["vision"] > 0


def test_what_no_linear_holds_is_fed_by_a_module_of_its_block(checkpoint: Checkpoint) -> None:
    """The bare matrix of the resampler, and nothing else."""
    model: NativeModel = torch_model.build(checkpoint.family, checkpoint.config, checkpoint.specs)

    fed = {
        spec.name: feeder
        for block, parameters in model.blocks.items()
        for name, spec in parameters.items()
        if (feeder := fed_by(checkpoint.family, spec, name)) and isinstance(block.get_submodule(feeder), nn.Module)
    }

    assert fed == {"projector.out": "ln_post"}
