"""Artifacts: file hashes and manifests."""

import hashlib
import re
import shutil
from pathlib import Path

import pytest

from mcpmq.artifact import (
    MANIFEST,
    Artifact,
    Manifest,
    SourceRecord,
    write_manifest,
)
from mcpmq.errors import ArtifactError
from mcpmq.quantized_model import QuantizedModel


def test_a_changed_file_is_an_error(tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """`verify` compares the SHA-256 of every file with the manifest."""
    tiny_int4.artifact.verify()
    copy = tmp_path / "copy"
    copy.mkdir()
    for record in tiny_int4.artifact.manifest.files:
        (copy / record.path).parent.mkdir(exist_ok=True)
        (copy / record.path).write_bytes((tiny_int4.path / record.path).read_bytes())
    (copy / MANIFEST).write_bytes((tiny_int4.path / MANIFEST).read_bytes())
    (copy / "config.json").write_text("{}")

    with pytest.raises(ArtifactError, match=r"config\.json"):
        Artifact.open(copy).verify()


def test_bytes_by_component_add_up(tiny_int4: QuantizedModel) -> None:
    """The sizes of all components sum to the size of all files."""
    sizes = tiny_int4.artifact.nbytes_by_component()

    assert {"vision", "projector", "language", "embedding", "head", "model"} == sizes.keys()
    assert sum(sizes.values()) == sum(
        file.stat().st_size for file in tiny_int4.path.rglob("*") if file.is_file() and file.name != MANIFEST
    )


@pytest.mark.parametrize("text", ["{", "{}", '{"schema_version": 2}'])
def test_a_broken_manifest_is_rejected(tmp_path: Path, text: str) -> None:
    """The error names the manifest."""
    (tmp_path / MANIFEST).write_text(text)

    with pytest.raises(ArtifactError, match=r"mcpmq\.json"):
        Artifact.open(tmp_path)


def test_an_unknown_dtype_is_rejected(tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """The size of a weight follows from its dtype."""
    content = (tiny_int4.path / MANIFEST).read_text()
    assert '"dtype": "float32"' in content or '"dtype": "bfloat16"' in content
    (tmp_path / MANIFEST).write_text(re.sub(r'"dtype": "\w+"', '"dtype": "text"', content, count=1))

    with pytest.raises(ArtifactError, match=r"mcpmq\.json.*`text` is not a dtype"):
        Artifact.open(tmp_path)


def test_a_folder_without_a_manifest_is_rejected(tmp_path: Path) -> None:
    """The error names the missing manifest."""
    with pytest.raises(ArtifactError, match=r"no `mcpmq\.json`"):
        Artifact.open(tmp_path)


def test_the_hash_does_not_depend_on_results_in_the_model_card(tmp_path: Path) -> None:
    """Other results change neither manifest nor hash; another text above them, or another weight file, is an error."""
    source = SourceRecord(name="a", sha256="0" * 64, nbytes=1)
    manifest = Manifest(kind="gptq", family="f", source=source, recipe={}, versions={}, weights=())
    exported = "# Card\n\n## Evaluation\n\nNot evaluated yet: `mcpmq evaluate` writes the results here.\n"
    (tmp_path / "README.md").write_text(exported)
    (tmp_path / "weights").write_text("1")
    write_manifest(tmp_path, manifest, {"model": ["README.md", "weights"]})
    artifact = Artifact.open(tmp_path)
    card = artifact.manifest.files[0]
    assert (card.nbytes, card.sha256) == (len(exported), hashlib.sha256(exported.encode()).hexdigest())

    (tmp_path / "README.md").write_text("# Card\n\n## Evaluation\n\n| perplexity | 7.3 |\n")
    artifact.verify()
    write_manifest(tmp_path, manifest, {"model": ["README.md", "weights"]})
    assert Artifact.open(tmp_path) == artifact

    (tmp_path / "README.md").write_text("# Another\n\n## Evaluation\n\n| perplexity | 7.3 |\n")
    with pytest.raises(ArtifactError, match=r"README\.md` differs"):
        artifact.verify()
    (tmp_path / "README.md").write_text(exported)
    (tmp_path / "weights").write_text("2")
    with pytest.raises(ArtifactError, match="weights` differs"):
        artifact.verify()
    write_manifest(tmp_path, manifest, {"model": ["README.md", "weights"]})
    assert Artifact.open(tmp_path).sha256 != artifact.sha256


def test_links_out_of_an_artifact_are_rejected(tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """No text of another folder gets into an export, with the listed name of a file or with another one."""
    for name in ("tokenizer.json", "blocks/other.safetensors"):
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(tiny_int4.path, folder)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(Path(__file__))
        with pytest.raises(ArtifactError, match="outside of the folder, or a link out of it"):
            Artifact.open(folder)
