"""What is kept of earlier runs: whole or not at all, and never too much."""

import os
import time
from pathlib import Path

import pytest

from mcpmq.evaluate import cache


def keep(folder: Path, name: str, nbytes: int, age: float = 0) -> None:
    """An entry of so many bytes that was last used so many seconds ago."""
    with cache.remembering(folder, name) as entry:
        (entry / "file").write_bytes(bytes(nbytes))
    os.utime(folder / name, (time.time() - age, time.time() - age))


def test_what_was_kept_is_recalled(tmp_path: Path) -> None:
    """By its name, again and again, also over what was there."""
    keep(tmp_path / "cache", "a", 3)
    keep(tmp_path / "cache", "a", 5)
    recalled = cache.recall(tmp_path / "cache", "a")
    assert recalled is not None
    assert cache.nbytes_of(recalled) == 5
    assert cache.recall(tmp_path / "cache", "b") is None


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    """Neither an entry nor a part of one."""

    def fail() -> None:
        with cache.remembering(tmp_path, "a") as entry:
            (entry / "file").write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_longest_unused_is_given_up_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the limit is met; recalling counts as use; what was just kept stays."""
    monkeypatch.setattr(cache, "LIMIT_NBYTES", 100)
    for name, age in (("a", 30), ("b", 20), ("c", 10)):
        keep(tmp_path, name, 30, age)
    cache.recall(tmp_path, "a")
    keep(tmp_path, "d", 30)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "c", "d"]
    keep(tmp_path, "e", 200)
    assert [one.name for one in tmp_path.iterdir()] == ["e"]


def test_what_a_killed_run_left_is_given_up_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process is writing right now is not touched."""
    monkeypatch.setattr(cache, "LIMIT_NBYTES", 10)
    for name, age in ((".old", 100_000), (".new", 10)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(50))
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    keep(tmp_path, "a", 5)
    assert sorted(one.name for one in tmp_path.iterdir()) == [".new", "a"]
