"""Commands: results on stdout, errors with a hint on stderr, exit codes, and no files after an error."""

import json
import re
from pathlib import Path

import pytest

from mcpmq import __version__
from mcpmq.quantized_model import QuantizedModel
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
    options = ["--recipe", "calibrated-quality-int4", "--format", "onnx", "--calibration", tiny_set]

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


def test_task_scores_are_added_to_an_evaluation(
    mcpmq: Command, tiny_checkpoint: Path, tiny_set: Path, tiny_int4: QuantizedModel, tmp_path: Path
) -> None:
    """Table and report have the scores; a file without scores of the artifact is an error before the measurement."""
    entry = {"sha256": tiny_int4.artifact.sha256, "scores": {"a": 1, "b": 0}}
    original = {"sha256": tiny_int4.artifact.manifest.source.sha256, "scores": {"a": 1, "b": 1}}
    task = {"name": "ocr", "metric": "exact", "original": original, "artifacts": [entry]}
    scores = tmp_path / "scores.json"
    options = ("--against", tiny_checkpoint, "--eval-set", tiny_set, "--no-answers", "--scores", scores)

    scores.write_text(json.dumps({"schema_version": 1, "tasks": [task]}))
    ran = mcpmq("evaluate", tiny_int4.path, *options, "--out", tmp_path / "report")
    scores.write_text(
        json.dumps({"schema_version": 1, "tasks": [task | {"artifacts": [entry | {"sha256": "0" * 64}]}]})
    )
    failed = mcpmq("evaluate", tiny_int4.path, *options, "--out", tmp_path / "none")
    no_device = mcpmq("evaluate", tiny_int4.path, *options[:5], "--device", "cuda:99", "--out", tmp_path / "none")

    assert ran.exit_code == 0
    assert re.search(r"score, ocr exact +1\.0+ ±0\.0+ +0\.5", ran.stdout)
    [result] = json.loads((tmp_path / "report" / "report.json").read_text())["artifacts"]
    assert result["task_scores"]["ocr"]["scores"] == {"a": [1.0, 1.0], "b": [1.0, 0.0]}
    assert failed.exit_code == 1
    assert "no entries for" in failed.stderr
    assert no_device.exit_code == 1
    assert "`cuda:99` is not available" in no_device.stderr
    assert not (tmp_path / "none").exists()


def test_a_format_is_written_in_one_pass(mcpmq: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`quantize --format` prints the artifact and the command that runs it."""
    ran = mcpmq("quantize", tiny_checkpoint, tmp_path / "out", "--bits", 8, "--format", "gguf")

    assert "gguf" in ran.stdout
    assert "mcpmq run" in ran.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert (tmp_path / "out" / "mcpmq.json").is_file()


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


def test_an_evaluation_of_several_devices_is_a_usage_error(mcpmq: Command, tmp_path: Path) -> None:
    """Several devices share the samples of a calibration only."""
    found = mcpmq("evaluate", tmp_path, "--against", tmp_path, "--eval-set", tmp_path, "--device", "cuda:0,cuda:1")

    assert found.exit_code == 2
    assert "an evaluation uses one device" in " ".join(found.stderr.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mcpmq plan x --recipe phone", {"phone-int4", "phone-int8"}),
        ("mcpmq convert x y --format g", {"gguf", "gptq"}),
        ("mcpmq export x y -f comp", {"compressed-tensors"}),
        ("mcpmq quantize x y --device cuda:", {"cuda:0", "cuda:1", "cuda:all"}),
        ("mcpmq recipes language-", {"language-int8", "language-nf4"}),
    ],
)
def test_values_are_completed(line: str, expected: set[str], mcpmq: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell gets the names of recipes, formats and devices that begin with the typed letters."""
    monkeypatch.setenv("_MCPMQ_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")

    assert set(mcpmq().stdout.split()) == expected


@pytest.mark.parametrize("command", [["-h"], ["plan", "-h"], ["recipes", "--help"]])
def test_every_command_has_help(mcpmq: Command, command: list[str]) -> None:
    """`-h` and `--help` are equal."""
    ran = mcpmq(*command)

    assert ran.exit_code == 0
    assert "--help" in ran.stdout
    assert "-h" in ran.stdout


@pytest.mark.parametrize("place", ["before", "after", "last"])
@pytest.mark.parametrize(("option", "traceback"), [("-v", True), ("--verbose", True), ("-q", False)])
def test_verbosity_is_accepted_anywhere(
    mcpmq: Command, tmp_path: Path, place: str, option: str, traceback: bool
) -> None:
    """`-v` before and after the command prints the traceback of an error."""
    words = ["plan", str(tmp_path / "none"), "--bits", "4"]
    words.insert({"before": 0, "after": 1, "last": 4}[place], option)

    assert ("Traceback" in mcpmq(*words).stderr) is traceback


def test_recipes_are_listed_and_printed(mcpmq: Command) -> None:
    """The list has formats and results of every recipe; a name prints the file."""
    listed, data = mcpmq("recipes").stdout, json.loads(mcpmq("recipes", "--json").stdout)

    assert "calibrated-int4" in listed
    assert "not measured" in listed
    by_name = {entry["recipe"]: entry for entry in data}
    assert by_name["language-nf4"]["formats"] == ["bnb"]
    assert {one["format"] for one in by_name["calibrated-int4"]["measured"]} == {"gguf", "onnx"}
    printed = mcpmq("recipes", "phone-int8")
    assert '"*" = "int8-g32"' in printed.stdout
    assert json.loads(mcpmq("recipes", "phone-int8", "--json").stdout)["weights"] == {"*": "int8-g32"}
    assert mcpmq("recipes", "nothing").exit_code == 1


def test_bits_select_the_recipe_of_each_format(mcpmq: Command, tiny_checkpoint: Path) -> None:
    """A plan for several formats has one table for each recipe; a format without a recipe is an error."""
    plans = json.loads(mcpmq("plan", tiny_checkpoint, "--bits", 4, "-f", "gguf", "-f", "bnb", "--json").stdout)

    assert [one["recipe"]["name"] for one in plans] == ["calibrated-gguf-int4", "language-nf4"]
    assert [list(one["formats"]) for one in plans] == [["gguf"], ["bnb"]]
    failed = mcpmq("plan", tiny_checkpoint, "--bits", 8, "-f", "awq")
    assert "`awq` has no recipe with 8 bits" in failed.stderr
    assert "give --bits 4" in failed.stderr


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
