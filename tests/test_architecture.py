"""The rules of the house, held by machine where a machine can hold them."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import pytest

HOUSE = Path(__file__).parent.parent / "mcpmq"
MODULES = sorted(HOUSE.rglob("*.py"))


def _functions(path: Path) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))


def _lengths() -> list[int]:
    return [function.end_lineno - function.lineno + 1 for path in MODULES for function in _functions(path)]  # type: ignore[operator]


def test_half_of_the_functions_are_under_ten_lines() -> None:
    """Median below 10, nine of ten below 30, none over 60."""
    lengths = _lengths()

    assert median(lengths) < 10
    assert quantiles(lengths, n=10)[-1] < 30
    assert max(lengths) <= 60


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_module_says_in_one_sentence_what_room_it_is_and_stays_small(path: Path) -> None:
    """A docstring opens every module, and none has more than 300 lines."""
    text = path.read_text()

    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 300


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_every_public_function_says_what_it_does(path: Path) -> None:
    """No underscore, a docstring; Protocols and overrides of known methods excepted."""
    for function in _functions(path):
        if not function.name.startswith("_") and len(function.body) > 4:
            assert ast.get_docstring(function), function.name


def test_there_is_a_test_file_for_every_room() -> None:
    """tests/ mirrors mcpmq/: a module, or the folder that it lies in, has its tests."""
    tests = {path.stem.removeprefix("test_") for path in (HOUSE.parent / "tests").rglob("test_*.py")}
    tests |= {path.parent.name for path in (HOUSE.parent / "tests").rglob("test_*.py")}
    exempt = {"__init__", "__main__", "errors", "progress", "qtensor", "format", "runner", "family", "record"}
    exempt |= {"options"}
    for path in MODULES:
        names = {path.stem, *path.relative_to(HOUSE).parent.parts}
        assert path.stem in exempt or any(test.startswith(tuple(names)) for test in tests), path


def test_a_family_is_one_file_of_at_most_a_hundred_lines() -> None:
    """Towers, connectors and what reads inputs are rooms of their own; a family says which of them it is made of."""
    listed = ast.parse((HOUSE / "families" / "__init__.py").read_text())
    imports = [node for node in listed.body if isinstance(node, ast.ImportFrom) and node.module == "mcpmq.families"]
    files = [HOUSE / "families" / f"{name.name}.py" for node in imports for name in node.names]

    assert files
    for file in files:
        assert len(file.read_text().splitlines()) <= 100, file


def test_what_a_model_is_made_of_is_known_without_what_reads_images_and_text() -> None:
    """Plans start at once."""
    heavy = {"torch", "transformers", "PIL", "tokenizers", "jinja2"}
    code = f"import sys, mcpmq.families; assert not {heavy!r} & sys.modules.keys()"

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["convert", "--help"], ["report", "--help"]])
def test_help_imports_no_torch(arguments: list[str]) -> None:
    """Help is there at once."""
    code = f"import sys; sys.argv = ['mcpmq', *{arguments!r}]\ntry:\n from mcpmq.cli import main; main()\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_one_version_is_said_everywhere() -> None:
    """Package, metadata and changelog agree."""
    root = HOUSE.parent
    declared = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared

    from mcpmq import __version__

    assert __version__ == declared[1]
