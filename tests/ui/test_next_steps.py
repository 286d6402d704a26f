"""The end of a command: paths and commands on stderr."""

import re
import shlex
from pathlib import Path

import pytest

from mcpmq import ui
from mcpmq.cli.options import set_words
from mcpmq.formats.recipes import Measurements
from mcpmq.report import Report
from tests.commands import Command
from tests.fake_reports import make_report


def report_of(recipe: str, kind: str = "gguf") -> Report:
    """Return a report of one artifact."""
    report = make_report(1)
    result = report.artifacts[0].model_copy(update={"recipe": recipe, "kind": kind, "name": kind})
    return report.model_copy(update={"artifacts": (result,)})


def test_a_conversion_ends_with_paths_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """Artifacts, the page of the report, `search` with the size of the artifact, and `check`; names are quoted."""
    words = ["model"], set_words(Path("photos"), 9, 2)
    ui.print_conversion_steps(report_of("calibrated-int4"), Path("my out"), *words, can_search=True)
    printed = capsys.readouterr()

    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines[0] == "written: my out/gguf"
    assert lines[1] == "try it: mcpmq run 'my out/gguf' --image FILE PROMPT"
    command = re.search(r"more accurate at this size: mcpmq (.*) \(mean KLD on reference: 0", lines[2])
    assert command
    assert shlex.split(command[1]) == [
        "search", "model", "recipe.toml", "--format", "gguf", "--max-size", "16060001", "--calibration", "photos",
        "--samples", "9", "--seed", "2"
    ]  # fmt: skip
    assert lines[3] == "report: my out/report.html"
    assert lines[4] == "check in continuous integration: mcpmq check 'my out' --gate gate.toml"


@pytest.mark.parametrize(
    ("recipe", "kind"), [("search-9-bytes-gguf", "gguf"), ("language-nf4", "bnb"), ("full", "gguf")]
)
def test_search_is_suggested_for_dominated_recipes_only(
    recipe: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not for a searched recipe, for a format that stores one scheme, or for a recipe without results."""
    ui.print_conversion_steps(report_of(recipe, kind), Path("out"), ["model"], [], can_search=True)

    assert "search" not in capsys.readouterr().err


def test_search_is_not_suggested_for_experts(capsys: pytest.CaptureFixture[str]) -> None:
    """A mixture of experts has no search, also with a recipe that has better ones."""
    ui.print_conversion_steps(report_of("calibrated-int4"), Path("out"), ["model"], [], can_search=False)

    printed = capsys.readouterr().err
    assert "try it: mcpmq run" in printed
    assert "search" not in printed


def test_a_dominated_recipe_has_a_higher_interval_at_a_larger_size() -> None:
    """The searched recipe is not larger, and the intervals of the mean KLD on images are disjoint."""
    measured = Measurements.load()
    better = measured.better_search("calibrated-int4", "gguf")

    assert better is not None
    fixed, searched = better
    assert searched.nbytes <= fixed.nbytes
    assert sum(searched.mean_kld["image"]) < fixed.mean_kld["image"][0] - fixed.mean_kld["image"][1]
    assert measured.better_search("calibrated-int4", "bnb") is None


def test_commands_print_their_next_step(mcpmq: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`quantize` prints `export`, and `export` prints `evaluate`; the printed command runs; `--quiet` prints none."""
    quantized = mcpmq("quantize", tiny_checkpoint, tmp_path / "codes", "--recipe", "phone-int8")
    [line] = [line for line in quantized.stderr.splitlines() if line.startswith("next: mcpmq ")]
    exported = mcpmq(*shlex.split(line.removeprefix("next: mcpmq ")))

    assert exported.exit_code == 0
    assert f"measure it: mcpmq evaluate {tmp_path / 'codes-gguf'} --against" in exported.stderr
    assert mcpmq("-q", "quantize", tiny_checkpoint, tmp_path / "codes", "--recipe", "phone-int8").stderr == ""
