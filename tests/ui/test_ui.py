"""How things look: in a terminal, as JSON, as Markdown, as an error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mcpmq import ui
from mcpmq.artifact import Artifact, CalibrationRecord
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import CheckpointError, McpmqError
from mcpmq.plan import make_plan
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.report import Report, write_report
from mcpmq.rounding.stats import MODALITIES
from mcpmq.system.progress import silent
from tests.fake_reports import invented_report
from tests.terminal import in_terminal


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns, and nothing remembered from another test."""
    monkeypatch.setenv("COLUMNS", "80")
    ui.set_verbosity()


@pytest.mark.parametrize("artifacts", [1, 2, 3, 4])
def test_a_report_of_four_artifacts_fits_80_columns(artifacts: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure whole on its line, headings broken between words only."""
    ui.report(invented_report(artifacts))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line.split() for line in lines if "all files" in line)
    assert row == ["all", "files,", "MB", "16.1", *["16.1"] * artifacts]
    assert "phone-int4" in "\n".join(lines)
    assert "model [v2] on 30 samples of heldout" in lines[0]


def test_a_narrow_terminal_loses_no_figure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells break rather than being cut."""
    monkeypatch.setenv("COLUMNS", "50")
    ui.report(invented_report(4))
    drawn = capsys.readouterr().out
    assert max(map(len, drawn.splitlines())) <= 50
    assert "…" not in drawn
    assert drawn.count("phon") >= 4


def test_a_report_as_json_is_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed can be read back."""
    ui.report(invented_report(), as_json=True)
    assert Report.model_validate_json(capsys.readouterr().out) == invented_report()


def test_a_report_as_markdown_has_the_rows_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """One source of rows."""
    ui.report(invented_report(2), as_markdown=True)
    marked = capsys.readouterr().out
    ui.report(invented_report(2))
    drawn = capsys.readouterr().out
    cells = [
        cell.strip() for line in marked.splitlines() if line.startswith("|") for cell in line.strip("|").split("|")
    ]
    figures = [word for cell in cells if cell[:1].isdigit() for word in cell.split()]
    assert len(figures) > 30
    assert all(figure in drawn for figure in figures)


def test_a_plan_shows_layers_that_are_alike_in_one_row(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its JSON lists every tensor with its bytes."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("phone-int4"))
    ui.plan(plan)
    drawn = capsys.readouterr().out
    assert drawn.count("language.layers.*.mlp.down") == 1
    assert "2 x 256x512" in drawn
    assert "int4-g32" in drawn
    assert max(map(len, drawn.splitlines())) <= 80
    ui.plan(plan, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["weights"]) == len(plan.steps)
    assert sum(weight["nbytes"] for weight in facts["weights"]) == facts["nbytes"] == plan.nbytes


def test_any_path_is_told_apart(
    tiny_checkpoint: Path,
    tiny_int4: Quantized,
    mixed_set: CalibrationSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A checkpoint, an artifact, a set and a report are recognised; each has JSON."""
    write_report(invented_report(1), tmp_path)
    paths = (tiny_checkpoint, tiny_int4.path, mixed_set.path, tmp_path, tmp_path / "report.json")
    firsts = ("checkpoint", "quantized artifact", "set", "model [v2] on", "model [v2] on")
    keys = ("bytes_by_component", "recipe", "tags", "measured_on", "measured_on")
    for path, first, key in zip(paths, firsts, keys, strict=True):
        ui.path(path)
        assert capsys.readouterr().out.startswith(first)
        ui.path(path, as_json=True)
        assert key in json.loads(capsys.readouterr().out)


def test_an_artifact_tells_what_it_was_calibrated_on(
    tiny_int4: Quantized, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The set, and of every component what the matrix that saw the fewest tokens saw; of others, as before."""
    manifest = tiny_int4.artifact.manifest
    seen = {"language.layers.0.mlp.up": (1234, 5, 6), "projector.kv": (9, 0, 0), "projector.out": (3, 0, 0)}
    weights = tuple(
        record.model_copy(update={"tokens": dict(zip(MODALITIES, seen[record.name], strict=True))})
        if record.name in seen
        else record
        for record in manifest.weights
    )
    used = CalibrationRecord(name="starter", sha256="ab" * 32, samples=1000, with_image=7, fingerprints=())
    told = manifest.model_copy(update={"weights": weights, "calibrated_on": used})
    ui.artifact(Artifact(tmp_path, told))
    drawn = " ".join(capsys.readouterr().out.split())
    assert "starter, 1,000 samples, 7 with an image, sha256 abab" in drawn
    assert "language saw 1,234 vision, 5 text, 6 answer tokens" in drawn
    assert "projector saw at least 3 vision tokens" in drawn
    ui.artifact(tiny_int4.artifact)
    assert "saw" not in capsys.readouterr().out


def test_a_path_to_nothing_is_an_error(tmp_path: Path) -> None:
    """The one that opening a checkpoint gives."""
    with pytest.raises(CheckpointError, match="does not exist"):
        ui.path(tmp_path / "nothing")


def test_an_error_says_what_and_then_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, in plain words where nobody looks; brackets are not markup; without a hint there is none."""
    ui.error(CheckpointError("no `config.json` in `[a]`", "point at a folder"))
    ui.error(McpmqError("short"))
    printed = capsys.readouterr()
    assert printed.err == "error: no `config.json` in `[a]`\n\nhint: point at a folder\nerror: short\n"
    assert printed.out == ""


def test_verbose_errors_have_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """For whoever wants to know where it came from."""
    ui.set_verbosity(verbose=True)
    try:
        raise CheckpointError("broken")
    except CheckpointError as error:
        ui.error(error)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_notices_go_to_stderr_unless_silence_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """They are no result."""
    ui.notice("a word")
    ui.set_verbosity(quiet=True)
    ui.notice("another")
    assert capsys.readouterr() == ("", "a word\n")


def test_no_bar_is_drawn_where_nobody_looks() -> None:
    """Into a pipe, and when silence was asked for."""
    assert ui.progress() is silent


def test_no_color_is_honoured() -> None:
    """Without NO_COLOR an error is coloured in a terminal, with it not a single colour is set."""
    code = "from mcpmq import ui; from mcpmq.errors import McpmqError; ui.error(McpmqError('x', 'y'))"
    assert "\x1b[1;31m" in in_terminal(code)
    plain = in_terminal(code, NO_COLOR="1")
    assert "\x1b[31m" not in plain
    assert "31m" not in plain


def test_showing_needs_no_torch() -> None:
    """A report, a plan and help are there at once."""
    code = (
        "import sys; from mcpmq import ui, report, plan; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["False", "False"]
