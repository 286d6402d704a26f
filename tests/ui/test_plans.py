"""Plans in a terminal and as JSON."""

import json
from pathlib import Path

import pytest

from mcpmq import ui
from mcpmq.checkpoint import Checkpoint
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe


@pytest.mark.usefixtures("terminal")
def test_equal_layers_share_a_row(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has one row for the same weight of all layers; JSON has every tensor with its size."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("phone-int4"))

    ui.print_plan(plan)
    printed = capsys.readouterr().out
    assert printed.count("language.layers.*.mlp.down") == 1
    assert "2 x 256x512" in printed
    assert "int4-g32" in printed
    assert max(map(len, printed.splitlines())) <= 80

    ui.print_plan(plan, as_json=True)
    data = json.loads(capsys.readouterr().out)
    assert len(data["weights"]) == len(plan.tensors)
    assert sum(weight["nbytes"] for weight in data["weights"]) == data["nbytes"] == plan.nbytes
