"""The wheel's library is loaded from the pinned version only, and what is missing is named."""

import ctypes
from importlib.metadata import requires

import pytest

from mcpmq.errors import EngineError, MissingExtra
from mcpmq.families import family_named
from mcpmq.system import ggml_library


def test_the_pin_is_the_one_of_the_package() -> None:
    """The version that is checked is the version that is installed with mcpmq."""
    pins = [one.partition(";")[0].strip() for one in requires("mcpmq") or []]
    assert f"xllamacpp=={ggml_library.PINNED_VERSION}" in pins


def test_the_refusal_of_gguf_for_4_7_is_still_true() -> None:
    """The pinned library has a projector of 4.6 by name and none of 4.7; once it has, nothing should be refused."""
    library = ggml_library.library_path().read_bytes()

    assert b"minicpmv4_6\0" in library
    assert b"minicpmv4_7" not in library
    assert "pinned llama.cpp" in dict(family_named("minicpm-v-4.7").refusals)["gguf"]


def test_another_version_of_the_wheel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its structures may be laid out otherwise; the hint says what to install."""
    monkeypatch.setattr(ggml_library, "version", lambda _: "2027.1.1")

    with pytest.raises(EngineError, match=r"2027\.1\.1") as caught:
        ggml_library.library_path()

    assert ggml_library.PINNED_VERSION in caught.value.hint


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setattr(ggml_library, "find_spec", lambda _: None)

    with pytest.raises(MissingExtra, match="xllamacpp"):
        ggml_library.library_path()


def test_a_library_without_openmp_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's libgomp is missing where neither torch nor a compiler brought it."""

    def missing(_: str) -> ctypes.CDLL:
        raise OSError("libgomp.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ggml_library, "_load_openmp", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", missing)

    with pytest.raises(EngineError, match="cannot be loaded") as caught:
        ggml_library.library.__wrapped__()

    assert "libgomp1" in caught.value.hint
