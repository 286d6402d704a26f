"""Terms come with a checkpoint, or nothing is released."""

from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ReleaseError
from mcpmq.release.license import terms_of
from tests.fake_releases import with_terms


@pytest.mark.parametrize(
    ("card", "given", "message"),
    [
        ("# no front matter\n", None, "does not say under which licence"),
        ("---\nlanguage: en\n---\n", None, "does not say under which licence"),
        ("---\nlicense: [a, b]\n---\n", None, "does not say under which licence"),
        ("---\nlicense: apache-2.0\n---\n", "mit", "says licence `apache-2.0`, `mit` was given"),
        ("---\nlicense: [\n---\n", None, "cannot be read"),
    ],
)
def test_without_a_licence_nothing_is_released(
    tiny_checkpoint: Path, tmp_path: Path, card: str, given: str | None, message: str
) -> None:
    """The card must say one identifier, or the releaser must."""
    source = Checkpoint.open(with_terms(tiny_checkpoint, tmp_path, card))

    with pytest.raises(ReleaseError, match=message):
        terms_of(source, given)


def test_a_licence_without_a_name_must_come_with_its_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`other` alone tells nobody anything; given by the releaser, a name is enough."""
    folder = with_terms(tiny_checkpoint, tmp_path, "---\nlicense: other\n---\n")
    source = Checkpoint.open(folder)
    assert terms_of(source).licence == "other"

    (folder / "LICENSE").unlink()
    with pytest.raises(ReleaseError, match="its text is missing"):
        terms_of(source)

    (folder / "README.md").unlink()
    assert terms_of(source, "mit").licence == "mit"
