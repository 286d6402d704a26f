"""Releases of the tiny checkpoint for tests: its artifacts, and a report about them that nobody measured."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.report import Report
from mcpmq.report.report import SourceFacts
from tests.fake_reports import invented_report

CARD = "---\nlicense: apache-2.0\nlanguage:\n- en\ndatasets: mine\nsecret: {a: 1}\n---\n\n# The original\n"


def with_terms(checkpoint: Path, folder: Path, card: str = CARD) -> Path:
    """A copy of a checkpoint with a model card and a licence."""
    copied = shutil.copytree(checkpoint, folder / checkpoint.name)
    (copied / "README.md").write_text(card)
    (copied / "LICENSE").write_text("You may do this.\n")
    return copied


def report_about(artifacts: Sequence[Artifact]) -> Report:
    """Invented figures under the true names, sizes and source."""
    invented = invented_report(len(artifacts))
    entries = [
        entry.model_copy(
            update={
                "kind": artifact.manifest.kind,
                "recipe": artifact.manifest.recipe["name"],
                "sha256": artifact.sha256,
                "measurement": entry.measurement.model_copy(
                    update={"nbytes_by_component": artifact.nbytes_by_component()}
                ),
            }
        )
        for entry, artifact in zip(invented.artifacts, artifacts, strict=True)
    ]
    source = artifacts[0].manifest.source
    checkpoint = SourceFacts(name=source.name, sha256=source.sha256)
    return invented.model_copy(update={"checkpoint": checkpoint, "artifacts": tuple(entries)})
