"""Mutation tests of the numerical packages: change one operator or constant and run the mirrored tests.

python -m benchmarks.mutation                              writes benchmarks/results/mutation.json
python -m benchmarks.mutation --count 300 --jobs 16        the same with more mutants, on 16 cores
python -m benchmarks.mutation --count 5 --only grids       prints the outcomes of five mutants of one package
python -m benchmarks.mutation --count 300 --outcomes LOG   records the outcomes that an interrupted run printed, and
                                                           runs its survivors again, except of equivalent ones

Each mutant changes one expression of one module in a copy of the project. The tests of the module run, then those of
its package. A mutant is killed if a test fails or the tests exceed the time limit. A survivor is either equivalent to
the original, and then `equivalent_mutants.toml` has the reason, or a gap in the tests. `--jobs` copies of the project
run mutants side by side; `--minutes` is the time after which no further mutant starts. Before the first mutant, all
tests must pass on the unchanged copies: a test that fails anyway, e.g. because a package is not installed, would kill
every mutant. Hypothesis uses one seed for all runs, because a property that seldom fails without a mutation would kill
mutants by chance.

Constants of modules whose names contain CHUNK or TILE are not mutated: they set how much is computed at a time, and any
value gives the same results. Their number is recorded.
"""

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from benchmarks.commands import ROOT, provenance, write_result
from benchmarks.mutants import CHUNK_SIZES, Mutant, package_mutants

PACKAGES = ("grids", "rounding", "calibrate", "evaluate")
TIME_LIMIT_SECONDS = 600
EQUIVALENT_MUTANTS = ROOT / "benchmarks" / "equivalent_mutants.toml"
OUTPUT_LINES = 5  # of a test run that ended without the name of a failing test

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A mutant, the tests that ran, and their verdict: killed, timeout, survived or equivalent."""

    module: str
    line: int
    original: str
    mutated: str
    tests: str
    verdict: str
    seconds: float
    reason: str = ""  # why it is equivalent


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
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *options, target]
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


def read_outcomes(log: Path, sample: Sequence[Mutant]) -> dict[Mutant, Outcome]:
    """Read the outcomes that an interrupted run of a sample printed.

    Raises:
        SystemExit: an outcome is not of this sample; the source or the options differ from those of the run.
    """
    outcomes = [Outcome(**json.loads(line)) for line in log.read_text().splitlines() if line.startswith("{")]
    mutants = {(one.module, one.line, one.original, one.mutated): one for one in sample}
    for one in outcomes:
        if (one.module, one.line, one.original, one.mutated) not in mutants:
            raise SystemExit(f"{log}: {one.module}:{one.line} `{one.mutated}` is not a mutant of this sample")
    return {mutants[one.module, one.line, one.original, one.mutated]: one for one in outcomes}


def name_equivalent(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Give survivors that are known to be equivalent this verdict, with the reason."""
    known = tomllib.loads(EQUIVALENT_MUTANTS.read_text())["mutants"]
    reasons = {(one["module"], one["original"], one["mutated"]): one["reason"] for one in known}

    def name(outcome: Outcome) -> Outcome:
        reason = reasons.get((outcome.module, outcome.original, outcome.mutated))
        if outcome.verdict != "survived" or reason is None:
            return outcome
        return replace(outcome, verdict="equivalent", reason=reason)

    return [name(outcome) for outcome in outcomes]


def _survivors(outcomes: Mapping[Mutant, Outcome]) -> list[Mutant]:
    named = name_equivalent(outcomes.values())
    return [mutant for mutant, outcome in zip(outcomes, named, strict=True) if outcome.verdict == "survived"]


def run_sample(sample: Sequence[Mutant], jobs: int, minutes: float) -> list[Outcome]:
    """Check the tests without a mutation, run the mutants and print each outcome."""
    deadline, outcomes = time.monotonic() + 60 * minutes, []
    with project_copies(jobs) as copies:
        check_baseline(sorted({target for mutant in sample for target in test_targets(mutant.module)}), copies)
        for outcome in run_mutants(sample, copies, deadline):
            outcomes.append(outcome)
            print(json.dumps(asdict(outcome)), flush=True)
    return outcomes


def summary(found: Sequence[Mutant], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the counts of mutants and verdicts, and the outcomes in the order of the source."""
    every = sum(1 for package in PACKAGES for _ in package_mutants(package, chunk_sizes=True))
    return {
        "mutants": len(found),
        "excluded": {f"constants named {', '.join(CHUNK_SIZES)}": every - len(found)},
        "verdicts": dict(Counter(outcome.verdict for outcome in outcomes)),
        "outcomes": [asdict(one) for one in sorted(outcomes, key=lambda one: (one.module, one.line, one.original))],
    }


def parse_options() -> argparse.Namespace:
    """Parse the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PACKAGES, help="one package; the outcomes are printed, not recorded")
    parser.add_argument("--outcomes", type=Path, metavar="LOG", help="the output of an interrupted run of this sample")
    return parser.parse_args()


def main() -> None:
    """Sample mutants with a seed, run them or only the survivors of an interrupted run, and record all."""
    options = parse_options()
    packages = [options.only] if options.only else PACKAGES
    found = [mutant for package in packages for mutant in package_mutants(package)]
    sample = random.Random(options.seed).sample(found, min(options.count, len(found)))
    known = read_outcomes(options.outcomes, sample) if options.outcomes else {}
    done = [outcome for outcome in name_equivalent(known.values()) if outcome.verdict != "survived"]
    to_run = _survivors(known) if known else sample
    results = summary(found, done + name_equivalent(run_sample(to_run, options.jobs, options.minutes)))
    print(f"{len(found)} mutants, {len(results['outcomes'])} run: {results['verdicts']}")
    if not options.only:
        write_result("mutation", provenance("benchmarks.mutation") | {"seed": options.seed} | results)


if __name__ == "__main__":
    main()
