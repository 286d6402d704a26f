"""The measurement cache: complete entries of bounded total size."""

import os
import shutil
import time
from pathlib import Path

import pytest

from mcpmq.evaluate import cache


def add_entry(folder: Path, name: str, nbytes: int, age_seconds: float = 0) -> None:
    """Add an entry of a given size that was last used `age_seconds` ago."""
    with cache.new_entry(folder, name) as entry:
        (entry / "file").write_bytes(bytes(nbytes))
    os.utime(folder / name, (time.time() - age_seconds, time.time() - age_seconds))


def test_an_entry_is_found_by_its_name(tmp_path: Path) -> None:
    """A second entry of the same name replaces the first; a missing name returns None."""
    add_entry(tmp_path / "cache", "a", 3)
    add_entry(tmp_path / "cache", "a", 5)
    found = cache.find_entry(tmp_path / "cache", "a")
    assert found is not None
    assert cache.folder_nbytes(found) == 5
    assert cache.find_entry(tmp_path / "cache", "b") is None


def test_a_failed_block_adds_no_entry(tmp_path: Path) -> None:
    """An exception in the block leaves neither an entry nor a partial folder."""

    def fail() -> None:
        with cache.new_entry(tmp_path, "a") as entry:
            (entry / "file").write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_entry_is_evicted_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are evicted until the limit is met; finding an entry counts as use; the new entry is never evicted."""
    monkeypatch.setattr(cache, "MAX_CACHE_NBYTES", 100)
    for name, age_seconds in (("a", 30), ("b", 20), ("c", 10)):
        add_entry(tmp_path, name, 30, age_seconds)
    cache.find_entry(tmp_path, "a")
    add_entry(tmp_path, "d", 30)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "c", "d"]
    add_entry(tmp_path, "e", 200)
    assert [one.name for one in tmp_path.iterdir()] == ["e"]


def test_unfinished_entries_are_evicted_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a killed process is removed after 24 hours; younger ones may still be written."""
    monkeypatch.setattr(cache, "MAX_CACHE_NBYTES", 10)
    for name, age_seconds in ((".old", 86_500), (".new", 86_300)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(50))
        os.utime(tmp_path / name, (time.time() - age_seconds, time.time() - age_seconds))
    add_entry(tmp_path, "a", 5)
    assert sorted(one.name for one in tmp_path.iterdir()) == [".new", "a"]


def test_the_limit_is_eight_gibibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of 8 GiB together stay, as the README documents; one byte more evicts the oldest."""
    sizes = {"a": 3 << 30, "b": 4 << 30, "c": 1 << 30, "d": (1 << 30) + 1}
    monkeypatch.setattr(cache, "folder_nbytes", lambda folder: sizes[folder.name])
    for name, age_seconds in (("a", 20), ("b", 10), ("c", 0)):
        add_entry(tmp_path, name, 0, age_seconds)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "b", "c"]
    del sizes["c"]
    shutil.rmtree(tmp_path / "c")
    add_entry(tmp_path, "d", 0)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["b", "d"]
