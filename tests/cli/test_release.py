"""The commands that make, check and compare releases, as a person types them."""

import json
from pathlib import Path

import pytest

from mcpmq.artifact import Artifact
from mcpmq.cli import main
from mcpmq.release.record import Release
from mcpmq.report import write_report
from tests.fake_releases import report_about, with_terms


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["mcpmq", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_package_verify_diff(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_checkpoint: Path,
    tiny_exports: list[Artifact],
    tmp_path: Path,
) -> None:
    """Artifacts first, then the folder to write."""
    source = with_terms(tiny_checkpoint, tmp_path)
    write_report(report_about(tiny_exports), tmp_path / "report")
    options = ["--source", source, "--report", tmp_path / "report", "--max-size", "3MB", "--base-model", "a/b"]

    assert _run(monkeypatch, "package", *(one.path for one in tiny_exports), tmp_path / "out", *options) == 0
    assert "apache-2.0" in capsys.readouterr().out
    assert "base_model: a/b" in (tmp_path / "out" / "README.md").read_text()
    assert _run(monkeypatch, "verify", tmp_path / "out", "--no-load", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["verified"]) == 7
    assert _run(monkeypatch, "diff", tmp_path / "out", tmp_path / "out") == 0
    assert "no change" in capsys.readouterr().out


def test_a_release_that_changed_ends_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_release: Release, tmp_path: Path
) -> None:
    """The error is on stderr, with a hint."""
    import shutil

    copied = shutil.copytree(tiny_release.path, tmp_path / "copied")
    (copied / "LICENSE").write_text("You may do anything.\n")

    assert _run(monkeypatch, "verify", copied, "--no-load") == 1
    assert "is not the file that was released\n\nhint: " in capsys.readouterr().err


def test_a_budget_that_is_no_size_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_exports: list[Artifact], tmp_path: Path
) -> None:
    """Before anything is opened."""
    options = ["--source", tmp_path, "--report", tmp_path, "--max-size", "big"]

    assert _run(monkeypatch, "package", tiny_exports[0].path, tmp_path / "out", *options) == 1
    assert "`big` is no size" in capsys.readouterr().err


def test_fit_asks_for_a_budget(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_checkpoint: Path,
    tiny_set: Path,
    tmp_path: Path,
) -> None:
    """Without one it is a wrong use; with one that cannot be met an error that says how small the smallest is."""
    words = ["fit", tiny_checkpoint, tmp_path / "mine.toml", "--format", "gguf", "--calibration", tiny_set]

    assert _run(monkeypatch, *words) == 2
    assert "--max-size" in capsys.readouterr().err
    assert _run(monkeypatch, *words, "--max-size", "1MB") == 1
    assert "the smallest possible is" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_plan_forecasts_each_format(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path
) -> None:
    """A table for people, and the same as data."""
    words = ["plan", tiny_checkpoint, "--bits", 4, "--format", "gguf", "--format", "onnx", "--context", 100]

    assert _run(monkeypatch, *words) == 0
    assert "a context of 100 tokens" in capsys.readouterr().out
    assert _run(monkeypatch, *words, "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["formats"]) == {"gguf", "onnx"}


def test_inspect_knows_a_release(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_release: Release
) -> None:
    """Not as the report that lies in it."""
    assert _run(monkeypatch, "inspect", tiny_release.path) == 0
    assert "runs in llama.cpp" in capsys.readouterr().out
