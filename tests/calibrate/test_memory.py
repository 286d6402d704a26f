"""Samples that do not fit are refused before a weight is read, with the numbers."""

from pathlib import Path
from re import search

import psutil
import pytest

from benchmarks.real_size import PUBLISHED
from mcpmq.calibrate import memory
from mcpmq.calibrate.forward import read_samples
from mcpmq.calibrate.imatrix import imatrix
from mcpmq.calibrate.memory import needed, refuse_what_does_not_fit
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import CalibrationError
from mcpmq.families import family_of
from mcpmq.families.family import Inputs
from mcpmq.system.progress import silent


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def inputs(checkpoint: Checkpoint, mixed_set: CalibrationSet) -> list[Inputs]:
    """Samples with and without images."""
    return read_samples(checkpoint.family.processor(checkpoint.path), mixed_set.samples, silent)


def test_every_sample_counts_with_its_pixels_and_its_states(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    """Pixels as bytes and as floats; the states of the tower that has more."""
    need = needed(checkpoint.specs, checkpoint.architecture, inputs, ())

    pixels = sum(part.nbytes // 3 for one in inputs for part in one.slices)
    tokens = sum(len(one.tokens) for one in inputs)
    assert need.pixels == pixels * 3 * (1 + 4)
    assert need.states == 2 * 4 * max(pixels // 14**2 * 64, tokens * 256)


def test_the_block_of_the_published_size_that_takes_most_is_a_language_layer(inputs: list[Inputs]) -> None:
    """The Gram matrix of 18944 columns beside its factor and a weight; without Gram matrices it is the floats of the
    largest matrix."""
    family = family_of(PUBLISHED)
    architecture = family.architecture(PUBLISHED)
    specs = family.tensors(architecture)

    seeing = needed(specs, architecture, inputs, {spec.name for spec in specs if spec.role == "matrix"})
    passing = needed(specs, architecture, inputs, ())

    assert seeing.block_name.startswith("language.layers.")
    assert seeing.block == 4 * (18944**2 + 3584**2) + 4 * (18944**2 + 18944 * 3584)
    assert passing.block == 4 * 151666 * 3584


@pytest.mark.parametrize(("share", "told"), [(0.6, r"use about [1-8] samples"), (0.0, "more memory")])
def test_too_many_samples_are_refused(
    checkpoint: Checkpoint, inputs: list[Inputs], monkeypatch: pytest.MonkeyPatch, share: float, told: str
) -> None:
    """With what they take and what there is, and how many would fit."""
    need = needed(checkpoint.specs, checkpoint.architecture, inputs, ())
    available = need.block + int(share * (need.pixels + need.states))
    monkeypatch.setattr(memory, "available_nbytes", lambda _: available)

    with pytest.raises(
        CalibrationError, match=r"^9 samples take about .* MB of memory, .* MB are available"
    ) as refused:
        refuse_what_does_not_fit(checkpoint, inputs)

    assert search(told, refused.value.hint)


def test_what_fits_is_not_refused(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    """As this machine is."""
    assert needed(checkpoint.specs, checkpoint.architecture, inputs, ()).total < psutil.virtual_memory().available

    refuse_what_does_not_fit(checkpoint, inputs)


def test_an_importance_matrix_asks_first(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is built, nothing written."""
    monkeypatch.setattr(memory, "available_nbytes", lambda _: 0)

    with pytest.raises(CalibrationError, match="samples take about"):
        imatrix(checkpoint, mixed_set, tmp_path / "out")
    assert not list(tmp_path.iterdir())
