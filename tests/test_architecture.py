"""Rules of the source code: size of functions and files, docstrings, mirrored tests, light imports, one version."""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mcpmq"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted([*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "calibration").rglob("*.py")])
TESTED_WITH_OTHERS = {"__init__", "__main__", "errors", "format", "options", "progress", "runner", "family"}


@dataclass(frozen=True)
class Function:
    """The facts about a function that the tests check."""

    name: str
    lines: int
    statements: int
    has_docstring: bool


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def _functions(path: Path) -> tuple[Function, ...]:
    nodes = (node for node in ast.walk(_tree(path)) if isinstance(node, ast.FunctionDef))
    return tuple(
        Function(
            node.name, (node.end_lineno or 0) - node.lineno + 1, len(node.body), ast.get_docstring(node) is not None
        )
        for node in nodes
    )


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("paths", [MODULES, SCRIPTS], ids=["mcpmq", "scripts"])
def test_functions_are_short(paths: list[Path]) -> None:
    """The median function has at most 8 lines, nine of ten have at most 20, none has more than 60."""
    lengths = [function.lines for path in paths for function in _functions(path)]

    assert median(lengths) <= 8
    assert quantiles(lengths, n=10)[-1] <= 20
    assert max(lengths) <= 60


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=_relative)
def test_modules_have_a_docstring_and_at_most_300_lines(path: Path) -> None:
    """Every module begins with a docstring and has at most 300 lines."""
    assert ast.get_docstring(_tree(path))
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=_relative)
def test_public_functions_have_a_docstring(path: Path) -> None:
    """Every public function of more than four statements has a docstring."""
    for function in _functions(path):
        if not function.name.startswith("_") and function.statements > 4:
            assert function.has_docstring, function.name


def test_every_module_has_tests() -> None:
    """A test file or a test directory has the name of each module or of one of its packages."""
    files = list((ROOT / "tests").rglob("test_*.py"))
    tested = {path.stem.removeprefix("test_") for path in files} | {path.parent.name for path in files}
    for path in MODULES:
        names = {path.stem, *path.relative_to(PACKAGE).parent.parts}
        assert path.stem in TESTED_WITH_OTHERS or any(test.startswith(tuple(names)) for test in tested), path


def test_a_family_is_one_file_of_at_most_100_lines() -> None:
    """Every module that `mcpmq.families` imports for its list of families has at most 100 lines."""
    tree = ast.parse((PACKAGE / "families" / "__init__.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "mcpmq.families"]
    files = [PACKAGE / "families" / f"{name.name}.py" for node in imports for name in node.names]

    assert files
    for file in files:
        assert len(file.read_text().splitlines()) <= 100, file


def test_families_import_no_torch_and_no_processors() -> None:
    """`import mcpmq.families` loads neither torch nor transformers, Pillow, tokenizers or jinja2."""
    heavy = {"torch", "transformers", "PIL", "tokenizers", "jinja2"}
    code = f"import sys, mcpmq.families; assert not {heavy!r} & sys.modules.keys()"

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


HELP_ARGUMENTS = [["--help"], *([name, "--help"] for name in ("plan", "run", "convert", "report"))]


@pytest.mark.parametrize("arguments", HELP_ARGUMENTS)
def test_help_imports_no_torch(arguments: list[str]) -> None:
    """Help texts are printed without an import of torch."""
    code = f"import sys; sys.argv = ['mcpmq', *{arguments!r}]\ntry:\n from mcpmq.cli import main; main()\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_versions_agree() -> None:
    """`mcpmq.__version__` is the version of pyproject.toml."""
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared

    from mcpmq import __version__

    assert __version__ == declared[1]
