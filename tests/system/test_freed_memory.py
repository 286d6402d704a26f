"""Freed memory returns to the system."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="functions of glibc")

# Frees all tensors but the last, above which no memory can be returned without a call.
SCRIPT = """
import torch
from mcpmq.runners.worker import rss_bytes
from mcpmq.system import freed_memory

del (large := [torch.ones(7_000_000)])[0]  # glibc takes smaller ones from its heap from now on
if {maps}:
    freed_memory.map_large_blocks()
tensors = [torch.ones(2_000_000) for _ in range(50)]
before = rss_bytes("VmRSS")
del tensors[:-1]
freed = rss_bytes("VmRSS")
freed_memory.release_freed_memory()
print(before - freed, freed - rss_bytes("VmRSS"))
"""


@pytest.mark.parametrize("maps", [False, True])
def test_pages_between_used_ones_are_returned(maps: bool) -> None:
    """392 MB are freed below a tensor that is in use: they return with the call, or at once if they are mapped."""
    command = [sys.executable, "-c", SCRIPT.format(maps=maps)]
    at_once, with_call = map(int, subprocess.check_output(command, text=True).split())

    returned, kept = (at_once, with_call) if maps else (with_call, at_once)
    assert 300e6 < returned < 400e6
    assert kept < 50e6
