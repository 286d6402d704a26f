"""Samples on disk come back as they were, in order, with their pixels or another's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mcpmq.families.family import Inputs
from mcpmq.runners.inputs_store import SampleFiles


def written(folder: Path, samples: list[Inputs]) -> SampleFiles:
    files = SampleFiles(folder)
    for sample in samples:
        files.append(sample)
    return files


def same(one: Inputs, other: Inputs) -> bool:
    arrays = zip(
        (one.tokens, one.image_bounds, *one.slices), (other.tokens, other.image_bounds, *other.slices), strict=True
    )
    equal = all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in arrays)
    return equal and (one.id, one.answer_start) == (other.id, other.answer_start)


def test_what_is_written_is_read_back(tmp_path: Path, tiny_samples: list[Inputs]) -> None:
    """Every array, dtype and id; also by a reader that opens the folder later, and for more samples than digits."""
    many = tiny_samples * 3
    written(tmp_path, many)
    read = SampleFiles(tmp_path)
    assert len(read) == len(many) == 12
    assert all(same(one, other) for one, other in zip(read, many, strict=True))
    assert same(read[-1], many[-1])
    assert [one.id for one in read[2:5]] == [one.id for one in many[2:5]]
    with pytest.raises(IndexError):
        read[12]


def test_the_hash_covers_tokens_and_pixels(tmp_path: Path, tiny_samples: list[Inputs]) -> None:
    """The same samples have the same hash; another order or a moved image has another."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    first = written(tmp_path / "a", tiny_samples)
    assert first.sha256 == written(tmp_path / "b", tiny_samples).sha256
    assert first.sha256 != written(tmp_path / "c", tiny_samples[::-1]).sha256


def test_pixels_move_and_texts_stay(tmp_path: Path, tiny_samples: list[Inputs]) -> None:
    """After a permutation each sample holds the slices of its giver."""
    files = written(tmp_path, tiny_samples)
    before = files.sha256
    files.move_pixels([0, 2, 3, 1])
    assert [one.id for one in files] == [one.id for one in tiny_samples]
    for one, giver in zip(files, (0, 2, 3, 1), strict=True):
        assert [part.shape for part in one.slices] == [part.shape for part in tiny_samples[giver].slices]
    assert files.sha256 != before


def test_an_uncut_image_goes_along(tmp_path: Path, tiny_samples: list[Inputs]) -> None:
    """It is neither a slice nor forgotten, and it counts in the hash."""
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    whole = np.arange(30, dtype=np.uint8).reshape(2, 5, 3)
    files = written(tmp_path / "with", [replace(tiny_samples[1], image=whole)])
    assert same(files[0], tiny_samples[1])
    assert files[0].image is not None
    assert np.array_equal(files[0].image, whole)
    assert files.sha256 != written(tmp_path / "without", [tiny_samples[1]]).sha256
