"""The shared library of the xllamacpp wheel: the C functions of ggml and llama.cpp."""

import ctypes
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from mcpmq.errors import EngineError, MissingExtra

PINNED_VERSION = "2026.10.11549"  # C structures differ between versions; mcpmq uses the layouts of this one
INSTALL_HINT = f"run `pip install xllamacpp=={PINNED_VERSION}`"


def library_path() -> Path:
    """Return the path of the library.

    Raises:
        MissingExtra: the wheel is not installed.
        EngineError: another version is installed, or the wheel has no library.
    """
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise MissingExtra("gguf", "xllamacpp")
    try:
        installed = version("xllamacpp")
    except PackageNotFoundError:
        installed = "unknown"
    if installed != PINNED_VERSION:
        raise EngineError(f"xllamacpp {installed} is installed, mcpmq requires {PINNED_VERSION}", INSTALL_HINT)
    found = sorted(Path(spec.origin).parent.glob("xllamacpp*.so"))
    if not found:
        raise EngineError(f"the xllamacpp wheel in `{Path(spec.origin).parent}` has no shared library", INSTALL_HINT)
    return found[0]


@cache
def load_library() -> ctypes.CDLL:
    """Load the library once per process.

    Raises:
        MissingExtra: the wheel is not installed.
        EngineError: another version is installed, or the system cannot load the library.
    """
    path = library_path()
    _load_openmp()
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        hint = "install the system's `libgomp1`" if "libgomp" in str(error) else INSTALL_HINT
        raise EngineError(f"`{path.name}` cannot be loaded: {error}", hint) from error


def _load_openmp() -> None:
    """Load the libgomp of torch's wheel, if it is installed: the xllamacpp wheel needs libgomp and does not have it."""
    spec = find_spec("torch")
    bundled = Path(spec.origin).parent / "lib" / "libgomp.so.1" if spec and spec.origin else None
    if bundled is not None and bundled.is_file():
        ctypes.CDLL(str(bundled), mode=ctypes.RTLD_GLOBAL)
