"""What a person or a script sees: results on stdout, errors with a hint on stderr, exit codes, nothing left behind."""

import json
import re
from pathlib import Path

import pytest

from mcpmq import __version__
from mcpmq.cli.options import FORMAT_NAMES
from mcpmq.formats import FORMATS
from tests.commands import Command


def test_without_a_command_the_help_is_shown(mcpmq: Command) -> None:
    """All the verbs are in it."""
    ran = mcpmq("--help")

    assert ran.code == 0
    for verb in ("convert", "plan", "quantize", "export", "imatrix", "evaluate", "inspect", "report"):
        assert verb in ran.out


def test_the_version_is_said(mcpmq: Command) -> None:
    """`--version` prints it alone."""
    ran = mcpmq("--version")

    assert (ran.code, ran.out.strip()) == (0, __version__)


def test_a_plan_lists_every_weight_and_the_total(mcpmq: Command, tiny_checkpoint: Path) -> None:
    """The table names weights and schemes; JSON holds the same as data."""
    table = mcpmq("plan", tiny_checkpoint, "--bits", 4)
    data = json.loads(mcpmq("plan", tiny_checkpoint, "--recipe", "phone-int4", "--json").out)

    assert table.code == 0
    assert "language.layers.*.mlp.down" in table.out
    assert "int4-g32" in table.out
    assert sum(weight["nbytes"] for weight in data["weights"]) == data["nbytes"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "{checkpoint}"],
        ["plan", "{checkpoint}", "--bits", "5"],
        ["plan", "{checkpoint}", "--bits", "4", "--recipe", "phone-int4"],
        ["plan", "{checkpoint}", "--bits", "4", "--format", "exe"],
        ["convert", "{checkpoint}", "{out}", "--bits", "4", "--calibration", "x"],
        ["convert", "{checkpoint}", "{out}", "--bits", "4", "--format", "gguf"],
        ["frobnicate"],
    ],
)
def test_a_wrong_use_ends_with_two(mcpmq: Command, tiny_checkpoint: Path, tmp_path: Path, arguments: list[str]) -> None:
    """Typer says what is wrong on stderr; stdout stays empty."""
    ran = mcpmq(*[part.format(checkpoint=tiny_checkpoint, out=tmp_path / "out") for part in arguments])

    assert (ran.code, ran.out) == (2, "")
    assert ran.err


def test_an_error_is_dressed_with_a_hint(mcpmq: Command, tmp_path: Path) -> None:
    """What, then a blank line, then what to do; exit code 1; no traceback."""
    ran = mcpmq("plan", tmp_path / "nothing", "--bits", 4)

    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: `")
    assert "\n\nhint: point at" in ran.err
    assert "Traceback" not in ran.err


def test_a_bug_keeps_its_traceback(mcpmq: Command, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only errors for the user are dressed."""
    monkeypatch.setattr("mcpmq.plan.make_plan", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        mcpmq("plan", tiny_checkpoint, "--bits", 4)


def test_what_a_format_cannot_hold_is_refused_before_work(
    mcpmq: Command, tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """The weight, the scheme and the alternatives are named; nothing is written."""
    asked = ["--recipe", "quality-int4", "--format", "onnx", "--calibration", tiny_set]

    ran = mcpmq("convert", tiny_checkpoint, tmp_path / "out", *asked)

    assert ran.code == 1
    assert "`onnx` cannot hold" in ran.err
    assert "int4-g32" in ran.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["checkpoint", "set", "recipe", "output"])
def test_bad_input_leaves_nothing_behind(
    mcpmq: Command, tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path, damage: str
) -> None:
    """Whatever is wrong is found before a weight is read."""
    work = tmp_path / "work"
    work.mkdir()
    out, recipe = work / "out", tmp_path / "mine.toml"
    recipe.write_text('name = "mine"\n[weights]\n"langauge.*" = "int4-g32"')
    if damage == "output":
        out.write_text("something else")
    before = sorted(work.rglob("*"))

    ran = mcpmq(
        "convert",
        tmp_path / "none" if damage == "checkpoint" else tiny_checkpoint,
        out,
        "--recipe",
        recipe if damage == "recipe" else "phone-int4",
        "--format",
        "gguf",
        "--calibration",
        tmp_path / "none" if damage == "set" else tiny_set,
    )

    assert ran.code == 1
    assert "hint: " in ran.err
    assert sorted(work.rglob("*")) == before


def test_help_names_every_format() -> None:
    """It lists them by hand, so that it need not import them."""
    assert set(re.split(r", | or ", FORMAT_NAMES)) == set(FORMATS)


def test_quantize_then_export(mcpmq: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Step by step, each prints the folder it wrote."""
    quantized = mcpmq("--quiet", "quantize", tiny_checkpoint, tmp_path / "codes", "--bits", 8)
    exported = mcpmq("--quiet", "export", tmp_path / "codes", tmp_path / "gguf", "--format", "gguf")

    assert (quantized.code, exported.code) == (0, 0)
    assert str(tmp_path / "codes") in quantized.out
    assert len(list((tmp_path / "gguf").glob("*.gguf"))) == 2
    assert (quantized.err, exported.err) == ("", "")


def test_a_set_that_decides_nothing_is_told_of(
    mcpmq: Command, tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """Rounding to nearest looks at no sample: said beside the result, and the artifact does not claim otherwise."""
    ran = mcpmq("quantize", tiny_checkpoint, tmp_path / "codes", "--bits", 8, "--calibration", tiny_set)

    assert "no calibration sample decides a weight" in ran.err
    assert "nothing: rounded to the nearest" in ran.out
    assert json.loads(mcpmq("inspect", tmp_path / "codes", "--json").out).get("calibrated_on") is None


def test_inspect_says_what_a_path_is(
    mcpmq: Command, tiny_checkpoint: Path, tiny_set: Path, tiny_int4: object, tmp_path: Path
) -> None:
    """A checkpoint, a set, an artifact; and an error for anything else."""
    from mcpmq.quantized_model import Quantized

    assert isinstance(tiny_int4, Quantized)
    assert "minicpm-v-2.6" in mcpmq("inspect", tiny_checkpoint).out
    assert "samples" in mcpmq("inspect", tiny_set).out
    assert "phone-int4" in mcpmq("inspect", tiny_int4.path).out
    assert mcpmq("inspect", tmp_path).code == 1


def test_completion_is_offered(mcpmq: Command) -> None:
    """The shell can be taught the commands."""
    assert "--show-completion" in mcpmq("--help").out


def test_an_importance_matrix_without_images_tells_what_saw_nothing(
    mcpmq: Command, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """On stderr; what was written is on stdout, and `inspect` says the same."""
    line = {"id": "0", "prompt": "How many?", "answer": "Three."}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line))

    ran = mcpmq("imatrix", tiny_checkpoint, tmp_path / "out", "--calibration", tmp_path, "--json")

    assert ran.code == 0
    assert "no mmproj file" in ran.err
    assert [file["path"] for file in json.loads(ran.out)["files"]] == ["tiny-imatrix.gguf"]
    inspected = mcpmq("inspect", tmp_path / "out", "--json")
    assert json.loads(inspected.out) == json.loads(ran.out)
