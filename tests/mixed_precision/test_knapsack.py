"""The choice under limits is the best there is."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.mixed_precision.knapsack import Limit, Option, choose, least

ALL = ("a", "b")
Options = dict[str, list[Option]]


def _brute_force(options: Options, limits: list[Limit]) -> float | None:
    """The least loss of all combinations that fit."""
    losses = []
    for combination in product(*options.values()):
        taken = dict(zip(options, combination, strict=True))
        if all(_nbytes(taken, limit) <= limit.nbytes for limit in limits):
            losses.append(sum(option.loss for option in combination))
    return min(losses, default=None)


def _nbytes(taken: dict[str, Option], limit: Limit) -> int:
    return sum(option.nbytes for name, option in taken.items() if limit.holds(name))


options_of_weights = st.dictionaries(
    st.sampled_from([f"{component}.{number}" for component in ALL for number in range(3)]),
    st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1e-2)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(given_options=options_of_weights, shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_no_combination_is_better(
    given_options: dict[str, list[tuple[int, float]]], shares: tuple[float, float]
) -> None:
    """Against all combinations, under one limit over everything and one over a component."""
    options = {
        name: [Option(str(number), nbytes, loss) for number, (nbytes, loss) in enumerate(several)]
        for name, several in given_options.items()
    }
    largest = sum(max(option.nbytes for option in several) for several in options.values())
    limits = [Limit(ALL, int(largest * shares[0])), Limit(("a",), int(largest * shares[1]))]
    best = _brute_force(options, limits)

    chosen = choose(options, limits)

    if chosen is None:
        assert best is None
    else:
        assert best is not None
        assert all(_nbytes(chosen, limit) <= limit.nbytes * (1 + 1e-6) for limit in limits)
        assert sum(option.loss for option in chosen.values()) <= best + 1e-6 * max(best, 1e-2)


def test_the_same_options_give_the_same_choice() -> None:
    """Also where several choices are as good."""
    options = {f"a.{number}": [Option("small", 10, 1.0), Option("large", 20, 0.0)] for number in range(20)}

    first, second = (choose(options, [Limit(ALL, 300)]) for _ in range(2))

    assert first == second
    assert first
    assert sum(option.loss for option in first.values()) == 10


def test_what_cannot_fit_is_said() -> None:
    """And how small the smallest is."""
    options = {"a.0": [Option("x", 10, 0.0), Option("y", 7, 1.0)], "b.0": [Option("x", 5, 0.0)]}

    assert choose(options, [Limit(ALL, 11)]) is None
    assert least(options, Limit(ALL, 0)) == 12
    assert least(options, Limit(("b",), 0)) == 5


def test_nothing_is_printed_where_results_go(capfd: pytest.CaptureFixture[str]) -> None:
    """The solver's code would, now and then."""
    options = {
        f"a.{number}": [Option(str(bits), 1000 * bits + number, (number + 1) * 4.0**-bits) for bits in (4, 5, 6, 8)]
        for number in range(150)
    }

    assert choose(options, [Limit(ALL, 800_000)])
    assert capfd.readouterr().out == ""
