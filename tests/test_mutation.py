"""Mutation testing: mutants are valid, change one expression, and leave annotations and messages unchanged."""

import ast
import json
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier

import pytest

from benchmarks.mutants import module_mutants
from benchmarks.mutation import Outcome, check_baseline, name_equivalent, read_outcomes, run_side_by_side
from benchmarks.mutation import test_targets as targets_of

SOURCE = '''"""A module."""

WIDTH: int = 4


def clip(values: "Tensor", low: float = -0.5) -> "Tensor":
    """Clip values; ü is two bytes."""
    if len("ü") < WIDTH and not values.any():
        raise ValueError(f"{WIDTH + 1} values")
    return values.max() - low * 2 + 0.0
'''


def test_mutants_change_one_expression() -> None:
    """Operators, comparisons, constants, negations and reductions are changed; annotations and messages are not."""
    changes = {(mutant.original, mutant.mutated) for mutant in module_mutants("mcpmq/grids/x.py", SOURCE)}

    assert changes == {
        ("4", "5"),
        ("-0.5", "0.5"),
        ("0.5", "1.0"),
        ("2", "3"),
        ("len('ü') < WIDTH and (not values.any())", "len('ü') < WIDTH or not values.any()"),
        ("len('ü') < WIDTH", "len('ü') <= WIDTH"),
        ("not values.any()", "values.any()"),
        ("values.max() - low * 2", "values.max() + low * 2"),
        ("values.max() - low * 2 + 0.0", "values.max() - low * 2 - 0.0"),
        ("0.0", "1.0"),
        ("values.max()", "values.min()"),
        ("low * 2", "low / 2"),
    }


def test_chunk_sizes_are_not_mutated() -> None:
    """Constants of a module with CHUNK or TILE in all their names are left out unless they are counted."""
    source = "CHUNK_ROWS = 8\nROWS = 5\nTILE, WIDTH = 2, 3\ndef f():\n    return CHUNK_ROWS + 7\n"
    found, counted = (
        [mutant.original for mutant in module_mutants("mcpmq/grids/x.py", source, chunk_sizes=chunk_sizes)]
        for chunk_sizes in (False, True)
    )

    assert sorted(found) == ["2", "3", "5", "7", "CHUNK_ROWS + 7"]
    assert sorted(counted) == ["2", "3", "5", "7", "8", "CHUNK_ROWS + 7"]


def test_mutants_are_applied_at_their_place() -> None:
    """Each mutated source parses and differs from the original in one line, after characters of two bytes as well."""
    for mutant in module_mutants("mcpmq/grids/x.py", SOURCE):
        mutated = mutant.apply(SOURCE)
        lines = zip(SOURCE.splitlines(), mutated.splitlines(), strict=True)

        assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(SOURCE))
        assert [number for number, (one, other) in enumerate(lines, start=1) if one != other] == [mutant.line]


def test_tests_of_a_module_run_before_those_of_its_package() -> None:
    """A module has its test file and the tests of its package; a module without a test file has the latter."""
    assert targets_of("mcpmq/grids/integer.py") == ["tests/grids/test_integer.py", "tests/grids"]
    assert targets_of("mcpmq/grids/absent.py") == ["tests/grids"]


def test_tests_that_fail_without_a_mutation_are_an_error(tmp_path: Path) -> None:
    """The error names failing tests, tests whose fixtures fail, and targets that pytest cannot run."""
    copies = [tmp_path / "a", tmp_path / "b"]
    for copy in copies:
        copy.mkdir()
        (copy / "test_passing.py").write_text("def test_passes(): pass\n")
        (copy / "test_failing.py").write_text(
            "def test_passes(): pass\ndef test_one(): assert False\ndef test_two(absent_fixture): pass\n"
        )

    with pytest.raises(SystemExit, match="without a mutation") as caught:
        check_baseline(["test_passing.py", "test_failing.py", "absent.py"], copies)

    absent, *failing = str(caught.value).splitlines()[1:]
    assert absent.startswith("absent.py: ")
    assert "file or directory not found" in absent
    assert failing == ["test_failing.py::test_one", "test_failing.py::test_two"]


def test_each_copy_runs_one_call_at_a_time() -> None:
    """All items are processed, by all copies, and a copy is not shared."""
    copies, both_run, used = [Path("a"), Path("b")], Barrier(2, timeout=30), list[Path]()

    def call(item: int, copy: Path) -> int:
        used.append(copy)
        if both_run.wait() == 0:  # one of the two
            assert sorted(used) == copies
            used.clear()
        both_run.wait()
        return item * 3

    assert sorted(run_side_by_side(call, range(1, 9), copies)) == [3 * item for item in range(1, 9)]


def test_outcomes_of_an_interrupted_run_are_read(tmp_path: Path) -> None:
    """Lines that are not outcomes are skipped; an outcome of a mutant outside of the sample ends the program."""
    sample = list(module_mutants("mcpmq/grids/x.py", SOURCE))
    done = Outcome("mcpmq/grids/x.py", sample[0].line, sample[0].original, sample[0].mutated, "tests", "killed", 1.5)
    log = tmp_path / "log"
    log.write_text(f"started\n{json.dumps(asdict(done))}\n")

    assert read_outcomes(log, sample) == {sample[0]: done}
    with pytest.raises(SystemExit, match="x.py:.* is not a mutant of this sample"):
        read_outcomes(log, sample[1:])


def test_a_survivor_is_equivalent_only_with_a_reason() -> None:
    """A killed mutant and one without a reason keep their verdicts."""
    module = "mcpmq/rounding/magnitudes.py"
    chunk = "CHUNK_WEIGHTS // weight.shape[1]", "CHUNK_WEIGHTS * weight.shape[1]"
    survived = Outcome(module, 41, *chunk, "tests", "survived", 1.5)
    killed, other = replace(survived, verdict="killed"), replace(survived, mutated="CHUNK_WEIGHTS")

    named, *kept = name_equivalent([survived, killed, other])

    assert named.verdict == "equivalent"
    assert "counts are sums over rows" in named.reason
    assert kept == [killed, other]
