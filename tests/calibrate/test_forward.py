"""A calibration run passes all samples through all blocks, with the modality of every token known."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mcpmq.calibrate import forward
from mcpmq.calibrate.forward import (
    CalibrationRun,
    block_component,
    encode_samples,
    input_module,
    open_calibration,
    run_calibration,
)
from mcpmq.calibrate.modalities import sample_modalities, token_modalities
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import DatasetError
from mcpmq.execution import torch_model
from mcpmq.execution.device import CPU
from mcpmq.execution.layerwise import Replay
from mcpmq.families.inputs import Inputs
from mcpmq.recipe import TokenWeights
from mcpmq.rounding.stats import MODALITIES, TEXT, VISION
from mcpmq.system.progress import Item, silent

WEIGHTS = {"vision": 0.25, "text": 1.0, "answer": 2.0, "audio": 1.0}


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def inputs(checkpoint: Checkpoint, mixed_set: SampleSet) -> list[Inputs]:
    """Samples with and without images."""
    return encode_samples(checkpoint.family.open_processor(checkpoint.path), mixed_set.samples, silent)


@pytest.fixture
def run(checkpoint: Checkpoint, mixed_set: SampleSet) -> Iterator[CalibrationRun]:
    """An open calibration run over samples with and without images."""
    with open_calibration(checkpoint, mixed_set.samples, silent, CPU) as opened:
        yield opened


def expected_modalities(sample: Inputs) -> list[str]:
    """The modality of every token, one token at a time."""
    inside = {position for begin, end in sample.image_bounds.tolist() for position in range(begin, end)}
    return [
        "vision" if position in inside else "answer" if position >= sample.answer_start else "text"
        for position in range(len(sample.tokens))
    ]


class RowCounter:
    """Calibration visitor that counts the input rows of the first nn.Linear of every block, by component."""

    def __init__(self, run: CalibrationRun) -> None:
        self.run, self.rows, self.loaded = run, dict[str, int](), list[nn.Module]()

    def load(self, block: nn.Module) -> None:
        self.loaded.append(block)
        self.run.load_original(block)

    def visit(self, block: nn.Module, replay: Replay) -> None:
        linear = next((module for module in block.modules() if isinstance(module, nn.Linear)), None)
        if linear is not None:
            with linear.register_forward_pre_hook(lambda _, args: self.check(block, args[0])):
                replay()

    def check(self, block: nn.Module, rows: Tensor) -> None:
        component, count = block_component(self.run.model, block), rows[..., 0].numel()
        modalities = self.run.modalities(block, WEIGHTS)
        assert len(modalities.modality_ids(count)) == count
        assert modalities.weights[TEXT] == 1
        assert modalities.weights[VISION] == (0.25 if component in ("language", "head") else 1)
        self.rows[component] = self.rows.get(component, 0) + count


def test_every_token_has_the_modality_of_its_position(inputs: list[Inputs]) -> None:
    """Image spans are vision, answers are answer, all else is text; a text sample has no image span."""
    for sample in inputs:
        assert [MODALITIES[index] for index in token_modalities(sample).tolist()] == expected_modalities(sample)
        assert (VISION in token_modalities(sample)) == (sample.modality == "image")


def test_every_block_has_one_modality_per_input_row(run: CalibrationRun, inputs: list[Inputs]) -> None:
    """Vision blocks receive patches, language layers all tokens, the head all tokens but those of images."""
    visitor = RowCounter(run)

    run_calibration(run, visitor, "counting")

    head_tokens = sum(modality != "vision" for sample in inputs for modality in expected_modalities(sample))
    assert visitor.rows["head"] == head_tokens
    assert visitor.rows["language"] == 2 * sum(len(sample.tokens) for sample in inputs)  # two layers
    assert visitor.rows["vision"] > 0


def test_every_block_is_loaded_once(run: CalibrationRun) -> None:
    """Each block is loaded once, and all blocks are empty after the run."""
    visitor = RowCounter(run)

    run_calibration(run, visitor, "counting")

    assert len(visitor.loaded) == len(run.model.blocks)
    assert set(visitor.loaded) == set(run.model.blocks)
    assert all(value.isnan().all() for block in run.model.blocks for value in block.parameters())


@pytest.mark.parametrize("with_image", [True, False])
def test_progress_covers_all_blocks(checkpoint: Checkpoint, mixed_set: SampleSet, with_image: bool) -> None:
    """The progress reaches its end under the given label, also if no sample passes through the vision blocks."""
    shown: list[tuple[str, int]] = []

    def progress(items: Sequence[Item], label: str) -> Iterable[Item]:
        yield from items
        shown.append((label, len(items)))

    samples = [sample for sample in mixed_set if bool(sample.image) == with_image]
    with open_calibration(checkpoint, samples, progress, CPU) as run:
        run_calibration(run, RowCounter(run), "counting")

    assert shown == [("encoding samples", len(samples)), ("counting", len(run.model.blocks))]


def test_a_run_is_checked_for_memory_before_the_model_is_built(
    checkpoint: Checkpoint, mixed_set: SampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples that do not fit are an error, for every kind of visitor."""
    monkeypatch.setattr("mcpmq.calibrate.memory.available_nbytes", lambda _: 0)
    monkeypatch.setattr(forward, "build_model", None)

    with (
        pytest.raises(DatasetError, match="samples need about"),
        open_calibration(checkpoint, mixed_set.samples, silent, CPU),
    ):
        pass


def test_statistics_of_unused_weights_are_empty(checkpoint: Checkpoint, mixed_set: SampleSet) -> None:
    """Weights in `specs` without input tokens get no statistics; the others get those of all their tokens."""
    text = [sample for sample in mixed_set if not sample.image]
    with open_calibration(checkpoint, text, silent, CPU) as run:
        block = next(block for block, specs in run.model.blocks.items() if specs.keys() >= {"mlp.gate_proj.weight"})
        matrices = {name: spec for name, spec in run.model.blocks[block].items() if spec.role == "matrix"}
        run.load_original(block)

        stats = run.collect_stats(block, matrices, lambda *_: None, TokenWeights())

    assert stats == {spec.name: () for spec in matrices.values()}


def test_inputs_that_are_not_finite_are_an_error(run: CalibrationRun) -> None:
    """The error names the first weight that receives them."""
    block = next(block for block, specs in run.model.blocks.items() if specs.keys() >= {"mlp.gate_proj.weight"})
    specs = {"mlp.down_proj.weight": run.model.blocks[block]["mlp.down_proj.weight"]}
    run.load_original(block)
    down = block.get_submodule("mlp.down_proj")

    sample_modalities.set(torch.full((3,), TEXT, dtype=torch.uint8))
    with pytest.raises(DatasetError, match=r"the inputs of `language\.layers\.0\.mlp\.down` are not finite"):
        run.collect_stats(block, specs, lambda *_: down(torch.full((3, 512), torch.inf)), TokenWeights())


def test_a_weight_outside_of_linear_modules_names_its_input_module(checkpoint: Checkpoint) -> None:
    """In the tiny model this is the output matrix of the resampler only."""
    model = torch_model.build_model(checkpoint.family, checkpoint.config, checkpoint.specs)

    modules = {
        spec.name: module
        for block, specs in model.blocks.items()
        for name, spec in specs.items()
        if (module := input_module(checkpoint.family, spec, name))
        and isinstance(block.get_submodule(module), nn.Module)
    }

    assert modules == {"projector.out": "ln_post"}
