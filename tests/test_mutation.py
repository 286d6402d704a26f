"""Mutation testing: mutants are valid, change one expression, and leave annotations and messages unchanged."""

import ast

from benchmarks.mutation import module_mutants
from benchmarks.mutation import test_targets as targets_of

SOURCE = '''"""A module."""

WIDTH: int = 4


def clip(values: "Tensor", low: float = -0.5) -> "Tensor":
    """Clip values; ü is two bytes."""
    if len("ü") < WIDTH and not values.any():
        raise ValueError(f"{WIDTH + 1} values")
    return values.max() - low * 2
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
        ("values.max()", "values.min()"),
        ("low * 2", "low / 2"),
    }


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
