"""A release holds everything, proves everything, and is refused where something is missing."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError, OutputError, ReleaseError
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.release.package import Wanted, package
from mcpmq.release.record import RECORD, Release, files_under
from tests.fake_releases import report_about, with_terms
from tests.tiny import CONFIG, build_checkpoint


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny checkpoint with a licence."""
    return Checkpoint.open(with_terms(tiny_checkpoint, tmp_path_factory.mktemp("source")))


def test_a_release_holds_all_that_a_user_needs(tiny_release: Release) -> None:
    """Models, processor, recipes, report, card, licence, hashes; and every file is listed."""
    names = set(files_under(tiny_release.path))

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
    """The system's own tool reads them."""
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=tiny_release.path, check=True)


def test_the_recipe_of_a_release_is_the_recipe(tiny_release: Release) -> None:
    """The TOML file says what the manifest says."""
    loaded = Recipe.load(str(tiny_release.path / "recipes" / "gguf.toml"))

    assert loaded.written() == Recipe.load("phone-int4").written()


def test_the_same_inputs_give_the_same_release(
    source: Checkpoint, tiny_exports: list[Artifact], tiny_release: Release, tmp_path: Path
) -> None:
    """Byte for byte, wherever it is made."""
    again = package(tiny_exports, source, report_about(tiny_exports), tmp_path / "tiny-phone", Wanted())

    for name in files_under(tiny_release.path):
        assert (again.path / name).read_bytes() == (tiny_release.path / name).read_bytes(), name


def test_what_is_larger_than_allowed_is_refused(
    source: Checkpoint, tiny_exports: list[Artifact], tmp_path: Path
) -> None:
    """By how much is said, and nothing is left."""
    total = sum(tiny_exports[1].nbytes_by_component().values())
    out = tmp_path / "out"

    with pytest.raises(ReleaseError, match=r", 1 more than the allowed"):
        package(tiny_exports, source, report_about(tiny_exports), out, Wanted(largest_artifact_nbytes=total - 1))

    assert not list(tmp_path.iterdir())
    assert package(tiny_exports, source, report_about(tiny_exports), out, Wanted(largest_artifact_nbytes=total))


def test_a_changed_artifact_is_refused(source: Checkpoint, tiny_exports: list[Artifact], tmp_path: Path) -> None:
    """One bit of one file."""
    changed = Artifact.open(shutil.copytree(tiny_exports[0].path, tmp_path / "changed"))
    [file] = changed.files_of("language")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    with pytest.raises(ArtifactError, match="is not the file that was written"):
        package([changed], source, report_about([changed]), tmp_path / "out", Wanted())

    assert not (tmp_path / "out").exists()


def test_artifacts_of_another_checkpoint_are_refused(tiny_exports: list[Artifact], tmp_path: Path) -> None:
    """The terms are those of what the artifacts were made from."""
    other = with_terms(build_checkpoint(tmp_path / "other", CONFIG, seed=1), tmp_path / "licensed")

    with pytest.raises(ReleaseError, match="was made from `tiny`"):
        package(tiny_exports, Checkpoint.open(other), report_about(tiny_exports), tmp_path / "out", Wanted())


def test_two_artifacts_of_one_kind_are_refused(
    source: Checkpoint, tiny_exports: list[Artifact], tmp_path: Path
) -> None:
    """A user would not know which to take."""
    twice = [tiny_exports[0]] * 2

    with pytest.raises(ReleaseError, match="two artifacts are of kind `gguf`"):
        package(twice, source, report_about(twice), tmp_path / "out", Wanted())


def test_codes_that_no_engine_loads_are_refused(source: Checkpoint, tiny_int4: Quantized, tmp_path: Path) -> None:
    """They are to be exported first."""
    with pytest.raises(ReleaseError, match="no engine loads"):
        package([tiny_int4.artifact], source, report_about([tiny_int4.artifact]), tmp_path / "out", Wanted())


def test_a_report_about_something_else_is_refused(
    source: Checkpoint, tiny_exports: list[Artifact], tmp_path: Path
) -> None:
    """Figures of another artifact prove nothing, whatever it is called."""
    report = report_about(tiny_exports)
    other = report.artifacts[0].model_copy(update={"sha256": "ef" * 32})

    wrong = report.model_copy(update={"artifacts": (other, report.artifacts[1])})

    with pytest.raises(ReleaseError, match="the report does not measure"):
        package(tiny_exports, source, wrong, tmp_path / "out", Wanted())


@pytest.mark.parametrize(("allowed", "kept"), [(1e9, True), (-1e9, False)])
def test_a_gate_must_hold(
    source: Checkpoint, tiny_exports: list[Artifact], tmp_path: Path, allowed: float, kept: bool
) -> None:
    """It goes along where it does; where it does not every bound that is violated is named, and nothing is left."""
    gate, out = tmp_path / "gate.toml", tmp_path / "out"
    gate.write_text(f"[original.image]\nkl_divergence = {{ at_most = {allowed} }}\n")
    wanted = Wanted(gates=(gate,))

    if kept:
        made = package(tiny_exports, source, report_about(tiny_exports), out, wanted)
        assert (made.path / "gate.toml").read_bytes() == gate.read_bytes()
        return
    with pytest.raises(ReleaseError, match=r"2 of 2 bounds of the gate are violated\n.*kl_divergence"):
        package(tiny_exports, source, report_about(tiny_exports), out, wanted)
    assert not out.exists()


def test_a_release_is_not_written_over_another(
    source: Checkpoint, tiny_exports: list[Artifact], tiny_release: Release
) -> None:
    """What is there stays."""
    with pytest.raises(OutputError, match="exists and is not empty"):
        package(tiny_exports, source, report_about(tiny_exports), tiny_release.path, Wanted())
