"""The description of a served model, with its quality from the report of its folder, of its parent, or of a release."""

from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.release.record import Release
from mcpmq.report.files import write_report
from mcpmq.serving.artifacts import find_artifact
from mcpmq.serving.limits import LIMITS
from mcpmq.serving.served_model import EngineFacts, describe, describe_original
from tests.fake_reports import make_report

ENGINE = EngineFacts("llama.cpp", 512, True, notes=("a note",))


def test_a_release_has_the_quality_of_its_report(tiny_release: Release) -> None:
    """The artifact of a release is found in its report, also if packaging has split its files."""
    quality = describe(find_artifact(tiny_release.path), ENGINE, LIMITS).facts["quality"]

    assert quality["samples"] > 0
    assert {"group", "perplexity", "original_perplexity", "top_1_agreement"} <= quality["groups"][0].keys()


def test_a_report_of_another_artifact_is_not_used(tiny_exports: list[Artifact], tmp_path: Path) -> None:
    """An artifact beside the report of another one has no quality."""
    write_report(make_report(1), tmp_path)
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "mcpmq.json").write_bytes((tiny_exports[0].path / "mcpmq.json").read_bytes())

    assert describe(Artifact.open(folder), ENGINE, LIMITS).facts["quality"] is None


def test_facts_are_those_of_artifact_engine_and_limits(tiny_exports: list[Artifact]) -> None:
    """Recipe and size are of the artifact, context and notes of the engine."""
    model = describe(tiny_exports[0], ENGINE, LIMITS).to_json()

    assert (model["id"], model["object"], model["owned_by"]) == ("tiny-phone-int4-gguf", "model", "mcpmq")
    assert model["created"] > 0
    assert model["meta"]["recipe"] == "phone-int4"
    assert model["meta"]["sha256"] == tiny_exports[0].sha256
    assert model["meta"]["original_sha256"] == tiny_exports[0].manifest.source.sha256
    assert model["meta"]["nbytes"] == sum(record.nbytes for record in tiny_exports[0].manifest.files)
    assert model["meta"]["notes"] == ("a note",)
    limits = {"images": 8, "pixels": 24_000_000, "body_nbytes": 20 << 20, "tokens": 512}
    assert model["meta"]["limits"] == {**limits, "videos": 2, "audios": 8, "audio_seconds": 120.0}
    assert (model["meta"]["audio"], model["meta"]["video"]) == (False, False)


def test_an_original_has_no_recipe(tiny_checkpoint: Path) -> None:
    """A checkpoint is described by its name and its size."""
    model = describe_original(Checkpoint.open(tiny_checkpoint), ENGINE, LIMITS).to_json()

    assert model["id"] == "tiny"
    assert (model["meta"]["recipe"], model["meta"]["format"]) == (None, "checkpoint")
