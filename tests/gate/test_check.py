"""Verdicts: what holds, what is violated, and that nothing unchecked passes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mcpmq.artifact import MANIFEST, Artifact
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import ORIGINAL, changes
from mcpmq.gate import Gate, Verdict, check, refuse_changed
from mcpmq.quantized_model import Quantized
from mcpmq.report import Report
from tests.fake_reports import invented_report


def gate(**parts: Any) -> Gate:
    """A gate of plain values."""
    return Gate.model_validate(parts)


def violated(report: Report, gate: Gate, baseline: Report | None = None) -> list[str]:
    """The lines that `mcpmq check` would print."""
    return [str(one) for one in check(report, gate, baseline) if not one.holds]


def with_entry(report: Report, **changed: Any) -> Report:
    """The report with its first artifact changed."""
    return report.model_copy(update={"artifacts": (report.artifacts[0].model_copy(update=changed),)})


def test_a_difference_within_its_bound_holds_and_one_beyond_is_a_line() -> None:
    """The line has the artifact, the kind, the metric, its value with the interval, and what is allowed."""
    report = invented_report(1)
    divergence = report.artifacts[0].differences["image"].kl_divergence
    allowed = {"image": {"kl_divergence": {"at_most": divergence.value}}}
    assert violated(report, gate(original=allowed)) == []
    allowed["image"]["kl_divergence"]["at_most"] = divergence.value * 0.99
    [line] = violated(report, gate(original=allowed))
    assert line.startswith("gguf phone-int4, image, kl_divergence against the original: ")
    assert f"{divergence.value:.6g} (95 % interval {divergence.low:.6g} to {divergence.high:.6g})" in line
    assert "allowed is at most" in line


@pytest.mark.parametrize(("end", "holds"), [("low", True), ("value", True), ("high", False)])
def test_an_end_of_the_interval_can_be_held_against_the_bound(end: str, holds: bool) -> None:
    """A bound between the value and the upper end: proved to be small it is not, proved to be large neither."""
    report = invented_report(1)
    divergence = report.artifacts[0].differences["text"].kl_divergence
    between = (divergence.value + divergence.high) / 2
    bounds = {"text": {"kl_divergence": {"at_most": between, "on": end}}}
    assert (violated(report, gate(original=bounds)) == []) is holds


def test_sizes_and_memory_are_bounded_too() -> None:
    """Of the artifact itself, in relation to the original, and to the baseline."""
    report = invented_report(1)
    bounds = {"nbytes": {"at_most": 1}, "peak_resident_bytes": {"at_most": 10**9}, "nbytes_ratio": {"at_most": 1.01}}
    [line] = violated(report, gate(original={"artifact": bounds}))
    assert "nbytes against the original: 1.606e+07, allowed is at most 1" in line
    assert violated(report, gate(baseline={"artifact": {"nbytes_ratio": {"at_most": 1.0}}}), report) == []


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"image": {"kl_divergense": {"at_most": 1}}}, "no such metric; there are `loss_increase`"),
        (
            {"audio": {"kl_divergence": {"at_most": 1}}},
            "the report has no `audio`; it has `image`, `nonsquare`, `text`",
        ),
        ({"artifact": {"kl_divergence": {"at_most": 1}}}, "no such metric; there are `nbytes`"),
        ({"artifact": {"nbytes": {"at_most": 1e9, "on": "high"}}}, "it has no interval, so no high end"),
    ],
)
def test_what_cannot_be_checked_is_violated(bounds: dict[str, Any], message: str) -> None:
    """An unknown metric, a kind of sample that the set lacks."""
    [line] = violated(invented_report(1), gate(original=bounds))
    assert message in line


def test_an_interval_that_is_not_known_violates_its_bound() -> None:
    """One sample has none."""
    report = invented_report(1)
    differences = report.artifacts[0].differences
    unsure = differences["image"].kl_divergence.model_copy(update={"high": float("nan")})
    changed = {**differences, "image": differences["image"].model_copy(update={"kl_divergence": unsure})}
    bounds = {"image": {"kl_divergence": {"at_most": 100, "on": "high"}}}
    assert len(violated(with_entry(report, differences=changed), gate(original=bounds))) == 1


def test_a_gate_about_no_artifact_of_the_report_is_violated() -> None:
    """With the names that there are; a glob chooses among several."""
    bounds = {"image": {"kl_divergence": {"at_most": 0}}}
    [line] = violated(invented_report(2), gate(artifacts="awq *", original=bounds))
    assert "no artifact has such a name; there are `gguf phone-int4`, `onnx phone-int4`" in line
    lines = violated(invented_report(4), gate(artifacts="onnx *", original=bounds))
    assert [line.partition(",")[0] for line in lines] == ["onnx phone-int4", "onnx phone-int8"]


def test_the_baseline_is_compared_token_by_token() -> None:
    """With itself nothing changes at all; with a better one the increase is the paired difference."""
    report = invented_report(1)
    bounds = {"image": {"kl_divergence_increase": {"at_most": 0}, "perplexity_ratio": {"at_most": 1}}}
    assert violated(report, gate(baseline=bounds), report) == []
    worse = with_entry(report, measurement=invented_report(4).artifacts[3].measurement)
    [first, *_] = violated(worse, gate(baseline=bounds), report)
    found = changes(report.artifacts[0].measurement.samples, worse.artifacts[0].measurement.samples, ORIGINAL)
    assert f"{found['image'].kl_divergence_increase.value:.6g}" in first


def test_a_baseline_of_something_else_is_violated_with_the_reason() -> None:
    """Another checkpoint, held-out set or calibration set; a missing report or artifact."""
    report, bounds = invented_report(1), {"image": {"kl_divergence_increase": {"at_most": 9}}}
    asked = gate(baseline=bounds)
    other_source = report.checkpoint.model_copy(update={"sha256": "99" * 32})
    other_set = report.measured_on.model_copy(update={"name": "easy", "sha256": "77" * 32})
    for baseline, reason in (
        (report.model_copy(update={"checkpoint": other_source}), "checkpoint.*`model.*is not the baseline's.*9999"),
        (report.model_copy(update={"measured_on": other_set}), "held-out set.*`heldout`.*`easy` .7777"),
        (with_entry(report, calibrated_on=None), "calibration set.*`starter`.*none"),
        (with_entry(report, recipe="other"), "the baseline has no `gguf phone-int4`"),
        (None, "no baseline report was given"),
    ):
        [line] = violated(report, asked, baseline)
        import re

        assert re.search(reason, line), line


def test_an_artifact_that_changed_since_is_refused(tiny_int4: Quantized, tmp_path: Path) -> None:
    """Its manifest is not the one that was measured, or a file is not the one in the manifest."""
    shutil.copytree(tiny_int4.path, tmp_path / "copy")
    copy = Quantized.open(tmp_path / "copy").artifact
    report = with_entry(invented_report(1), sha256=copy.sha256)
    refuse_changed(report, [copy])
    with pytest.raises(ArtifactError, match="not about"):
        refuse_changed(invented_report(1), [copy])
    with (copy.path / "blocks" / "head.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(ArtifactError, match="is not the file that was written"):
        refuse_changed(report, [copy])
    facts = json.loads((copy.path / MANIFEST).read_text())
    (copy.path / MANIFEST).write_text(json.dumps({**facts, "notes": ["another"]}))
    with pytest.raises(ArtifactError, match="not about"):
        refuse_changed(report, [Artifact.open(copy.path)])


def test_a_verdict_that_holds_says_so() -> None:
    """In the files that list all of them."""
    assert str(Verdict("a", "original", "image", "m")) == "a, image, m against the original: holds"
