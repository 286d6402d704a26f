"""Mutation tests of the numerical packages: change one operator or constant and run the mirrored tests.

python -m benchmarks.mutation                          writes benchmarks/results/mutation.json
python -m benchmarks.mutation --count 300 --jobs 16    the same with more mutants, on 16 cores
python -m benchmarks.mutation --count 5 --only grids   prints the outcomes of five mutants of one package

Each mutant changes one expression of one module in a copy of the project. The tests of the module run, then those of
its package. A mutant is killed if a test fails or the tests exceed the time limit. A survivor is either equivalent to
the original or a gap in the tests. `--jobs` copies of the project run mutants side by side; `--minutes` is the time
after which no further mutant starts. Before the first mutant, all tests must pass on the unchanged copies: a test that
fails anyway, e.g. because a package is not installed, would kill every mutant.
"""

import argparse
import ast
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from benchmarks.commands import ROOT, provenance, write_result

PACKAGES = ("grids", "rounding", "calibrate", "evaluate")
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
METHODS = {
    "max": "min",
    "min": "max",
    "amax": "amin",
    "amin": "amax",
    "argmax": "argmin",
    "argmin": "argmax",
    "floor": "ceil",
}
TIME_LIMIT_SECONDS = 600
OUTPUT_LINES = 5  # of a test run that ended without the name of a failing test

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed expression: lines and columns count as in `ast`, columns in bytes."""

    module: str  # relative to the project
    line: int
    column: int
    end_line: int
    end_column: int
    original: str
    mutated: str

    def apply(self, source: str) -> str:
        """Return the source of the module with the expression replaced."""
        lines = source.encode().splitlines(keepends=True)
        before = b"".join(lines[: self.line - 1]) + lines[self.line - 1][: self.column]
        after = lines[self.end_line - 1][self.end_column :] + b"".join(lines[self.end_line :])
        return (before + f"({self.mutated})".encode() + after).decode()


@dataclass(frozen=True, slots=True)
class Outcome:
    """A mutant, the tests that ran, and their verdict: killed, survived or timeout."""

    module: str
    line: int
    original: str
    mutated: str
    tests: str
    verdict: str
    seconds: float


def package_mutants(package: str) -> Iterator[Mutant]:
    """Yield all mutants of a package, in the order of files and expressions."""
    for path in sorted((ROOT / "mcpmq" / package).rglob("*.py")):
        yield from module_mutants(str(path.relative_to(ROOT)), path.read_text())


def module_mutants(module: str, source: str) -> Iterator[Mutant]:
    """Yield all mutants of a module."""
    tree = ast.parse(source)
    skipped = {id(inner) for node in ast.walk(tree) for part in _without_behavior(node) for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and id(node) not in skipped and (changed := _changed(node)):
            place = (node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)
            yield Mutant(module, *place, ast.unparse(node), changed)


def _without_behavior(node: ast.AST) -> Iterator[ast.AST]:
    """Yield annotations, error messages, assertions and f-strings: changes there are equivalent or break the syntax."""
    if isinstance(node, ast.AnnAssign):
        yield node.annotation
    elif isinstance(node, ast.FunctionDef):
        yield from (
            argument.annotation
            for argument in ast.walk(node.args)
            if isinstance(argument, ast.arg) and argument.annotation
        )
        yield from [node.returns] if node.returns else []
        yield from node.decorator_list
    elif isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
        yield node


def _changed(node: ast.expr) -> str | None:
    """Return the mutated source of an expression, or None if no mutation applies."""
    changed: ast.expr = deepcopy(node)
    if isinstance(changed, ast.BinOp | ast.BoolOp) and type(changed.op) in OPERATORS:
        changed.op = OPERATORS[type(changed.op)]()  # type: ignore[assignment]
    elif isinstance(changed, ast.Compare) and type(changed.ops[0]) in OPERATORS:
        changed.ops[0] = OPERATORS[type(changed.ops[0])]()  # type: ignore[call-overload]
    elif isinstance(changed, ast.UnaryOp) and isinstance(changed.op, ast.USub | ast.Not):
        changed = changed.operand
    elif isinstance(changed, ast.Call) and isinstance(changed.func, ast.Attribute) and changed.func.attr in METHODS:
        changed.func.attr = METHODS[changed.func.attr]
    else:
        return _changed_constant(node)
    return ast.unparse(changed)


def _changed_constant(node: ast.expr) -> str | None:
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return repr(value + 1 if isinstance(value, int) else 2 * value or 1.0)


def test_targets(module: str) -> list[str]:
    """Return the test file of a module, if there is one, and the test directory of its package."""
    path = Path(module).relative_to("mcpmq")
    file = Path("tests") / path.parent / f"test_{path.stem}.py"
    return [str(file), str(file.parent)] if (ROOT / file).is_file() else [str(file.parent)]


def run_mutant(mutant: Mutant, copy: Path) -> Outcome:
    """Run the tests of a mutant in a copy of the project until one target fails, and restore the module."""
    module, start = copy / mutant.module, time.monotonic()
    source = module.read_text()
    module.write_text(mutant.apply(source))
    verdict, target = "survived", ""
    try:
        for target in test_targets(mutant.module):
            if (verdict := _verdict(target, copy)) != "survived":
                break
    finally:
        module.write_text(source)
    seconds = round(time.monotonic() - start, 1)
    return Outcome(mutant.module, mutant.line, mutant.original, mutant.mutated, target, verdict, seconds)


def _verdict(target: str, copy: Path) -> str:
    try:
        return "killed" if _run_tests(target, copy, "-x").returncode else "survived"
    except subprocess.TimeoutExpired:
        return "timeout"


def _run_tests(target: str, copy: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, target]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(copy), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT_SECONDS
    )


def check_baseline(targets: Iterable[str], copies: Sequence[Path]) -> None:
    """Check that all tests of the targets pass without a mutation; each target runs once.

    Raises:
        SystemExit: tests fail or exceed the time limit; the message names them.
    """
    failures = {name for found in run_side_by_side(failing_tests, targets, copies) for name in found}
    if failures:
        raise SystemExit("\n".join(["tests fail without a mutation:", *sorted(failures)]))


def failing_tests(target: str, copy: Path) -> list[str]:
    """Run all tests of a target in a copy of the project and return the names of those that fail."""
    try:
        done = _run_tests(target, copy, "-rfE", "--tb=no")
    except subprocess.TimeoutExpired:
        return [f"{target}: exceeds {TIME_LIMIT_SECONDS} s"]
    lines = (done.stdout + done.stderr).splitlines()
    names = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if done.returncode and not names:  # e.g. a plugin failed
        return [f"{target}: {' '.join(lines[-OUTPUT_LINES:])}"]
    return names


def run_mutants(sample: Sequence[Mutant], copies: Sequence[Path], deadline: float) -> Iterator[Outcome]:
    """Yield the outcome of every mutant that starts before the deadline, as it is found."""

    def run(mutant: Mutant, copy: Path) -> Outcome | None:
        return run_mutant(mutant, copy) if time.monotonic() < deadline else None

    return filter(None, run_side_by_side(run, sample, copies))


def run_side_by_side(
    function: Callable[[Item, Path], Result], items: Iterable[Item], copies: Sequence[Path]
) -> Iterator[Result]:
    """Call a function with every item and a copy of the project that no other call uses; yield results as found."""
    idle: SimpleQueue[Path] = SimpleQueue()
    for copy in copies:
        idle.put(copy)

    def call(item: Item) -> Result:
        copy = idle.get()
        try:
            return function(item, copy)
        finally:
            idle.put(copy)

    with ThreadPoolExecutor(len(copies)) as pool:
        for future in as_completed([pool.submit(call, item) for item in items]):
            yield future.result()


@contextmanager
def project_copies(jobs: int) -> Iterator[list[Path]]:
    """Yield a temporary copy of the project for every job."""
    with tempfile.TemporaryDirectory() as folder:
        yield [copy_project(Path(folder) / str(job)) for job in range(jobs)]


def copy_project(folder: Path) -> Path:
    """Copy the packages that tests import; calibration data is linked."""
    for name in ("mcpmq", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    (folder / "calibration").symlink_to(ROOT / "calibration")
    return folder


def main() -> None:
    """Check the tests, sample mutants with a seed, run them, print each outcome and record all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PACKAGES, help="one package; the outcomes are printed, not recorded")
    options = parser.parse_args()
    found = [
        mutant for package in ([options.only] if options.only else PACKAGES) for mutant in package_mutants(package)
    ]
    sample = random.Random(options.seed).sample(found, min(options.count, len(found)))
    deadline, outcomes = time.monotonic() + 60 * options.minutes, []
    with project_copies(options.jobs) as copies:
        check_baseline(sorted({target for mutant in sample for target in test_targets(mutant.module)}), copies)
        for outcome in run_mutants(sample, copies, deadline):
            outcomes.append(outcome)
            print(json.dumps(asdict(outcome)), flush=True)
    outcomes.sort(key=lambda one: (one.module, one.line, one.original))
    counts = dict(Counter(outcome.verdict for outcome in outcomes))
    print(f"{len(found)} mutants, {len(outcomes)} run: {counts}")
    if not options.only:
        facts = provenance("benchmarks.mutation") | {"seed": options.seed, "mutants": len(found), "verdicts": counts}
        write_result("mutation", facts | {"outcomes": [asdict(outcome) for outcome in outcomes]})


if __name__ == "__main__":
    main()
