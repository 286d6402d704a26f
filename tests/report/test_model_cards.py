"""Evaluation results in model cards."""

from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.export import export
from mcpmq.quantized_model import QuantizedModel
from mcpmq.report.model_cards import update_model_cards
from tests.fake_reports import make_report
from tests.gguf_tools import quantize_with


def test_results_are_written_into_the_card(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A second update changes nothing; the manifest has the new hash, and a repeated export reuses the artifact."""
    quantized = quantize_with(tiny_checkpoint, tmp_path, **{"language.*": "int8-row"})
    artifact, report = export(quantized, "gptq", tmp_path / "gptq"), make_report(1)
    update_model_cards(report, [artifact])
    first = (artifact.path / "README.md").read_text()
    update_model_cards(report, [Artifact.open(artifact.path)])

    assert (artifact.path / "README.md").read_text() == first
    assert "Not evaluated yet" not in first
    assert "| perplexity, images |" in first.partition("## Evaluation")[2]
    assert export(quantized, "gptq", tmp_path / "gptq").manifest != artifact.manifest
    Artifact.open(artifact.path).verify()


def test_artifacts_without_a_card_are_unchanged(tiny_int4: QuantizedModel) -> None:
    """A quantized model has no card."""
    before = tiny_int4.artifact.manifest
    update_model_cards(make_report(1), [tiny_int4.artifact])

    assert Artifact.open(tiny_int4.path).manifest == before
