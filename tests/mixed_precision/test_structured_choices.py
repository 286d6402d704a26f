"""Limits of images, vocabularies and layers are choices of the same program as schemes, with their bytes and losses."""

from collections.abc import Iterator, Sequence
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.mixed_precision.choices import Choices, Limit, Option, Removal, Setting, Solution
from mcpmq.mixed_precision.knapsack import solve

SCHEMES = ("small", "large")
LAYERS = ("language.layers.0", "language.layers.1")
PLAIN = ("vision.a", *(f"{layer}.q" for layer in LAYERS))
IMAGES, TOKENS = ("all images", "few images"), ("all tokens", "few tokens")
ALL, LANGUAGE = ("vision", "language", "head"), ("language", "head")
losses = st.floats(0, 1)
sizes = st.integers(1, 10**6)
weights = st.lists(st.tuples(sizes, losses), min_size=2, max_size=2)
charge = st.integers(-(10**6), 10**6)


def _options(values: Sequence[tuple[int, float]]) -> list[Option]:
    return [Option(scheme, *one) for scheme, one in zip(SCHEMES, values, strict=True)]


def _solutions(options: dict[str, list[Option]], choices: Choices) -> Iterator[Solution]:
    """Yield every combination."""
    for removed in product([False, True], repeat=len(choices.layers)):
        layers = tuple(one for one, is_gone in zip(choices.layers, removed, strict=True) if is_gone)
        gone = {name for one in layers for name in one.weights}
        for chosen in product(*choices.parts) if len(layers) <= choices.most else ():
            all_options = {**options, **{name: several for one in chosen for name, several in one.options.items()}}
            kept = {name: several for name, several in all_options.items() if name not in gone}
            for combination in product(*kept.values()):
                yield Solution(dict(zip(kept, combination, strict=True)), layers, chosen)


def _nbytes(solution: Solution, limit: Limit) -> float:
    """Return the bytes of a solution, with the charges of the names that it has."""
    names = {*(one.layer for one in solution.removed), *(one.name for one in solution.settings)}
    weights = sum(option.nbytes for name, option in solution.options.items() if limit.covers(name))
    return weights + sum(nbytes for pair, nbytes in limit.charges.items() if names >= {*pair})


@settings(max_examples=60, deadline=None)
@given(
    plain=st.lists(weights, min_size=3, max_size=3),
    heads=st.lists(weights, min_size=2, max_size=2),
    layer_losses=st.tuples(losses, losses),
    setting_losses=st.tuples(losses, losses),
    charges=st.lists(charge, min_size=7, max_size=7),
    shares=st.tuples(st.floats(0, 1.2), st.floats(0, 1.2)),
    most=st.integers(0, 2),
)
def test_no_combination_is_better(
    plain: list[list[tuple[int, float]]],
    heads: list[list[tuple[int, float]]],
    layer_losses: tuple[float, float],
    setting_losses: tuple[float, float],
    charges: list[int],
    shares: tuple[float, float],
    most: int,
) -> None:
    """The loss is the least of all combinations of schemes, removed layers, images and vocabularies within two limits.

    The size of the head depends on the vocabulary; bytes of the KV cache depend on layers and images together.
    """
    options = {name: _options(one) for name, one in zip(PLAIN, plain, strict=True)}
    images = (Setting(IMAGES[0]), Setting(IMAGES[1], setting_losses[0]))
    tokens = tuple(
        Setting(name, loss, {"head": _options(one)})
        for name, loss, one in zip(TOKENS, (0.0, setting_losses[1]), heads, strict=True)
    )
    layers = tuple(Removal(layer, (f"{layer}.q",), loss) for layer, loss in zip(LAYERS, layer_losses, strict=True))
    choices = Choices(layers, most, (images, tokens))
    names = [(IMAGES[1],), *((layer,) for layer in LAYERS), *((layer, IMAGES[1]) for layer in LAYERS), (TOKENS[1],)]
    largest = sum(max(one.nbytes for one in several) for several in options.values()) + heads[0][0][0]
    limits = [
        Limit(ALL, max(1, int(shares[0] * largest)), {(TOKENS[1],): charges[6]}),
        Limit(LANGUAGE, max(1, int(shares[1] * largest)), dict(zip(names, charges[:6], strict=True))),
    ]
    feasible = [
        one for one in _solutions(options, choices) if all(_nbytes(one, limit) <= limit.nbytes for limit in limits)
    ]

    found = solve({**options, "head": _options(heads[0])}, limits, choices)

    if found is None:
        assert not feasible
        return
    assert all(_nbytes(found, limit) <= limit.nbytes * (1 + 1e-5) + 2 for limit in limits)
    assert len(found.removed) <= most
    assert [one.name in part for one, part in zip(found.settings, (IMAGES, TOKENS), strict=True)] == [True, True]
    assert found.options["head"] in dict(zip(TOKENS, tokens, strict=True))[found.settings[1].name].options["head"]
    assert found.loss <= min((one.loss for one in feasible), default=found.loss) + 1e-5
