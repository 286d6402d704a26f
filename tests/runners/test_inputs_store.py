"""Encoded samples on disk: round trip, hash and permuted pixels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mcpmq.families.inputs import Inputs
from mcpmq.runners.inputs_store import InputsStore


def write_samples(folder: Path, samples: list[Inputs]) -> InputsStore:
    files = InputsStore(folder)
    for sample in samples:
        files.append(sample)
    return files


def equal(one: Inputs, other: Inputs) -> bool:
    arrays, others = (
        list[NDArray[Any]]([inputs.tokens, inputs.image_bounds, *inputs.slices]) for inputs in (one, other)
    )
    equal_arrays = all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(arrays, others, strict=True))
    places = [(inputs.id, inputs.answer_spans, inputs.slices_per_image) for inputs in (one, other)]
    return equal_arrays and places[0] == places[1]


def test_samples_are_read_back_unchanged(tmp_path: Path, tiny_samples: list[Inputs]) -> None:
    """Arrays, dtypes and ids are equal when the folder is opened again, also for more than ten samples."""
    many = tiny_samples * 3
    write_samples(tmp_path, many)
    read = InputsStore(tmp_path)
    assert len(read) == len(many) == 12
    assert all(equal(one, other) for one, other in zip(read, many, strict=True))
    assert equal(read[-1], many[-1])
    assert [one.id for one in read[2:5]] == [one.id for one in many[2:5]]
    with pytest.raises(IndexError):
        read[12]


def test_the_hash_covers_tokens_and_pixels(tmp_path: Path, tiny_samples: list[Inputs]) -> None:
    """Equal samples have equal hashes; another order changes the hash."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    first = write_samples(tmp_path / "a", tiny_samples)
    assert first.sha256 == write_samples(tmp_path / "b", tiny_samples).sha256
    assert first.sha256 != write_samples(tmp_path / "c", tiny_samples[::-1]).sha256


def test_permuted_pixels_leave_the_text_in_place(tmp_path: Path, tiny_samples: list[Inputs]) -> None:
    """Each sample has the slices of its source and its own text, and the hash changes."""
    files = write_samples(tmp_path, tiny_samples)
    before = files.sha256
    files.permute_pixels([0, 2, 3, 1])
    assert [one.id for one in files] == [one.id for one in tiny_samples]
    for one, source in zip(files, (0, 2, 3, 1), strict=True):
        assert [part.shape for part in one.slices] == [part.shape for part in tiny_samples[source].slices]
    assert files.sha256 != before


def test_the_image_before_slicing_is_stored(tmp_path: Path, tiny_samples: list[Inputs]) -> None:
    """It is read back separately from the slices, and it changes the hash."""
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    whole = np.arange(30, dtype=np.uint8).reshape(2, 5, 3)
    files = write_samples(tmp_path / "with", [replace(tiny_samples[1], images=(whole, whole[:1]))])
    assert equal(files[0], tiny_samples[1])
    assert [image.tolist() for image in files[0].images] == [whole.tolist(), whole[:1].tolist()]
    assert files.sha256 != write_samples(tmp_path / "without", [tiny_samples[1]]).sha256
