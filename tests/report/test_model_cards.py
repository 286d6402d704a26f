"""Figures find their way into the cards of what was measured."""

from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.export import export
from mcpmq.quantized_model import Quantized
from mcpmq.report.model_cards import add_figures
from tests.fake_reports import invented_report
from tests.gguf_tools import quantized_by


def test_the_card_gets_its_own_figures_and_the_artifact_stays_whole(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Twice the same; the manifest knows the new card, and exporting again finds what is there."""
    quantized = quantized_by(tiny_checkpoint, tmp_path, **{"language.*": "int8-row"})
    artifact, report = export(quantized, "gptq", tmp_path / "gptq"), invented_report(1)
    add_figures(report, [artifact])
    first = (artifact.path / "README.md").read_text()
    add_figures(report, [Artifact.open(artifact.path)])

    assert (artifact.path / "README.md").read_text() == first
    assert "Not measured yet" not in first
    assert "| image perplexity |" in first.partition("## What it cost")[2]
    assert export(quantized, "gptq", tmp_path / "gptq").manifest != artifact.manifest
    Artifact.open(artifact.path).verify()


def test_artifacts_without_a_card_are_left_alone(tiny_int4: Quantized) -> None:
    """GGUF and ONNX have none."""
    before = tiny_int4.artifact.manifest
    add_figures(invented_report(1), [tiny_int4.artifact])

    assert Artifact.open(tiny_int4.path).manifest == before
