"""Gate files: what is a bound, and what is refused."""

import math
from pathlib import Path

import pytest

from mcpmq.errors import GateError
from mcpmq.gate import Bound, Gate


def test_a_gate_is_read_from_toml(tmp_path: Path) -> None:
    """Tables by what is compared with and by kind; bounds on the value unless an end is named."""
    (tmp_path / "gate.toml").write_text(
        'artifacts = "gguf *"\n[original.image]\nkl_divergence = { at_most = 0.01, on = "high" }\n'
        "[baseline.artifact]\nnbytes_ratio = { at_least = 0.9, at_most = 1.1 }\n"
    )
    gate = Gate.load(tmp_path / "gate.toml")
    assert gate.artifacts == "gguf *"
    assert gate.original["image"]["kl_divergence"] == Bound(at_most=0.01, on="high")
    assert str(gate.baseline["artifact"]["nbytes_ratio"]) == "at least 0.9 and at most 1.1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = ", "cannot be read"),
        ("", "bounds nothing"),
        ("[original.image]", "bounds nothing"),
        ("[original.image]\nkl_divergence = {}", "neither `at_most` nor `at_least`"),
        ('[original.image]\nkl_divergence = { at_most = "1" }', "original.image.kl_divergence.at_most"),
        ("[original.image]\nkl_divergence = { below = 1 }", "Extra inputs"),
        ('[original.image]\nkl_divergence = { at_most = 1, on = "mean" }', "on"),
        ("[orignal.image]\nkl_divergence = { at_most = 1 }", "orignal"),
    ],
)
def test_what_is_no_gate_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """With the file and the place in it."""
    (tmp_path / "gate.toml").write_text(text)
    with pytest.raises(GateError, match=f"gate.toml.*{message}"):
        Gate.load(tmp_path / "gate.toml")


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_file_that_cannot_be_read_is_refused(content: bytes | None, tmp_path: Path) -> None:
    """Missing, or no text."""
    if content:
        (tmp_path / "gate.toml").write_bytes(content)
    with pytest.raises(GateError, match="cannot be read"):
        Gate.load(tmp_path / "gate.toml")


def test_bounds_hold_up_to_themselves_and_never_for_what_is_no_number() -> None:
    """Inclusive on both sides."""
    bound = Bound(at_least=1, at_most=2)
    assert [bound.holds(value) for value in (0.999, 1, 2, 2.001, math.nan)] == [False, True, True, False, False]
