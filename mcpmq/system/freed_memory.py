"""Return freed memory to the system: glibc keeps the pages of freed tensors of up to 32 MB, between those in use."""

import ctypes
import sys

MMAP_THRESHOLD = -3  # of mallopt, in malloc.h
MAPPED_NBYTES = 4 << 20  # page faults of larger blocks take little time beside the products of such tensors

_library = ctypes.CDLL(None) if sys.platform == "linux" else None


def release_freed_memory() -> None:
    """Return the pages of freed memory to the system, where the C library can do so; takes milliseconds."""
    if _library is not None and hasattr(_library, "malloc_trim"):
        _library.malloc_trim(0)


def map_large_blocks() -> None:
    """Allocate blocks of more than 4 MiB outside of the heap from now on: they return to the system when freed."""
    if _library is not None and hasattr(_library, "mallopt"):
        _library.mallopt(MMAP_THRESHOLD, MAPPED_NBYTES)
