"""Kernels work without a usable cache of compiled code."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from numba.core.caching import CompileResultCacheImpl, IndexDataCacheFile, UserProvidedCacheLocator

from mcpmq.errors import McpmqWarning
from mcpmq.grids.kernels import compiler


def half(value: float) -> float:
    """Return half of a value."""
    return value / 2


def double(value: float) -> float:
    """Return two times a value."""
    return value * 2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, of a process that has warned of nothing."""
    compiler.warn_once.cache_clear()
    monkeypatch.setattr(compiler, "CACHE_FOLDER", tmp_path)
    return tmp_path


def _fail(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_compiled_code_is_cached(cache: Path) -> None:
    """The second compilation loads the file of the first."""
    assert compiler.kernel(half)(5.0) == 2.5
    assert list(cache.rglob("*.nbi"))

    again: Any = compiler.kernel(half)
    assert again(7.0) == 3.5
    assert sum(again.stats.cache_hits.values()) == 1


def test_a_damaged_file_is_compiled_again(cache: Path) -> None:
    """The files are replaced, so that the next process loads them."""
    compiler.kernel(half)(5.0)
    [index] = cache.rglob("*.nbi")
    index.write_bytes(index.read_bytes()[:40] + b"damaged")

    assert compiler.kernel(half)(9.0) == 4.5

    again: Any = compiler.kernel(half)
    assert again(7.0) == 3.5
    assert sum(again.stats.cache_hits.values()) == 1


def test_a_full_disk_does_not_end_a_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are compiled and not cached, with one warning."""
    monkeypatch.setattr(IndexDataCacheFile, "save", _fail)

    with pytest.warns(McpmqWarning, match="compiled kernels are not cached") as caught:
        assert (compiler.kernel(half)(5.0), compiler.kernel(double)(5.0)) == (2.5, 10.0)

    assert len(caught) == 1
    assert not list(cache.rglob("*.nbi"))


def test_a_read_only_folder_does_not_end_a_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numba rejects folders that it cannot write to when a function is decorated; no other one is left."""
    monkeypatch.setattr(UserProvidedCacheLocator, "ensure_cache_path", _fail)
    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [UserProvidedCacheLocator])

    with pytest.warns(McpmqWarning, match="set the variable XDG_CACHE_HOME"):
        assert compiler.kernel(half)(5.0) == 2.5
    assert not list(cache.rglob("*.nbi"))


def test_a_folder_that_cannot_be_made_has_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the place of the cache folder of the user."""
    compiler.warn_once.cache_clear()
    (tmp_path / "cache").touch()
    monkeypatch.setattr(compiler.NUMBA, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    with pytest.warns(McpmqWarning, match="compiled kernels are not cached"):
        assert compiler._cache_folder() is None


def test_partial_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """Finished files stay; while another process uses the folder, its partial files stay too."""
    partial, finished = tmp_path / "lanes" / "half-7.nbi.tmp.99e6d88fa0704678", tmp_path / "lanes" / "half-7.nbi"
    partial.parent.mkdir()
    partial.write_bytes(b"ind")
    finished.write_bytes(b"index")
    first = compiler.remove_partial_files(tmp_path)
    assert first is not None
    assert not partial.exists()
    assert finished.is_file()

    partial.write_bytes(b"ind")
    second = compiler.remove_partial_files(tmp_path)
    assert second is not None
    assert partial.is_file()

    os.close(first)
    os.close(second)
    third = compiler.remove_partial_files(tmp_path)
    assert third is not None
    assert not partial.exists()
    assert finished.is_file()
    os.close(third)


def test_a_folder_that_vanished_is_not_an_error(tmp_path: Path) -> None:
    """Another user of the machine can empty the cache at any time."""
    assert compiler.remove_partial_files(tmp_path / "none") is None
