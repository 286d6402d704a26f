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
    """An intact entry of the same name is kept; a missing name yields None."""
    add_entry(tmp_path / "cache", "a", 3)
    add_entry(tmp_path / "cache", "a", 5)
    with cache.open_entry(tmp_path / "cache", "a") as found:
        assert found is not None
        assert cache.folder_nbytes(found) == 3
    with cache.open_entry(tmp_path / "cache", "b") as found:
        assert found is None


CORRUPTIONS = {
    "zeros": lambda entry: (entry / "file").write_bytes(bytes(5)),
    "a short file": lambda entry: (entry / "file").write_bytes(b"abc"),
    "a missing file": lambda entry: (entry / "file").unlink(),
    "another file": lambda entry: (entry / "other").touch(),
    "no checksums": lambda entry: (entry / "SHA256SUMS").unlink(),
    "empty checksums": lambda entry: (entry / "SHA256SUMS").write_bytes(b""),
    "checksums of zeros": lambda entry: (entry / "SHA256SUMS").write_bytes(bytes(70)),
    "a link": lambda entry: ((entry / "file").unlink(), (entry / "file").symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupt_entry_is_removed(tmp_path: Path, corruption: str) -> None:
    """An entry that differs from its checksums is not used, and can be added again."""
    with cache.new_entry(tmp_path, "a") as entry:
        (entry / "file").write_bytes(b"abcde")
    CORRUPTIONS[corruption](tmp_path / "a")

    with cache.open_entry(tmp_path, "a") as found:
        assert found is None
    assert list(tmp_path.iterdir()) == []

    add_entry(tmp_path, "a", 4)
    with cache.open_entry(tmp_path, "a") as found:
        assert found == tmp_path / "a"


def test_an_entry_in_use_is_not_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process can fill the cache while log-probabilities are read; afterwards the entry can be evicted."""
    monkeypatch.setattr(cache, "MAX_CACHE_NBYTES", 100)
    add_entry(tmp_path, "a", 60, age_seconds=30)
    with cache.open_entry(tmp_path, "a") as found:
        assert found
        os.utime(found, (0, 0))
        add_entry(tmp_path, "b", 60, age_seconds=20)
        assert (found / "file").exists()
    add_entry(tmp_path, "c", 60)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["c"]


def test_a_cached_entry_is_opened_without_the_folders_of_killed_runs(tmp_path: Path) -> None:
    """A run can be killed after its entry is complete, before its temporary folder is removed."""
    add_entry(tmp_path, "a", 60)
    (tmp_path / "mcpmq-6086-kl_ofs_z").mkdir()

    with cache.open_entry(tmp_path, "a") as found:
        assert found

    assert sorted(one.name for one in tmp_path.iterdir()) == ["a"]


def test_the_reason_of_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in place of the folder, or a parent that does not exist and cannot be created, is a reason."""
    (tmp_path / "file").touch()
    assert cache.write_error(tmp_path / "cache") is None
    assert "File exists" in str(cache.write_error(tmp_path / "file"))
    assert "Not a directory" in str(cache.write_error(tmp_path / "file" / "cache"))
    assert cache.write_error(Path("/proc/cache"))


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
    with cache.open_entry(tmp_path, "a"):
        pass
    add_entry(tmp_path, "d", 30)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "c", "d"]
    add_entry(tmp_path, "e", 200)
    assert [one.name for one in tmp_path.iterdir()] == ["e"]


def test_unfinished_entries_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """An entry that another process still writes is kept, also if the cache is full."""
    (tmp_path / "mcpmq-1-abcdefgh").mkdir()
    with cache.new_entry(tmp_path, "a") as entry:
        unfinished = entry.parent
        add_entry(tmp_path, "b", 5)
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "b", unfinished])
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "b"]


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
