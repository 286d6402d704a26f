"""Commands that search, package, verify and compare."""

import json
import shutil
from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.release.record import Release
from mcpmq.report import write_report
from tests.commands import Command
from tests.fake_releases import report_for, with_license
from tests.hub_server import Hub


def test_package_verify_diff(
    mcpmq: Command, tiny_checkpoint: Path, tiny_exports: list[Artifact], tmp_path: Path
) -> None:
    """A release is packaged from artifacts, verified, and equal to itself."""
    source, out = with_license(tiny_checkpoint, tmp_path), tmp_path / "out"
    write_report(report_for(tiny_exports), tmp_path / "report")
    options = ["--source", source, "--report", tmp_path / "report", "--max-size", "3MB", "--base-model", "a/b"]

    packaged = mcpmq("package", *(artifact.path for artifact in tiny_exports), out, *options)
    verified = mcpmq("verify", out, "--no-load", "--json")
    compared = mcpmq("diff", out, out)

    assert (packaged.exit_code, verified.exit_code, compared.exit_code) == (0, 0, 0)
    assert "apache-2.0" in packaged.stdout
    assert f"try it: mcpmq run {out} --image FILE PROMPT" in packaged.stderr
    assert "base_model: a/b" in (out / "README.md").read_text()
    assert len(json.loads(verified.stdout)["checks"]) == 7
    assert "no change" in compared.stdout


def test_package_pushes_to_the_hub(
    mcpmq: Command, tiny_checkpoint: Path, tiny_exports: list[Artifact], tmp_path: Path, hub: Hub
) -> None:
    """A dry run lists the files; an error has the command that pushes the complete release."""
    source = with_license(tiny_checkpoint, tmp_path)
    write_report(report_for(tiny_exports), tmp_path / "report")
    options = ["--source", source, "--report", tmp_path / "report", "--push", "owner/tiny"]

    planned = mcpmq("package", tiny_exports[0].path, tmp_path / "planned", *options, "--dry-run")
    failed = mcpmq("package", tiny_exports[0].path, tmp_path / "failed", *options)
    misused = mcpmq("package", tiny_exports[0].path, tmp_path / "out", *options[:4], "--dry-run")

    assert (planned.exit_code, failed.exit_code, misused.exit_code) == (0, 1, 2)
    assert "apache-2.0" in planned.stdout
    assert "gguf/tiny-Q4_0.gguf" in planned.stdout
    assert "nothing was sent" in planned.stderr
    assert "`HF_TOKEN`" in failed.stderr
    assert "push it with `mcpmq push`" in failed.stderr
    assert Release.open(tmp_path / "failed").record.license == "apache-2.0"
    assert hub.requests == []


def test_a_changed_release_exits_with_one(mcpmq: Command, tiny_release: Release, tmp_path: Path) -> None:
    """The error and its hint are on stderr."""
    copy = shutil.copytree(tiny_release.path, tmp_path / "copy")
    (copy / "LICENSE").write_text("You may do anything.\n")

    ran = mcpmq("verify", copy, "--no-load")

    assert ran.exit_code == 1
    assert "is not the released file\n\nhint: " in ran.stderr


def test_an_invalid_size_is_an_error(mcpmq: Command, tiny_exports: list[Artifact], tmp_path: Path) -> None:
    """The size is checked before files are opened."""
    options = ["--source", tmp_path, "--report", tmp_path, "--max-size", "big"]

    ran = mcpmq("package", tiny_exports[0].path, tmp_path / "out", *options)

    assert ran.exit_code == 1
    assert "`big` is not a size" in ran.stderr


def test_search_requires_a_budget(mcpmq: Command, tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """Without a budget it is a usage error; with an infeasible one the error has the smallest possible size."""
    arguments = ["search", tiny_checkpoint, tmp_path / "mine.toml", "--format", "gguf", "--calibration", tiny_set]

    unlimited, infeasible = mcpmq(*arguments), mcpmq(*arguments, "--max-size", "100kB")

    assert (unlimited.exit_code, infeasible.exit_code) == (2, 1)
    assert "--max-size" in unlimited.stderr
    assert "the smallest possible is" in infeasible.stderr
    assert not list(tmp_path.iterdir())


def test_plan_forecasts_every_format(mcpmq: Command, tiny_checkpoint: Path) -> None:
    """The forecast is a table, and JSON with `--json`."""
    arguments = ["plan", tiny_checkpoint, "--recipe", "calibrated-int4", "-f", "gguf", "-f", "onnx", "--context", 100]

    table, data = mcpmq(*arguments), mcpmq(*arguments, "--json")

    assert (table.exit_code, data.exit_code) == (0, 0)
    assert "100 tokens" in table.stdout
    assert set(json.loads(data.stdout)["formats"]) == {"gguf", "onnx"}


def test_inspect_describes_a_release(mcpmq: Command, tiny_release: Release) -> None:
    """The folder is described as a release, not as the report in it."""
    ran = mcpmq("inspect", tiny_release.path)

    assert ran.exit_code == 0
    assert "runs in llama.cpp" in ran.stdout
