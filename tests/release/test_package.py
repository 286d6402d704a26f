"""Packaging: content of a release, and conditions for it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError, OutputError, ReleaseError
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.release.package import ReleaseOptions, package
from mcpmq.release.record import RECORD, Release, list_files
from tests.fake_releases import report_for, with_license
from tests.tiny import CONFIG, build_checkpoint


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Return the tiny checkpoint with a license."""
    return Checkpoint.open(with_license(tiny_checkpoint, tmp_path_factory.mktemp("source")))


def test_a_release_has_all_files(tiny_release: Release) -> None:
    """Models, processor, recipes, report, card, license and hashes; every file is in the record."""
    names = set(list_files(tiny_release.path))

    assert {
        "README.md",
        "ORIGINAL_README.md",
        "LICENSE",
        "SHA256SUMS",
        RECORD,
        "report.json",
        "report.md",
        "report.html",
        "recipes/gguf.toml",
        "processor/tokenizer.json",
        "processor/preprocessor_config.json",
        "gguf/tiny-Q4_0.gguf",
        "gguf/mmproj-tiny-Q8_0.gguf",
        "onnx/onnx/decoder_model_merged_q4.onnx",
    } <= names
    assert {record.path for record in tiny_release.record.files} == names - {RECORD, "SHA256SUMS"}


def test_sha256sum_accepts_the_sums(tiny_release: Release) -> None:
    """`sha256sum --check` accepts the file."""
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=tiny_release.path, check=True)


def test_the_recipe_file_is_the_recipe(tiny_release: Release) -> None:
    """The TOML file in the release equals the recipe of the artifact."""
    loaded = Recipe.load(str(tiny_release.path / "recipes" / "gguf.toml"))

    assert loaded.to_dict() == Recipe.load("phone-int4").to_dict()


def test_the_same_inputs_give_the_same_release(
    source: Checkpoint, tiny_exports: list[Artifact], tiny_release: Release, tmp_path: Path
) -> None:
    """Two releases from the same artifacts are equal in every byte."""
    again = package(tiny_exports, source, report_for(tiny_exports), tmp_path / "tiny-phone", ReleaseOptions())

    for name in list_files(tiny_release.path):
        assert (again.path / name).read_bytes() == (tiny_release.path / name).read_bytes(), name


def test_an_artifact_above_the_size_limit_is_rejected(
    source: Checkpoint, tiny_exports: list[Artifact], tmp_path: Path
) -> None:
    """The error has the excess, and no file is left."""
    total = sum(tiny_exports[1].nbytes_by_component().values())
    out = tmp_path / "out"

    with pytest.raises(ReleaseError, match=r", 1 more than the limit"):
        package(tiny_exports, source, report_for(tiny_exports), out, ReleaseOptions(max_artifact_nbytes=total - 1))

    assert not list(tmp_path.iterdir())
    assert package(tiny_exports, source, report_for(tiny_exports), out, ReleaseOptions(max_artifact_nbytes=total))


def test_a_changed_artifact_is_rejected(source: Checkpoint, tiny_exports: list[Artifact], tmp_path: Path) -> None:
    """One changed bit of one file is an error."""
    changed = Artifact.open(shutil.copytree(tiny_exports[0].path, tmp_path / "changed"))
    [file] = changed.component_files("language")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    with pytest.raises(ArtifactError, match="differs from its SHA-256"):
        package([changed], source, report_for([changed]), tmp_path / "out", ReleaseOptions())

    assert not (tmp_path / "out").exists()


def test_artifacts_of_another_checkpoint_are_rejected(tiny_exports: list[Artifact], tmp_path: Path) -> None:
    """The license must be that of the original of the artifacts."""
    other = with_license(build_checkpoint(tmp_path / "other", CONFIG, seed=1), tmp_path / "licensed")

    with pytest.raises(ReleaseError, match="was made from `tiny`"):
        package(tiny_exports, Checkpoint.open(other), report_for(tiny_exports), tmp_path / "out", ReleaseOptions())


def test_two_artifacts_of_one_format_are_rejected(
    source: Checkpoint, tiny_exports: list[Artifact], tmp_path: Path
) -> None:
    """A release has at most one artifact of every format."""
    twice = [tiny_exports[0]] * 2

    with pytest.raises(ReleaseError, match="two artifacts have the format `gguf`"):
        package(twice, source, report_for(twice), tmp_path / "out", ReleaseOptions())


def test_a_quantized_model_is_rejected(source: Checkpoint, tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """A quantized model must be exported first."""
    with pytest.raises(ReleaseError, match="no engine loads"):
        package([tiny_int4.artifact], source, report_for([tiny_int4.artifact]), tmp_path / "out", ReleaseOptions())


def test_a_report_without_the_artifact_is_rejected(
    source: Checkpoint, tiny_exports: list[Artifact], tmp_path: Path
) -> None:
    """Results are matched by SHA-256, not by name."""
    report = report_for(tiny_exports)
    other = report.artifacts[0].model_copy(update={"sha256": "ef" * 32})

    wrong = report.model_copy(update={"artifacts": (other, report.artifacts[1])})

    with pytest.raises(ReleaseError, match="is not in the report"):
        package(tiny_exports, source, wrong, tmp_path / "out", ReleaseOptions())


@pytest.mark.parametrize(("limit", "passes"), [(1e9, True), (-1e9, False)])
def test_gates_must_pass(
    source: Checkpoint, tiny_exports: list[Artifact], tmp_path: Path, limit: float, passes: bool
) -> None:
    """A passed gate is copied; a failed one is an error with every violated bound, and no file is left."""
    gate, out = tmp_path / "gate.toml", tmp_path / "out"
    gate.write_text(f"[original.image]\nkl_divergence = {{ at_most = {limit} }}\n")
    options = ReleaseOptions(gates=(gate,))

    if passes:
        release = package(tiny_exports, source, report_for(tiny_exports), out, options)
        assert (release.path / "gate.toml").read_bytes() == gate.read_bytes()
        return
    with pytest.raises(ReleaseError, match=r"2 of 2 bounds of the gate are violated\n.*kl_divergence"):
        package(tiny_exports, source, report_for(tiny_exports), out, options)
    assert not out.exists()


def test_a_release_is_not_written_over_another(
    source: Checkpoint, tiny_exports: list[Artifact], tiny_release: Release
) -> None:
    """An existing release is an error and stays unchanged."""
    with pytest.raises(OutputError, match="exists and is not empty"):
        package(tiny_exports, source, report_for(tiny_exports), tiny_release.path, ReleaseOptions())


def test_figures_without_an_interval_are_rejected(
    tiny_checkpoint: Path, tiny_exports: list[Artifact], tmp_path: Path
) -> None:
    """One sample of a group has no interval; few samples are marked on the model card."""
    source, report = Checkpoint.open(with_license(tiny_checkpoint, tmp_path)), report_for(tiny_exports)
    for samples, out in ((1, "rejected"), (19, "marked")):
        text = report.original.groups["text"].model_copy(update={"samples": samples})
        original = report.original.model_copy(update={"groups": {**report.original.groups, "text": text}})
        changed = report.model_copy(update={"original": original})
        if samples == 1:
            with pytest.raises(ReleaseError, match="1 sample of the group `text`: its figures have no interval"):
                package(tiny_exports, source, changed, tmp_path / out, ReleaseOptions())
        else:
            package(tiny_exports, source, changed, tmp_path / out, ReleaseOptions())
            assert "few samples: text: 19 samples, fewer than 20" in (tmp_path / out / "README.md").read_text()
