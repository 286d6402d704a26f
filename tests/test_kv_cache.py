"""Commands with other types of the KV cache."""

from pathlib import Path

import pytest

from mcpmq.artifact import Artifact
from mcpmq.report import Report
from tests.commands import Command


def _evaluate(mcpmq: Command, artifact: Artifact, checkpoint: Path, samples: Path, out: Path, *types: str) -> Report:
    options = ("--samples", 3, "--no-answers", "--threads", 1, "--out", out)
    ran = mcpmq("evaluate", artifact.path, "--against", checkpoint, "--eval-set", samples, *options, *types)
    assert ran.exit_code == 0, ran.stderr
    return Report.load(out)


def test_evaluations_have_the_types(
    mcpmq: Command, tiny_exports: list[Artifact], tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """Report and table have the type and its bytes; quantized caches change the losses, 4 bits more than 8."""
    reports = {
        name: _evaluate(mcpmq, tiny_exports[0], tiny_checkpoint, tiny_set, tmp_path / str(number), "--kv-cache", name)
        for number, name in enumerate(("f32", "q8_0", "q4_0"))
    }
    measured = {name: report.artifacts[0].measurement for name, report in reports.items()}
    losses = {name: [loss for one in found.samples for loss in one.losses] for name, found in measured.items()}
    errors = {
        name: sum(abs(a - b) for a, b in zip(losses[name], losses["f32"], strict=True)) for name in ("q8_0", "q4_0")
    }

    assert {name: one.kv_cache_bytes_per_token for name, one in measured.items()} == {
        "f32": 2048,
        "q8_0": 544,
        "q4_0": 288,
    }
    assert all(one.kv_cache == name for name, one in measured.items())
    assert 0 < errors["q8_0"] < errors["q4_0"]
    assert "q4_0" in (tmp_path / "2" / "report.md").read_text()


@pytest.mark.parametrize(("index", "types", "message"), [(1, "q8_0", "in float32"), (0, "q3_k", "not a type")])
def test_other_engines_and_types_are_rejected(
    index: int,
    types: str,
    message: str,
    mcpmq: Command,
    tiny_exports: list[Artifact],
    tiny_checkpoint: Path,
    tiny_set: Path,
    tmp_path: Path,
) -> None:
    """The error has the reason, and no report is written."""
    arguments = ("--against", tiny_checkpoint, "--eval-set", tiny_set, "--out", tmp_path / "out", "--kv-cache", types)

    ran = mcpmq("evaluate", tiny_exports[index].path, *arguments)

    assert ran.exit_code == 1
    assert message in ran.stderr
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize("more", [(), ("--exact",)], ids=["server", "exact"])
def test_run_takes_the_types(
    more: tuple[str, ...], mcpmq: Command, tiny_exports: list[Artifact], tiny_checkpoint: Path
) -> None:
    """llama.cpp answers with a cache of 4 bits, also on the tokens of the original."""
    source = ("--source", tiny_checkpoint) if more else ()
    options = ("--max-tokens", 4, "--threads", 1, "--context", 256, "--kv-cache", "q8_0/q4_0")

    ran = mcpmq("run", tiny_exports[0].path, "What does the sign say?", *options, *more, *source)

    assert ran.exit_code == 0, ran.stderr


def test_run_rejects_types_for_other_engines(
    mcpmq: Command, tiny_exports: list[Artifact], tiny_checkpoint: Path
) -> None:
    """ONNX Runtime and PyTorch have no choice."""
    for path in (tiny_exports[1].path, tiny_checkpoint):
        ran = mcpmq("run", path, "Say?", "--kv-cache", "q8_0")

        assert ran.exit_code == 1
        assert "no KV cache of the type `q8_0`" in ran.stderr


def test_plan_has_the_sizes_of_other_types(mcpmq: Command, tiny_checkpoint: Path) -> None:
    """A context of 4,096 tokens takes 2.23 MB in Q8_0 and 1.18 MB in Q4_0; other formats have no such types."""
    ran = mcpmq("plan", tiny_checkpoint, "--bits", 4, "--format", "gguf", "--format", "onnx")

    rows = {line.split(", MB")[0].strip(): line.split()[-1] for line in ran.stdout.splitlines() if ", MB" in line}
    assert (rows["as q8_0"], rows["as q4_0"]) == ("2.23", "1.18")
