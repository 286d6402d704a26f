"""The library is loaded from the pinned wheel only; errors name the missing package and the command to install it."""

import ctypes
from importlib.metadata import requires

import pytest

from mcpmq.errors import EngineError, MissingExtra
from mcpmq.families import family_named
from mcpmq.system import ggml_library


def test_the_pinned_version_is_the_dependency_of_the_package() -> None:
    """The metadata of mcpmq requires exactly the version that is checked."""
    pins = [requirement.partition(";")[0].strip() for requirement in requires("mcpmq") or []]
    assert f"xllamacpp=={ggml_library.PINNED_VERSION}" in pins


def test_the_pinned_llama_cpp_does_not_support_4_7() -> None:
    """The library contains the projector name of 4.6 and not that of 4.7, which the family declares as unsupported."""
    library = ggml_library.library_path().read_bytes()

    assert b"minicpmv4_6\0" in library
    assert b"minicpmv4_7" not in library
    assert "pinned llama.cpp" in dict(family_named("minicpm-v-4.7").unsupported_formats)["gguf"]


def test_another_version_of_the_wheel_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its C structures may differ; the hint has the command that installs the pinned version."""
    monkeypatch.setattr(ggml_library, "version", lambda _: "2027.1.1")

    with pytest.raises(EngineError, match=r"2027\.1\.1") as caught:
        ggml_library.library_path()

    assert ggml_library.PINNED_VERSION in caught.value.hint


def test_a_missing_wheel_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the package."""
    monkeypatch.setattr(ggml_library, "find_spec", lambda _: None)

    with pytest.raises(MissingExtra, match="xllamacpp"):
        ggml_library.library_path()


def test_a_missing_libgomp_is_reported_with_its_system_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems without torch and without a compiler may lack libgomp."""

    def missing(_: str) -> ctypes.CDLL:
        raise OSError("libgomp.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ggml_library, "_load_openmp", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", missing)

    with pytest.raises(EngineError, match="cannot be loaded") as caught:
        ggml_library.load_library.__wrapped__()

    assert "libgomp1" in caught.value.hint
