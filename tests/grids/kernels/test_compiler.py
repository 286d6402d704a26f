"""Kernels work without a usable cache of compiled code."""

import errno
from pathlib import Path
from typing import Any

import pytest
from numba.core.caching import IndexDataCacheFile, UserProvidedCacheLocator

from mcpmq.grids.kernels import compiler


def half(value: float) -> float:
    """Return half of a value."""
    return value / 2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
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
    """Kernels are compiled and not cached."""
    monkeypatch.setattr(IndexDataCacheFile, "save", _fail)

    assert compiler.kernel(half)(5.0) == 2.5
    assert not list(cache.rglob("*.nbi"))


def test_a_read_only_folder_does_not_end_a_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numba rejects folders that it cannot write to when a function is decorated."""
    monkeypatch.setattr(UserProvidedCacheLocator, "ensure_cache_path", _fail)

    assert compiler.kernel(half)(5.0) == 2.5
    assert not list(cache.rglob("*.nbi"))
