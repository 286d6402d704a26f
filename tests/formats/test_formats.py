"""The door to the formats: what is not installed is said before any work."""

from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import MissingExtra
from mcpmq.formats import FORMATS, FormatName, check, format_named
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_its_two_functions(name: FormatName) -> None:
    """A module with `refuses` and `write` is a format."""
    layout = format_named(name)

    assert callable(layout.refuses)
    assert callable(layout.write)


@pytest.mark.parametrize(("name", "package"), [("gguf", "xllamacpp"), ("onnx", "onnxruntime")])
def test_what_is_not_installed_is_said_with_the_extra(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: FormatName, package: str
) -> None:
    """Before a weight is read, with the command that installs it."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("phone-int4"))
    monkeypatch.setattr("mcpmq.formats.find_spec", lambda asked: None if asked == package else object())

    with pytest.raises(MissingExtra, match=package) as caught:
        check(plan, name)

    assert f"mcpmq[{name}]" in caught.value.hint
