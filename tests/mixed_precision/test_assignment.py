"""Globs say what every weight was given, in few lines."""

from fnmatch import fnmatchcase

from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.mixed_precision.assignment import as_globs, decided

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
    """Whatever the mix; layer 1 is not taken for layers 10 and 11."""
    globs = as_globs(schemes)

    for name, scheme in schemes.items():
        assert [said for glob, said in globs.items() if fnmatchcase(name, glob)][-1] == scheme
    assert sum(map(len, decided(globs, schemes).values())) == len(schemes)
    assert all(decided(globs, schemes).values())  # no line is there for nothing


def test_what_is_alike_stands_in_one_line() -> None:
    """A component; a kind in all layers; and one weight that differs."""
    schemes = dict.fromkeys(NAMES, "q4_k")
    assert as_globs(schemes) == {
        "language.*": "q4_k",
        "vision.*": "q4_k",
        "projector.*": "q4_k",
        "embedding": "q4_k",
        "head": "q4_k",
    }
    schemes |= {name: "q6_k" for name in NAMES if name.endswith("mlp.down")} | {"language.layers.1.mlp.up": "q8_0"}

    globs = as_globs(schemes)

    assert list(globs.items())[-2:] == [("language.layers.*.mlp.down", "q6_k"), ("language.layers.1.mlp.up", "q8_0")]
    assert len(globs) == 7
