"""Samples that do not fit into memory are an error, with the numbers, before a weight is read."""

from dataclasses import replace
from math import prod
from pathlib import Path
from re import search

import psutil
import pytest
import torch

from benchmarks.real_size import PUBLISHED_CONFIG
from mcpmq.calibrate import memory
from mcpmq.calibrate.forward import encode_samples
from mcpmq.calibrate.imatrix import write_imatrix
from mcpmq.calibrate.memory import MemoryEstimate, estimate_memory, must_spill
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
    """Decoded pixels are bytes; a sample has its pixels as floats, and states of vision or language, the larger.

    The rotary embeddings of a token have 64 cosines and sines.
    """
    estimate = estimate_memory(checkpoint.specs, checkpoint.architecture, inputs, ())

    pixels = list(map(_pixels, inputs))
    tokens = [len(one.tokens) for one in inputs]
    states = [2 * max(64 * (count // 14**2), 256 * length) for count, length in zip(pixels, tokens, strict=True)]
    expected = [4 * (one + 3 * count) for one, count in zip(states, pixels, strict=True)]
    assert estimate.image_nbytes == 3 * sum(pixels) + 2 * 4 * 64 * sum(tokens)
    assert estimate.state_nbytes == sum(expected)
    assert estimate.sample_nbytes == max(expected)

    wide = replace(checkpoint.architecture, vision=replace(checkpoint.architecture.required_vision, hidden_size=6400))
    images = [count for count in pixels if count]
    larger = estimate_memory(checkpoint.specs, wide, [one for one in inputs if one.slices], ())
    assert larger.state_nbytes == sum(4 * (2 * 6400 * (count // 14**2) + 3 * count) for count in images)


def test_the_total_has_the_states_of_all_samples_or_of_one() -> None:
    """Images and the block are in memory either way."""
    estimate = MemoryEstimate(30, 50, 7, 700, "head")

    assert (estimate.total_nbytes, estimate.spilled_nbytes) == (780, 737)


def test_a_block_has_one_hessian_for_each_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths of 7 (transposed), 5 and 5: Hessians, held-out and buffered inputs, and all weights or rounded ones.

    At a time 1024 rows are rounded, with twelve arrays, by each of two threads; the chunk of a wide matrix is smaller.
    """
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    specs = [
        TensorSpec("a.one", "one", (7, 3), "matrix", transposed=True),
        TensorSpec("a.two", "two", (11, 5), "matrix"),
        TensorSpec("a.three", "three", (2, 5), "matrix"),
    ]
    family = family_of(PUBLISHED_CONFIG)
    architecture = family.parse_architecture(PUBLISHED_CONFIG)

    both = estimate_memory(specs, architecture, [], {"a.one", "a.two", "a.three"})
    none = estimate_memory(specs, architecture, [], ())

    weights = 7 * 3 + 11 * 5 + 2 * 5
    rounding = weights + 2 * 11 * 5 + 12 * 4 * 2 * 1024 * 7
    assert both.block_nbytes == 4 * (7**2 + 2 * 5**2) + 2 * 4 * 2048 * (7 + 2 * 5) + rounding
    assert none.block_nbytes == 4 * weights


def test_a_block_with_the_original_model_has_one_stage_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest stage is that of `down`, whose drift is that of the residual stream; `up` has that of its inputs.

    While the samples pass, there are all weights, and held-out and buffered inputs. While rows are rounded, there are
    codes, the target, and arrays of some rows; before the end of the layer also the weights.
    """
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    specs = [
        TensorSpec("vision.layers.0.mlp.up", "up", (90, 30), "matrix"),
        TensorSpec("vision.layers.0.mlp.down", "down", (90, 30), "matrix", transposed=True),
        TensorSpec("embedding", "embedding", (20, 30), "table"),
    ]
    architecture = family_of(PUBLISHED_CONFIG).parse_architecture(PUBLISHED_CONFIG)
    names = {spec.name for spec in specs if spec.role == "matrix"}

    def block_nbytes(specs: list[TensorSpec]) -> int:
        return estimate_memory(specs, architecture, [], names, with_original=True).block_nbytes

    weight, down, up = 90 * 30, 90**2 + 90 * 30, 2 * 30**2
    held_out_down, held_out_up, rows = 2048 * (90 + 30), 2048 * 2 * 30, 12 * 1024
    assert block_nbytes(specs) == 4 * (down + held_out_down) + 2 * weight + (2 + 4) * weight + 4 * rows * 90
    assert block_nbytes(specs[:1]) == 4 * (up + held_out_up) + (1 + 2 + 4 + 4) * weight + 4 * rows * 30
    assert block_nbytes(specs[2:]) == 4 * 20 * 30

    monkeypatch.setattr(memory, "ROUNDING_ARRAYS", 0)
    assert block_nbytes(specs) == 4 * (down + 2 * held_out_down + 2 * weight)


def test_the_head_has_no_stages() -> None:
    """Its targets are its own outputs: its weights are not loaded in floats."""
    specs = [TensorSpec("head", "head", (50_000, 30), "matrix")]
    architecture = family_of(PUBLISHED_CONFIG).parse_architecture(PUBLISHED_CONFIG)

    sizes = [estimate_memory(specs, architecture, [], {"head"}, one).block_nbytes for one in (False, True)]

    assert sizes[0] == sizes[1]


def test_the_original_model_has_states_of_its_own(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    """Decoded images are shared. Four states inside of a block are recorded."""
    one, both = (
        estimate_memory(checkpoint.specs, checkpoint.architecture, inputs, (), with_original)
        for with_original in (False, True)
    )
    states = sum(max(64 * (_pixels(sample) // 14**2), 256 * len(sample.tokens)) for sample in inputs)
    assert both.state_nbytes == 2 * one.state_nbytes + 4 * 4 * states
    assert both.image_nbytes == one.image_nbytes


def _pixels(sample: Inputs) -> int:
    return sum(part.nbytes // 3 for part in sample.slices)


def test_the_largest_block_of_the_published_model(inputs: list[Inputs], monkeypatch: pytest.MonkeyPatch) -> None:
    """A language layer: with Hessians for the one of 18944 columns, without for its weights in float32.

    The head is not loaded, and of the embedding the rows that the samples use after it is read.
    """
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    family = family_of(PUBLISHED_CONFIG)
    architecture = family.parse_architecture(PUBLISHED_CONFIG)
    specs = family.tensor_specs(architecture)

    with_hessians = estimate_memory(specs, architecture, inputs, {spec.name for spec in specs if spec.role == "matrix"})
    forward_only = estimate_memory(specs, architecture, inputs, ())

    layer = sum(prod(spec.shape) for spec in specs if spec.name.startswith("language.layers.0."))
    statistics = 4 * (18944**2 + 3 * 3584**2) + 2 * 4 * 2048 * (18944 + 3 * 3584)
    assert with_hessians.block_name.startswith("language.layers.")
    assert with_hessians.block_nbytes == statistics + max(4 * layer, layer + 2 * 18944 * 3584 + 12 * 4 * 2 * 2**22)
    assert forward_only.block_name == "embedding"
    assert forward_only.block_nbytes == 2 * 151666 * 3584 > 4 * layer


@pytest.mark.parametrize(("limit", "where"), [(None, "are available on `cpu`: "), (10**12, "within the limit of 1,0")])
@pytest.mark.parametrize(("share", "hint"), [(0.6, r"use about 5 samples"), (0.0, "")])
def test_too_many_images_are_an_error(
    checkpoint: Checkpoint,
    inputs: list[Inputs],
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    hint: str,
    limit: int | None,
    where: str,
) -> None:
    """Decoded images stay in memory. The error has the needed and the available memory, and the number that fits."""
    estimate = estimate_memory(checkpoint.specs, checkpoint.architecture, inputs, ())
    fixed = estimate.block_nbytes + estimate.sample_nbytes
    monkeypatch.setattr(memory, "available_nbytes", lambda _: fixed + int(share * estimate.image_nbytes))

    with pytest.raises(DatasetError, match=r"^9 samples need about .* MB of memory and .* MB are available") as caught:
        must_spill(checkpoint, inputs, memory_limit=limit)

    assert where in str(caught.value)
    expected = hint or ("raise `--memory-limit`" if limit else "more memory")
    assert search(expected, caught.value.hint)


def test_hidden_states_that_do_not_fit_are_spilled(
    checkpoint: Checkpoint, inputs: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that needs exactly the available memory keeps them, with one byte less in a file; a GPU never does."""
    estimate = estimate_memory(checkpoint.specs, checkpoint.architecture, inputs, ())
    total, spilled = estimate.total_nbytes, estimate.spilled_nbytes
    for available, spills in ((total, False), (total - 1, True), (spilled, True)):
        monkeypatch.setattr(memory, "available_nbytes", lambda _, found=available: found)
        assert must_spill(checkpoint, inputs) is spills

    monkeypatch.setattr(memory, "available_nbytes", lambda _: total - 1)
    with pytest.raises(DatasetError, match="for hidden states, "):
        must_spill(checkpoint, inputs, device=torch.device("cuda"))
    monkeypatch.setattr(memory, "available_nbytes", lambda _: spilled - 1)
    with pytest.raises(DatasetError, match="for hidden states of one sample, "):
        must_spill(checkpoint, inputs)


def test_a_limit_counts_the_memory_that_is_in_use(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    """The limit is that of the process, with 250 MB for libraries that are loaded later."""
    estimate = estimate_memory(checkpoint.specs, checkpoint.architecture, inputs, ())
    used = psutil.Process().memory_info().rss + 250_000_000

    assert must_spill(checkpoint, inputs, memory_limit=used + (estimate.total_nbytes + estimate.spilled_nbytes) // 2)
    assert not must_spill(checkpoint, inputs, memory_limit=used + 2 * estimate.total_nbytes)


def test_samples_that_fit_pass_the_check(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    """The tiny model fits into the memory of this machine."""
    assert not must_spill(checkpoint, inputs)


def test_an_imatrix_run_checks_memory_first(
    checkpoint: Checkpoint, mixed_set: SampleSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is written if the samples do not fit."""
    monkeypatch.setattr(memory, "available_nbytes", lambda _: 0)

    with pytest.raises(DatasetError, match="samples need about"):
        write_imatrix(checkpoint, mixed_set, tmp_path / "out")
    assert not list(tmp_path.iterdir())
