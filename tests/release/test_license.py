"""The license of a checkpoint is declared or given; otherwise packaging fails."""

from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ReleaseError
from mcpmq.release.license import license_of
from tests.fake_releases import with_license


@pytest.mark.parametrize(
    ("card", "given", "message"),
    [
        ("# no front matter\n", None, "does not declare a license"),
        ("---\nlanguage: en\n---\n", None, "does not declare a license"),
        ("---\nlicense: [a, b]\n---\n", None, "does not declare a license"),
        ("---\nlicense: apache-2.0\n---\n", "mit", "declares license `apache-2.0`, `mit` was given"),
        ("---\nlicense: [\n---\n", None, "is invalid"),
    ],
)
def test_a_missing_or_ambiguous_license_is_an_error(
    tiny_checkpoint: Path, tmp_path: Path, card: str, given: str | None, message: str
) -> None:
    """The card declares one identifier, or one is given."""
    source = Checkpoint.open(with_license(tiny_checkpoint, tmp_path, card))

    with pytest.raises(ReleaseError, match=message):
        license_of(source, given)


def test_a_license_without_identifier_requires_its_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`other` is valid with a LICENSE file only; an identifier is valid alone."""
    folder = with_license(tiny_checkpoint, tmp_path, "---\nlicense: other\n---\n")
    source = Checkpoint.open(folder)
    assert license_of(source).identifier == "other"

    (folder / "LICENSE").unlink()
    with pytest.raises(ReleaseError, match="its text is missing"):
        license_of(source)

    (folder / "README.md").unlink()
    assert license_of(source, "mit").identifier == "mit"
