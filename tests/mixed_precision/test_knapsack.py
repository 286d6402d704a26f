"""The solver finds the choice of least loss within the limits."""

from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcpmq.mixed_precision.choices import Limit, Option, min_nbytes
from mcpmq.mixed_precision.knapsack import solve

ALL = ("a", "b")
Options = dict[str, list[Option]]


def _brute_force(options: Options, limits: list[Limit]) -> float | None:
    """The least loss of all combinations within the limits."""
    losses = []
    for combination in product(*options.values()):
        chosen = dict(zip(options, combination, strict=True))
        if all(_nbytes(chosen, limit) <= limit.nbytes for limit in limits):
            losses.append(sum(option.loss for option in combination))
    return min(losses, default=None)


def _nbytes(chosen: dict[str, Option], limit: Limit) -> int:
    return sum(option.nbytes for name, option in chosen.items() if limit.covers(name))


options_of_weights = st.dictionaries(
    st.sampled_from([f"{component}.{number}" for component in ALL for number in range(3)]),
    st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1e-2)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@example(given_options={"b.0": [(1_000_001, 0.0)]}, shares=(0.9999999999999999, 0.0))  # one byte too large
@given(given_options=options_of_weights, shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_no_combination_is_better(
    given_options: dict[str, list[tuple[int, float]]], shares: tuple[float, float]
) -> None:
    """The loss is the least of all combinations, with a limit on all weights and one on a component."""
    options = {
        name: [Option(str(number), nbytes, loss) for number, (nbytes, loss) in enumerate(several)]
        for name, several in given_options.items()
    }
    largest = sum(max(option.nbytes for option in several) for several in options.values())
    limits = [Limit(ALL, int(largest * shares[0])), Limit(("a",), int(largest * shares[1]))]
    best = _brute_force(options, limits)

    chosen = solve(options, limits)

    if chosen is None:
        assert best is None
    else:
        assert best is not None
        assert all(_nbytes(chosen.options, limit) <= limit.nbytes for limit in limits)
        assert chosen.loss <= best + 1e-6 * max(best, 1e-2)


def test_equal_options_give_equal_choices() -> None:
    """The choice is deterministic, also if several have the same loss."""
    options = {f"a.{number}": [Option("small", 10, 1.0), Option("large", 20, 0.0)] for number in range(20)}

    first, second = (solve(options, [Limit(ALL, 300)]) for _ in range(2))

    assert first == second
    assert first
    assert first.loss == 10


def test_limits_below_the_smallest_choice_have_no_solution() -> None:
    """The size of the smallest choice is known, in total and for a component."""
    options = {"a.0": [Option("x", 10, 0.0), Option("y", 7, 1.0)], "b.0": [Option("x", 5, 0.0)]}

    assert solve(options, [Limit(ALL, 11)]) is None
    assert min_nbytes(options, Limit(ALL, 0)) == 12
    assert min_nbytes(options, Limit(("b",), 0)) == 5


def test_the_solver_prints_nothing_to_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output is for results, and the native code of the solver prints on some problems."""
    options = {
        f"a.{number}": [Option(str(bits), 1000 * bits + number, (number + 1) * 4.0**-bits) for bits in (4, 5, 6, 8)]
        for number in range(150)
    }

    assert solve(options, [Limit(ALL, 800_000)])
    assert capfd.readouterr().out == ""
