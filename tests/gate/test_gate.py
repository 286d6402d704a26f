"""Gate files: valid bounds, and errors."""

import math
from pathlib import Path

import pytest

from mcpmq.errors import GateError
from mcpmq.gate import Bound, Gate


def test_a_gate_is_read_from_toml(tmp_path: Path) -> None:
    """Tables are named by reference and group; a bound applies to the value unless an end is given."""
    (tmp_path / "gate.toml").write_text(
        'artifacts = "gguf *"\n[original.image]\nkl_divergence = { at_most = 0.01, on = "high" }\n'
        "[baseline.artifact]\nnbytes_ratio = { at_least = 0.9, at_most = 1.1 }\n"
    )
    gate = Gate.load(tmp_path / "gate.toml")
    assert gate.artifacts == "gguf *"
    assert gate.original["image"]["kl_divergence"] == Bound(at_most=0.01, on="high")
    assert str(gate.baseline["artifact"]["nbytes_ratio"]) == "at least 0.9 and at most 1.1"


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    """Windows editors write one."""
    (tmp_path / "gate.toml").write_text("[original.image]\nkl_divergence = { at_most = 1 }", encoding="utf-8-sig")
    assert Gate.load(tmp_path / "gate.toml").original["image"]["kl_divergence"] == Bound(at_most=1)


def test_deep_nesting_is_rejected(tmp_path: Path) -> None:
    """The parser has a limit."""
    (tmp_path / "gate.toml").write_text("x = " + "[" * 100_000)
    with pytest.raises(GateError, match="cannot be read"):
        Gate.load(tmp_path / "gate.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = ", "cannot be read"),
        ("", "has no bounds"),
        ("[original.image]", "has no bounds"),
        ("[original.image]\nkl_divergence = {}", "neither `at_most` nor `at_least`"),
        ('[original.image]\nkl_divergence = { at_most = "1" }', "original.image.kl_divergence.at_most"),
        ("[original.image]\nkl_divergence = { below = 1 }", "Extra inputs"),
        ('[original.image]\nkl_divergence = { at_most = 1, on = "mean" }', "on"),
        ("[orignal.image]\nkl_divergence = { at_most = 1 }", "orignal"),
    ],
)
def test_an_invalid_gate_is_rejected(text: str, message: str, tmp_path: Path) -> None:
    """The error has the file and the field."""
    (tmp_path / "gate.toml").write_text(text)
    with pytest.raises(GateError, match=f"gate.toml.*{message}"):
        Gate.load(tmp_path / "gate.toml")


def test_bounds_have_the_line_of_their_file(tmp_path: Path) -> None:
    """Tables, dotted and quoted keys have lines; a bound inside of an inline table has that of the table."""
    lines = [
        "# a comment with a = sign",
        "original.text.kl_divergence.at_most = 0.5",
        "[original.image]",
        "kl_divergence = { at_most = 0.01 }",
        '"perplexity_ratio" = { at_most = 1.02 }',
        "[original.artifact.nbytes]",
        "at_most = 100",
        "[baseline]",
        "image = { kl_divergence_increase = { at_most = 0.1 } }",
    ]
    (tmp_path / "gate.toml").write_text("\n".join(lines))
    gate = Gate.load(tmp_path / "gate.toml")

    found = {(group, metric): gate.line("original", group, metric) for group, metric, _ in gate.bounds("original")}
    assert found == {
        ("text", "kl_divergence"): 2,
        ("image", "kl_divergence"): 4,
        ("image", "perplexity_ratio"): 5,
        ("artifact", "nbytes"): 6,
    }
    assert gate.line("baseline", "image", "kl_divergence_increase") == 9
    assert gate.file == tmp_path / "gate.toml"
    assert Gate().line("original", "image", "kl_divergence") == 1


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_file_that_cannot_be_read_is_rejected(content: bytes | None, tmp_path: Path) -> None:
    """A missing file and a file that is not UTF-8 are errors."""
    if content:
        (tmp_path / "gate.toml").write_bytes(content)
    with pytest.raises(GateError, match="cannot be read"):
        Gate.load(tmp_path / "gate.toml")


def test_limits_are_inclusive_and_nan_fails() -> None:
    """A value equal to a limit holds, NaN does not."""
    bound = Bound(at_least=1, at_most=2)
    assert [bound.holds(value) for value in (0.999, 1, 2, 2.001, math.nan)] == [False, True, True, False, False]
