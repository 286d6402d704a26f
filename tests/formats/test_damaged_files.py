"""Damaged files of an artifact whose manifest has their hashes are errors that name the file."""

import shutil
from pathlib import Path

import pytest

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError
from mcpmq.formats.provenance import check_provenance
from tests.campaign.workspace import replace, update_hash


@pytest.mark.parametrize(("index", "suffix"), [(0, ".gguf"), (1, ".onnx")])
def test_a_truncated_file_is_an_error_with_its_name(
    tiny_exports: list[Artifact], tmp_path: Path, index: int, suffix: str
) -> None:
    """The first 999 bytes of a file cannot be parsed."""
    folder = shutil.copytree(tiny_exports[index].path, tmp_path / "artifact")
    file = sorted(folder.rglob(f"*{suffix}"))[0]
    replace(file, file.read_bytes()[:999])
    update_hash(folder, file)

    with pytest.raises(ArtifactError, match=file.name) as caught:
        check_provenance(Artifact.open(folder))
    assert caught.value.hint
