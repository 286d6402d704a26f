"""The public Python API."""

import subprocess
import sys

import pytest

import mcpmq


def test_every_public_name_is_available() -> None:
    """All names of `__all__` are sorted by case and name, resolve, and are listed by `dir`."""
    assert mcpmq.__all__ == sorted(mcpmq.__all__)
    assert set(mcpmq.__all__) <= set(dir(mcpmq))
    assert all(getattr(mcpmq, name) is not None for name in mcpmq.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The message has the name."""
    with pytest.raises(AttributeError, match="`frobnicate`"):
        _ = mcpmq.frobnicate


def test_functions_are_not_replaced_by_submodules_of_the_same_name() -> None:
    """After the imports of submodules `mcpmq.convert` and the others are still functions, after any of them first."""
    check = """
import importlib, sys
for first in ("mcpmq.evaluate.measure", "mcpmq.convert", "mcpmq.quantize"):
    for name in [name for name in sys.modules if name.partition(".")[0] == "mcpmq"]:
        del sys.modules[name]
    importlib.import_module(first)
    import mcpmq
    for name in ("convert", "evaluate", "export", "quantize"):
        assert type(getattr(mcpmq, name)).__name__ == "function", (first, name)
"""
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_importing_the_package_imports_no_torch() -> None:
    """Neither torch nor transformers is loaded before a public name is used."""
    code = "import mcpmq, sys; assert not {'torch', 'transformers', 'pydantic'} & sys.modules.keys()"

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
