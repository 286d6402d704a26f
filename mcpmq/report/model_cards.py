"""Write evaluation results into the model cards of artifacts."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from mcpmq.artifact import MODEL_CARD, RELEASE_RECORD, Artifact, replace_results
from mcpmq.report import Report, accuracy_table
from mcpmq.system.durable_file import write_durably
from mcpmq.system.output import output_errors


def card_files(artifacts: Iterable[Artifact]) -> Iterator[Path]:
    """Yield the model cards of artifacts that have one, except those of a release, which do not change."""
    for artifact in artifacts:
        card = artifact.path / MODEL_CARD
        if card.is_file() and not (artifact.path.absolute().parent / RELEASE_RECORD).is_file():
            yield card


def update_model_cards(report: Report, artifacts: Iterable[Artifact]) -> None:
    """Write the results of every artifact, and those of the original, into its model card, if it has one.

    The results are sizes and accuracy, which are equal in every run. `artifacts` are those of the report, in the same
    order.

    Raises:
        OutputError: a card cannot be written.
    """
    for artifact, result in zip(artifacts, report.artifacts, strict=True):
        for card in card_files([artifact]):
            table = accuracy_table(report.model_copy(update={"artifacts": (result,)})).to_markdown().partition("\n")[2]
            with output_errors(card):
                write_durably(card, replace_results(card.read_bytes(), table))
