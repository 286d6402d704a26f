"""Globs give every weight its scheme, in few lines."""

from fnmatch import fnmatchcase

from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.mixed_precision.assignment import group_by_glob, merge_globs, to_globs
from mcpmq.mixed_precision.choices import Option

NAMES = [
    *(f"language.layers.{layer}.{kind}" for layer in range(12) for kind in ("attention.q", "mlp.up", "mlp.down")),
    *(f"vision.layers.{layer}.mlp.up" for layer in range(3)),
    "vision.position_embedding",
    "projector.out",
    "embedding",
    "head",
]


@settings(deadline=None)
@given(st.fixed_dictionaries({name: st.sampled_from(["q4_k", "q6_k", "keep"]) for name in NAMES}))
def test_the_last_match_is_the_scheme_of_every_weight(schemes: dict[str, str]) -> None:
    """This holds for any assignment, and layer 1 does not match layers 10 and 11."""
    globs = to_globs(schemes)

    for name, scheme in schemes.items():
        assert [value for glob, value in globs.items() if fnmatchcase(name, glob)][-1] == scheme
    assert sum(map(len, group_by_glob(globs, schemes).values())) == len(schemes)
    assert all(group_by_glob(globs, schemes).values())  # every line has an effect


def test_weights_with_the_same_scheme_share_a_line() -> None:
    """There is a line for a component, for a weight in all layers, and for a single weight that differs."""
    schemes = dict.fromkeys(NAMES, "q4_k")
    assert to_globs(schemes) == {
        "language.*": "q4_k",
        "vision.*": "q4_k",
        "projector.*": "q4_k",
        "embedding": "q4_k",
        "head": "q4_k",
    }
    schemes |= {name: "q6_k" for name in NAMES if name.endswith("mlp.down")} | {"language.layers.1.mlp.up": "q8_0"}

    globs = to_globs(schemes)

    assert list(globs.items())[-2:] == [("language.layers.*.mlp.down", "q6_k"), ("language.layers.1.mlp.up", "q8_0")]
    assert len(globs) == 7


def test_exceptions_are_merged_within_the_loss_tolerance() -> None:
    """A weight takes the most common scheme if that is not larger and adds at most 0.5 % of the loss in total."""
    names = [f"language.layers.{layer}.mlp.up" for layer in range(4)]
    small, large = Option("q4_k", 10, 1.0), Option("q5_k", 20, 0.5)
    options = {name: [small, large] for name in names}
    options[names[3]] = [Option("q4_k", 10, 0.701), Option("iq4_nl", 10, 0.7)]
    assignment = {names[0]: small, names[1]: small, names[2]: small, names[3]: options[names[3]][1]}

    merged = merge_globs(assignment, options)

    assert {option.scheme for option in merged.values()} == {"q4_k"}


def test_exceptions_above_the_loss_tolerance_stay() -> None:
    """An exception that would add 2 % of the loss stays, as does one whose most common scheme is larger."""
    names = [f"language.layers.{layer}.mlp.up" for layer in range(4)]
    common = Option("q5_k", 20, 1.0)
    lossy, larger = Option("iq4_nl", 20, 0.92), Option("q4_k", 10, 1.0)
    options = {name: [common] for name in names} | {names[2]: [common, lossy], names[3]: [common, larger]}
    assignment = {names[0]: common, names[1]: common, names[2]: lossy, names[3]: larger}

    assert merge_globs(assignment, options) == assignment
