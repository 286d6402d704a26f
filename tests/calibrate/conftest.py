"""Fixtures of calibration tests."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest


@pytest.fixture(scope="module")
def no_bfloat16() -> Iterator[None]:
    """Do not round products of one thread to bfloat16: the setting would be that of all threads of the test."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mcpmq.calibrate.observers.bfloat16_matmul", nullcontext)
        yield


@pytest.fixture(scope="module")
def tiles_of_eight() -> Iterator[None]:
    """Tiles of eight columns, and a Hessian that is updated after thirteen tokens."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mcpmq.calibrate.observers.TILE_COLUMNS", 8)
        patched.setattr("mcpmq.calibrate.observers.BUFFER_TOKENS", 13)
        yield
