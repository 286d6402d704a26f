"""The shared library in the xllamacpp wheel: ggml's codec and llama.cpp's engine as C functions, without torch."""

import ctypes
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from mcpmq.errors import EngineError, MissingExtra

PINNED_VERSION = "2026.10.11549"  # its C structures are not stable; the layouts used here are this one's
INSTALL = f"run `pip install xllamacpp=={PINNED_VERSION}`"


def library_path() -> Path:
    """Where the library lies.

    Raises:
        MissingExtra: the wheel is not installed.
        EngineError: another version of it is.
    """
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise MissingExtra("gguf", "xllamacpp")
    try:
        installed = version("xllamacpp")
    except PackageNotFoundError:
        installed = "unknown"
    if installed != PINNED_VERSION:
        raise EngineError(f"xllamacpp {installed} is installed, mcpmq works with {PINNED_VERSION}", INSTALL)
    found = sorted(Path(spec.origin).parent.glob("xllamacpp*.so"))
    if not found:
        raise EngineError(f"the xllamacpp wheel in `{Path(spec.origin).parent}` holds no shared library", INSTALL)
    return found[0]


@cache
def library() -> ctypes.CDLL:
    """The library, loaded once.

    Raises:
        MissingExtra: the wheel is not installed.
        EngineError: it is another version, or the system cannot load it.
    """
    path = library_path()
    _load_openmp()
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        hint = "install the system's `libgomp1`" if "libgomp" in str(error) else INSTALL
        raise EngineError(f"`{path.name}` cannot be loaded: {error}", hint) from error


def _load_openmp() -> None:
    """The wheel needs libgomp and brings none; torch's wheel brings one, under the same name."""
    spec = find_spec("torch")
    bundled = Path(spec.origin).parent / "lib" / "libgomp.so.1" if spec and spec.origin else None
    if bundled is not None and bundled.is_file():
        ctypes.CDLL(str(bundled), mode=ctypes.RTLD_GLOBAL)
