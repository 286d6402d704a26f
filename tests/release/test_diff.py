"""Differences between releases."""

import json
from pathlib import Path

import pytest

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError
from mcpmq.export import export
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.release.diff import diff
from mcpmq.release.package import ReleaseOptions, package
from mcpmq.release.record import Release
from tests.fake_releases import report_for, with_license


@pytest.fixture(scope="module")
def better(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Return a GGUF artifact with 8-bit `mlp.down` matrices."""
    folder = tmp_path_factory.mktemp("better")
    written = Recipe.load("phone-int4").to_dict()
    weights = {**written["weights"], "language.*.mlp.down": "int8-g32"}  # type: ignore[dict-item]
    recipe = Recipe.model_validate({"name": "better", "weights": weights})
    return export(
        quantize(make_plan(Checkpoint.open(tiny_checkpoint), recipe), folder / "codes"), "gguf", folder / "gguf"
    )


def test_a_release_does_not_differ_from_itself(tiny_release: Release) -> None:
    """The table reports no change."""
    found = diff(tiny_release.path, tiny_release.path)

    assert found.changes == ()
    assert found.to_table().rows == [("no change", ["", ""])]


def test_schemes_sizes_and_files_that_changed_are_listed(tiny_exports: list[Artifact], better: Artifact) -> None:
    """Equal changes of several layers share a line, and unchanged values are omitted."""
    changes = {one.name: (one.before, one.after) for one in diff(tiny_exports[0].path, better.path).changes}

    assert changes["gguf recipe"] == ("phone-int4", "better")
    assert changes["gguf, scheme of language.layers.*.mlp.down (2 weights)"] == ("int4-g32", "int8-g32")
    assert changes["gguf, size of language"][0] < changes["gguf, size of language"][1]
    assert [what for what in changes if "scheme of" in what] == [
        "gguf, scheme of language.layers.*.mlp.down (2 weights)"
    ]
    assert {what for what in changes if "file" in what} == {
        "gguf, size of all files",
        "gguf file tiny-Q4_0.gguf",
        "gguf file mmproj-tiny-Q8_0.gguf",  # records the recipe
    }


def test_measurements_that_changed_are_listed(
    tiny_checkpoint: Path, tiny_exports: list[Artifact], tiny_release: Release, better: Artifact, tmp_path: Path
) -> None:
    """Every changed metric has half of its 95 % interval; a missing format is a change."""
    source = Checkpoint.open(with_license(tiny_checkpoint, tmp_path))
    facts = json.loads(report_for([better]).model_dump_json())
    facts["artifacts"][0]["differences"]["image"]["loss_increase"]["value"] += 1
    report = type(report_for([better])).model_validate(facts)
    new = package([better], source, report, tmp_path / "new", ReleaseOptions())

    changes = {one.name: (one.before, one.after) for one in diff(tiny_release.path, new.path).changes}

    assert changes["format onnx"] == ("present", "")
    assert [what for what in changes if "measured" in what] == ["gguf, measured image loss increase"]
    loss = report.artifacts[0].differences["image"].loss_increase
    assert changes["gguf, measured image loss increase"][1] == f"{loss.value:.4g} ±{loss.half_width:.2g}"


def test_measurements_on_different_sets_are_not_compared(
    tiny_checkpoint: Path, tiny_release: Release, better: Artifact, tmp_path: Path
) -> None:
    """Another set, or a control in one of the reports, is one change without metrics."""
    source, report = Checkpoint.open(with_license(tiny_checkpoint, tmp_path)), report_for([better])
    controls: list[dict[str, object]] = [{"sha256": "77" * 32}, {"images_shuffled": True}]
    for number, changed in enumerate(controls):
        other = report.model_copy(update={"eval_set": report.eval_set.model_copy(update=changed)})
        new = package([better], source, other, tmp_path / f"new{number}", ReleaseOptions())

        names = [one.name for one in diff(tiny_release.path, new.path).changes if "measure" in one.name]

        assert names == ["measurements (not compared: different sets)"]


def test_different_formats_are_an_error(tiny_exports: list[Artifact]) -> None:
    """A GGUF and an ONNX artifact cannot be compared."""
    with pytest.raises(ArtifactError, match="has gguf, .* has onnx"):
        diff(tiny_exports[0].path, tiny_exports[1].path)
