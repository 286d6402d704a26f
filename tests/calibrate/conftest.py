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
