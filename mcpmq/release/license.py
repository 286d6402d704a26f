"""Under which terms a checkpoint may be passed on: what its model card and its licence files say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ReleaseError

CARD = "README.md"
UNNAMED = ("other", "unknown")  # what a card says whose licence has no identifier: then its text must be there


@dataclass(frozen=True, slots=True)
class Terms:
    """A licence by its identifier, the card's own fields, and the files that must go with every copy."""

    licence: str
    card: dict[str, Any]
    files: tuple[Path, ...]

    @property
    def licence_files(self) -> list[str]:
        return [file.name for file in self.files if file.name != CARD]


def terms_of(checkpoint: Checkpoint, given: str | None = None) -> Terms:
    """The terms; `given` is what the releaser says where the checkpoint is silent.

    Raises:
        ReleaseError: nobody says, the card cannot be read, or `given` is not what the card says.
    """
    card = _card(checkpoint.path / CARD)
    files = tuple(checkpoint.legal_texts)
    licence = card.get("license")
    if given and licence and given != licence:
        raise ReleaseError(f"`{checkpoint.path / CARD}` says licence `{licence}`, `{given}` was given", "leave it out")
    asked = licence or given
    if not isinstance(asked, str):
        raise ReleaseError(
            f"`{checkpoint.path}` does not say under which licence it may be passed on",
            f"fetch the `{CARD}` that it was published with, or name its licence with `--license`",
        )
    if asked in UNNAMED and all(file.name == CARD for file in files):
        raise ReleaseError(
            f"the licence of `{checkpoint.path}` is `{asked}`, and its text is missing",
            "put the `LICENSE` that it was published with beside its `config.json`",
        )
    return Terms(asked, card, files)


def _card(file: Path) -> dict[str, Any]:
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    if not file.is_file():
        return {}
    try:
        return metadata_load(file) or {}
    except (YAMLError, ValueError, UnicodeDecodeError) as error:
        raise ReleaseError(f"the front matter of `{file}` cannot be read: {error}", "correct it by hand") from error
