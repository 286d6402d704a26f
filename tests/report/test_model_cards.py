"""Evaluation results in model cards."""

from pathlib import Path
from typing import Any

from mcpmq.artifact import Artifact
from mcpmq.evaluate import Measurement
from mcpmq.export import export
from mcpmq.quantized_model import QuantizedModel
from mcpmq.report import Report
from mcpmq.report.model_cards import update_model_cards
from tests.fake_reports import make_report
from tests.gguf_tools import quantize_with


def test_results_are_written_into_the_card(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A second update changes nothing; the manifest does not change, and a repeated export reuses the artifact."""
    quantized = quantize_with(tiny_checkpoint, tmp_path, **{"language.*": "int8-row"})
    artifact, report = export(quantized, "gptq", tmp_path / "gptq"), make_report(1)
    update_model_cards(report, [artifact])
    first = (artifact.path / "README.md").read_text()
    update_model_cards(report, [Artifact.open(artifact.path)])

    assert (artifact.path / "README.md").read_text() == first
    assert "Not evaluated yet" not in first
    assert "| perplexity, images |" in first.partition("## Evaluation")[2]
    assert export(quantized, "gptq", tmp_path / "gptq") == artifact
    Artifact.open(artifact.path).verify()


def test_results_of_two_runs_are_equal(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A card has no time and no memory, and no note about the cache, because these differ between runs."""
    quantized = quantize_with(tiny_checkpoint, tmp_path, **{"language.*": "int8-row"})
    artifact, report = export(quantized, "gptq", tmp_path / "gptq"), make_report(1)
    update_model_cards(report, [artifact])
    first = (artifact.path / "README.md").read_text()
    other = {"load_seconds": 77.5, "tokens_per_second": 3.1, "peak_rss_bytes": 5 << 30, "from_cache": True}
    update_model_cards(_with_machine_metrics(report, **other), [artifact])

    assert (artifact.path / "README.md").read_text() == first
    assert "RSS" not in first
    assert "tok/s" not in first
    assert "| total size, MB |" in first


def _with_machine_metrics(report: Report, **metrics: Any) -> Report:
    def changed(measurement: Measurement) -> Measurement:
        machine = measurement.machine_dependent.model_copy(update=metrics)
        return measurement.model_copy(update={"machine_dependent": machine})

    artifacts = [one.model_copy(update={"measurement": changed(one.measurement)}) for one in report.artifacts]
    environment = report.environment.model_copy(update={"threads": 77})
    changes = {"original": changed(report.original), "artifacts": tuple(artifacts), "environment": environment}
    return report.model_copy(update=changes)


def test_the_cards_of_a_release_do_not_change(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Its files are hashed: an evaluation of a released artifact writes a report only."""
    quantized = quantize_with(tiny_checkpoint, tmp_path, **{"language.*": "int8-row"})
    artifact = export(quantized, "gptq", tmp_path / "release" / "gptq")
    before = (artifact.path / "README.md").read_text()
    (tmp_path / "release" / "release.json").write_text("{}")
    update_model_cards(make_report(1), [artifact])

    assert (artifact.path / "README.md").read_text() == before


def test_artifacts_without_a_card_are_unchanged(tiny_int4: QuantizedModel) -> None:
    """A quantized model has no card."""
    before = tiny_int4.artifact.manifest
    update_model_cards(make_report(1), [tiny_int4.artifact])

    assert Artifact.open(tiny_int4.path).manifest == before
