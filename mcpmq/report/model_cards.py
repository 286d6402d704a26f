"""What was measured, written into the model cards of the artifacts that have one."""

from collections.abc import Iterable

from mcpmq.artifact import CARD, Artifact, replace_text
from mcpmq.formats.hf.card import with_figures
from mcpmq.report import Report, table_of


def add_figures(report: Report, artifacts: Iterable[Artifact]) -> None:
    """Write its own figures, beside those of the original, into the card of every artifact that the report is about.

    Raises:
        ArtifactError: an artifact changed since it was measured.
    """
    for artifact, entry in zip(artifacts, report.artifacts, strict=True):
        card = artifact.path / CARD
        if card.is_file():
            figures = table_of(report.model_copy(update={"artifacts": (entry,)})).markdown().partition("\n")[2]
            replace_text(artifact, CARD, with_figures(card.read_text(encoding="utf-8"), figures))
