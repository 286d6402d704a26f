"""Samples that do not fit into memory are an error, with the numbers, before a weight is read."""

from dataclasses import replace
from pathlib import Path
from re import search

import psutil
import pytest

from benchmarks.real_size import PUBLISHED_CONFIG
from mcpmq.calibrate import memory
from mcpmq.calibrate.forward import encode_samples
from mcpmq.calibrate.imatrix import write_imatrix
from mcpmq.calibrate.memory import MemoryEstimate, check_memory, estimate_memory
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import DatasetError
from mcpmq.families import family_of
from mcpmq.families.family import TensorSpec
from mcpmq.families.inputs import Inputs
from mcpmq.system.progress import silent


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def inputs(checkpoint: Checkpoint, mixed_set: SampleSet) -> list[Inputs]:
    """Samples with and without images."""
    return encode_samples(checkpoint.family.open_processor(checkpoint.path), mixed_set.samples, silent)


def test_the_estimate_counts_pixels_and_hidden_states(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    """Pixels count as bytes and as floats; states count for the larger of vision and language."""
    estimate = estimate_memory(checkpoint.specs, checkpoint.architecture, inputs, ())

    pixels = sum(part.nbytes // 3 for one in inputs for part in one.slices)
    tokens = sum(len(one.tokens) for one in inputs)
    assert estimate.pixel_nbytes == pixels * 3 * (1 + 4)
    assert pixels // 14**2 * 64 < tokens * 256
    assert estimate.state_nbytes == 2 * 4 * tokens * 256

    wide = replace(checkpoint.architecture, vision=replace(checkpoint.architecture.required_vision, hidden_size=6400))
    assert estimate_memory(checkpoint.specs, wide, inputs, ()).state_nbytes == 2 * 4 * (pixels // 14**2) * 6400


def test_the_total_is_the_sum_of_pixels_states_and_block() -> None:
    """All three are in memory at once."""
    assert MemoryEstimate(30, 5, 700, "head").total_nbytes == 735


def test_a_block_has_one_hessian_for_each_width() -> None:
    """Widths of 7 (transposed) and 5: two Hessians and all weights, or two Hessians, a factor and one weight.

    2048 held-out inputs are kept with every Hessian.
    """
    specs = [
        TensorSpec("a.one", "one", (7, 3), "matrix", transposed=True),
        TensorSpec("a.two", "two", (11, 5), "matrix"),
        TensorSpec("a.three", "three", (2, 5), "matrix"),
    ]
    family = family_of(PUBLISHED_CONFIG)
    architecture = family.parse_architecture(PUBLISHED_CONFIG)

    both = estimate_memory(specs, architecture, [], {"a.one", "a.two", "a.three"})
    none = estimate_memory(specs, architecture, [], ())

    assert both.block_nbytes == 4 * (7**2 + 5**2) + 4 * 2048 * (7 + 5) + 4 * (7**2 + 11 * 5)
    assert none.block_nbytes == 4 * (7 * 3 + 11 * 5 + 2 * 5)


def test_a_block_with_the_original_model_has_its_weights_twice_and_one_stage() -> None:
    """The largest stage is that of `down`, whose drift is that of the residual stream; `up` has that of its inputs.

    States are there for both models.
    """
    specs = [
        TensorSpec("vision.layers.0.mlp.up", "up", (90, 30), "matrix"),
        TensorSpec("vision.layers.0.mlp.down", "down", (90, 30), "matrix", transposed=True),
        TensorSpec("embedding", "embedding", (20, 30), "table"),
    ]
    architecture = family_of(PUBLISHED_CONFIG).parse_architecture(PUBLISHED_CONFIG)
    names = {spec.name for spec in specs if spec.role == "matrix"}

    both = estimate_memory(specs, architecture, [], names, with_original=True)
    up_alone = estimate_memory(specs[:1], architecture, [], names, with_original=True)
    table = estimate_memory(specs[2:], architecture, [], names, with_original=True)

    weights = 2 * 90 * 30
    assert both.block_nbytes == 4 * (2 * weights + 2 * 90**2 + 90 * 30 + 2048 * (90 + 30) + 2 * 90 * 30)
    assert up_alone.block_nbytes == 4 * (weights + 3 * 30**2 + 2048 * 2 * 30 + 2 * 90 * 30)
    assert table.block_nbytes == 4 * 20 * 30


def test_the_original_model_has_states_of_its_own(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    """Pixels are shared."""
    one, both = (
        estimate_memory(checkpoint.specs, checkpoint.architecture, inputs, (), with_original)
        for with_original in (False, True)
    )
    assert both.state_nbytes == 2 * one.state_nbytes
    assert both.pixel_nbytes == one.pixel_nbytes


def test_the_largest_block_of_the_published_model(inputs: list[Inputs]) -> None:
    """With Hessians: a language layer, for the Hessian of 18944 columns, its factor and a weight. Without: the head."""
    family = family_of(PUBLISHED_CONFIG)
    architecture = family.parse_architecture(PUBLISHED_CONFIG)
    specs = family.tensor_specs(architecture)

    with_hessians = estimate_memory(specs, architecture, inputs, {spec.name for spec in specs if spec.role == "matrix"})
    forward_only = estimate_memory(specs, architecture, inputs, ())

    assert with_hessians.block_name.startswith("language.layers.")
    assert with_hessians.block_nbytes == (
        4 * (18944**2 + 3584**2) + 4 * 2048 * (18944 + 3584) + 4 * (18944**2 + 18944 * 3584)
    )
    assert forward_only.block_nbytes == 4 * 151666 * 3584


@pytest.mark.parametrize(("share", "hint"), [(0.6, r"use about 5 samples"), (0.0, "more memory")])
def test_too_many_samples_are_an_error(
    checkpoint: Checkpoint, inputs: list[Inputs], monkeypatch: pytest.MonkeyPatch, share: float, hint: str
) -> None:
    """The error gives the needed and the available memory; the hint the number of samples that fit."""
    estimate = estimate_memory(checkpoint.specs, checkpoint.architecture, inputs, ())
    available = estimate.block_nbytes + int(share * (estimate.pixel_nbytes + estimate.state_nbytes))
    monkeypatch.setattr(memory, "available_nbytes", lambda _: available)

    with pytest.raises(DatasetError, match=r"^9 samples need about .* MB of memory and .* MB are available") as caught:
        check_memory(checkpoint, inputs)

    assert search(hint, caught.value.hint)


def test_samples_may_need_all_of_the_memory(
    checkpoint: Checkpoint, inputs: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that needs exactly the available memory passes, one byte less is an error."""
    total = estimate_memory(checkpoint.specs, checkpoint.architecture, inputs, ()).total_nbytes
    monkeypatch.setattr(memory, "available_nbytes", lambda _: total)
    check_memory(checkpoint, inputs)

    monkeypatch.setattr(memory, "available_nbytes", lambda _: total - 1)
    with pytest.raises(DatasetError, match="samples need about"):
        check_memory(checkpoint, inputs)


def test_samples_that_fit_pass_the_check(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    """The tiny model fits into the memory of this machine."""
    assert (
        estimate_memory(checkpoint.specs, checkpoint.architecture, inputs, ()).total_nbytes
        < psutil.virtual_memory().available
    )

    check_memory(checkpoint, inputs)


def test_an_imatrix_run_checks_memory_first(
    checkpoint: Checkpoint, mixed_set: SampleSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is written if the samples do not fit."""
    monkeypatch.setattr(memory, "available_nbytes", lambda _: 0)

    with pytest.raises(DatasetError, match="samples need about"):
        write_imatrix(checkpoint, mixed_set, tmp_path / "out")
    assert not list(tmp_path.iterdir())
