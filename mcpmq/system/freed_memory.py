"""Return freed memory to the system."""

import ctypes
import sys

# glibc keeps the pages of freed tensors of up to 32 MB, between those that are in use.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def release_freed_memory() -> None:
    """Return the pages of freed memory to the system, where the C library can do so; takes milliseconds."""
    if _trim is not None:
        _trim(0)
