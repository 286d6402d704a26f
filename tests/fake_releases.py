"""Releases of the tiny checkpoint for tests, with a report of random numbers."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.report import Report
from mcpmq.report.report import SourceInfo
from tests.fake_reports import make_report

CARD = "---\nlicense: apache-2.0\nlanguage:\n- en\ndatasets: mine\nsecret: {a: 1}\n---\n\n# The original\n"


def with_license(checkpoint: Path, folder: Path, card: str = CARD) -> Path:
    """Copy a checkpoint, and add a model card and a license."""
    copied = shutil.copytree(checkpoint, folder / checkpoint.name)
    (copied / "README.md").write_text(card)
    (copied / "LICENSE").write_text("You may do this.\n")
    return copied


def report_for(artifacts: Sequence[Artifact]) -> Report:
    """Return a report with random metrics, and the names, sizes and source of artifacts."""
    invented = make_report(len(artifacts))
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
    checkpoint = SourceInfo(name=source.name, sha256=source.sha256)
    return invented.model_copy(update={"checkpoint": checkpoint, "artifacts": tuple(entries)})
