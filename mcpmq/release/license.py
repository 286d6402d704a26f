"""The license of a checkpoint, from its model card and its license files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ReleaseError

MODEL_CARD = "README.md"
WITHOUT_IDENTIFIER = ("other", "unknown")  # the text of such a license is required


@dataclass(frozen=True, slots=True)
class License:
    """Identifier of a license, metadata of the model card, and the files that are part of every copy."""

    identifier: str
    card: dict[str, Any]
    files: tuple[Path, ...]

    @property
    def text_files(self) -> list[str]:
        return [file.name for file in self.files if file.name != MODEL_CARD]


def license_of(checkpoint: Checkpoint, given: str | None = None) -> License:
    """Return the license of a checkpoint; `given` is used if the checkpoint does not declare one.

    Raises:
        ReleaseError: no license is declared or given, both differ, the card is invalid, or the license text is missing.
    """
    card = _read_metadata(checkpoint.path / MODEL_CARD)
    files = tuple(checkpoint.license_files)
    declared = card.get("license")
    if given and declared and given != declared:
        raise ReleaseError(
            f"`{checkpoint.path / MODEL_CARD}` declares license `{declared}`, `{given}` was given",
            "omit `--license`",
        )
    identifier = declared or given
    if not isinstance(identifier, str):
        raise ReleaseError(
            f"`{checkpoint.path}` does not declare a license",
            f"download the `{MODEL_CARD}` of the checkpoint, or give its license with `--license`",
        )
    if identifier in WITHOUT_IDENTIFIER and all(file.name == MODEL_CARD for file in files):
        raise ReleaseError(
            f"the license of `{checkpoint.path}` is `{identifier}`, and its text is missing",
            "copy the `LICENSE` of the checkpoint next to its `config.json`",
        )
    return License(identifier, card, files)


def _read_metadata(file: Path) -> dict[str, Any]:
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    if not file.is_file():
        return {}
    try:
        return metadata_load(file) or {}
    except (YAMLError, ValueError, UnicodeDecodeError) as error:
        raise ReleaseError(f"the metadata of `{file}` is invalid: {error}", "correct its YAML block") from error
