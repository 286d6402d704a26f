"""Freed memory returns to the system."""

import subprocess
import sys

import pytest

# Frees all tensors but the last, above which no memory can be returned without a call.
SCRIPT = """
import torch
from mcpmq.runners.worker import rss_bytes
from mcpmq.system.freed_memory import release_freed_memory

del (large := [torch.ones(7_000_000)])[0]  # glibc takes smaller ones from its heap from now on
tensors = [torch.ones(1_000_000) for _ in range(100)]
del tensors[:-1]
before = rss_bytes("VmRSS")
release_freed_memory()
print(before - rss_bytes("VmRSS"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a function of glibc")
def test_pages_between_used_ones_are_returned() -> None:
    """396 MB are freed below a tensor that is in use."""
    command = [sys.executable, "-c", SCRIPT]
    released = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert 300e6 < released < 400e6
