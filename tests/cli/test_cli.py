"""Commands: results on stdout, errors with a hint on stderr, exit codes, and no files after an error."""

import json
from pathlib import Path

import pytest

from mcpmq import __version__
from tests.commands import Command


def test_help_lists_every_command(mcpmq: Command) -> None:
    """`--help` exits with 0 and names all commands."""
    ran = mcpmq("--help")

    assert ran.exit_code == 0
    pipeline = ("convert", "plan", "quantize", "export", "imatrix", "evaluate", "search", "package")
    for verb in (*pipeline, "inspect", "families", "report", "check", "verify", "diff"):
        assert f" {verb} " in ran.stdout


def test_version_prints_the_version(mcpmq: Command) -> None:
    """`--version` prints only the version."""
    ran = mcpmq("--version")

    assert (ran.exit_code, ran.stdout.strip()) == (0, __version__)


def test_plan_lists_every_weight_and_the_total(mcpmq: Command, tiny_checkpoint: Path) -> None:
    """The table has weights and schemes, JSON the same as data."""
    table = mcpmq("plan", tiny_checkpoint, "--bits", 4)
    data = json.loads(mcpmq("plan", tiny_checkpoint, "--recipe", "phone-int4", "--json").stdout)

    assert table.exit_code == 0
    assert "language.layers.*.mlp.down" in table.stdout
    assert "int4-g32" in table.stdout
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
def test_a_usage_error_exits_with_two(
    mcpmq: Command, tiny_checkpoint: Path, tmp_path: Path, arguments: list[str]
) -> None:
    """The message is on stderr and stdout is empty."""
    ran = mcpmq(*[part.format(checkpoint=tiny_checkpoint, out=tmp_path / "out") for part in arguments])

    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr


def test_an_error_has_a_message_and_a_hint(mcpmq: Command, tmp_path: Path) -> None:
    """Message, blank line, hint; exit code 1; no traceback."""
    ran = mcpmq("plan", tmp_path / "nothing", "--bits", 4)

    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr.startswith("error: `")
    assert "\n\nhint: point at" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_other_exceptions_are_not_caught(
    mcpmq: Command, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only `McpmqError` is printed as message and hint; a bug keeps its traceback."""
    monkeypatch.setattr("mcpmq.plan.make_plan", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        mcpmq("plan", tiny_checkpoint, "--bits", 4)


def test_an_unsupported_scheme_is_rejected_before_work(
    mcpmq: Command, tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """The error names weight, scheme and alternatives, and no file is written."""
    options = ["--recipe", "quality-int4", "--format", "onnx", "--calibration", tiny_set]

    ran = mcpmq("convert", tiny_checkpoint, tmp_path / "out", *options)

    assert ran.exit_code == 1
    assert "`onnx` cannot store" in ran.stderr
    assert "int4-g32" in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("invalid", ["checkpoint", "set", "recipe", "output"])
def test_invalid_input_writes_nothing(
    mcpmq: Command, tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path, invalid: str
) -> None:
    """A missing checkpoint or set, a wrong recipe, and an existing output are errors before a weight is read."""
    work = tmp_path / "work"
    work.mkdir()
    out, recipe = work / "out", tmp_path / "mine.toml"
    recipe.write_text('name = "mine"\n[weights]\n"langauge.*" = "int4-g32"')
    if invalid == "output":
        out.write_text("something else")
    before = sorted(work.rglob("*"))

    ran = mcpmq(
        "convert",
        tmp_path / "none" if invalid == "checkpoint" else tiny_checkpoint,
        out,
        "--recipe",
        recipe if invalid == "recipe" else "phone-int4",
        "--format",
        "gguf",
        "--calibration",
        tmp_path / "none" if invalid == "set" else tiny_set,
    )

    assert ran.exit_code == 1
    assert "hint: " in ran.stderr
    assert sorted(work.rglob("*")) == before


def test_quantize_then_export(mcpmq: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Both commands print the folder that they wrote, and `--quiet` leaves stderr empty."""
    quantized = mcpmq("--quiet", "quantize", tiny_checkpoint, tmp_path / "codes", "--bits", 8)
    exported = mcpmq("--quiet", "export", tmp_path / "codes", tmp_path / "gguf", "--format", "gguf")

    assert (quantized.exit_code, exported.exit_code) == (0, 0)
    assert str(tmp_path / "codes") in quantized.stdout
    assert len(list((tmp_path / "gguf").glob("*.gguf"))) == 2
    assert (quantized.stderr, exported.stderr) == ("", "")


def test_an_unused_calibration_set_is_reported(
    mcpmq: Command, tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """Round to nearest uses no samples: a notice on stderr, and the manifest records no calibration set."""
    ran = mcpmq("quantize", tiny_checkpoint, tmp_path / "codes", "--bits", 8, "--calibration", tiny_set)

    assert "does not use the calibration set" in ran.stderr
    assert "none: rounded to nearest" in ran.stdout
    assert json.loads(mcpmq("inspect", tmp_path / "codes", "--json").stdout).get("calibration_set") is None


def test_inspect_describes_a_path(
    mcpmq: Command, tiny_checkpoint: Path, tiny_set: Path, tiny_int4: object, tmp_path: Path
) -> None:
    """A checkpoint, a set and an artifact are described; another folder is an error."""
    from mcpmq.quantized_model import QuantizedModel

    assert isinstance(tiny_int4, QuantizedModel)
    assert "minicpm-v-2.6" in mcpmq("inspect", tiny_checkpoint).stdout
    assert "samples" in mcpmq("inspect", tiny_set).stdout
    assert "phone-int4" in mcpmq("inspect", tiny_int4.path).stdout
    assert mcpmq("inspect", tmp_path).exit_code == 1


def test_completion_is_offered(mcpmq: Command) -> None:
    """Help lists the completion option of the shell."""
    assert "--show-completion" in mcpmq("--help").stdout


def test_an_imatrix_without_images_has_a_notice(mcpmq: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The notice is on stderr, the files are on stdout, and `inspect` prints the same."""
    line = {"id": "0", "prompt": "How many?", "answer": "Three."}
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "manifest.jsonl").write_text(json.dumps(line))

    ran = mcpmq("imatrix", tiny_checkpoint, tmp_path / "out", "--calibration", tmp_path / "set", "--json")

    assert ran.exit_code == 0
    assert "no mmproj file" in ran.stderr
    assert [file["path"] for file in json.loads(ran.stdout)["files"]] == ["tiny-imatrix.gguf"]
    inspected = mcpmq("inspect", tmp_path / "out", "--json")
    assert json.loads(inspected.stdout) == json.loads(ran.stdout)
