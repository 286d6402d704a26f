"""Write evaluation results into the model cards of artifacts."""

from collections.abc import Iterable

from mcpmq.artifact import MODEL_CARD, Artifact, rewrite_file
from mcpmq.formats.hf.card import replace_results
from mcpmq.report import Report, report_table


def update_model_cards(report: Report, artifacts: Iterable[Artifact]) -> None:
    """Write the results of every artifact, and those of the original, into its model card, if it has one.

    `artifacts` are those of the report, in the same order.
    """
    for artifact, result in zip(artifacts, report.artifacts, strict=True):
        card = artifact.path / MODEL_CARD
        if card.is_file():
            table = report_table(report.model_copy(update={"artifacts": (result,)})).to_markdown().partition("\n")[2]
            rewrite_file(artifact, MODEL_CARD, replace_results(card.read_text(encoding="utf-8"), table))
