"""Verdicts: bounds that hold, bounds that are violated, and bounds that cannot be checked."""

import json
import re
import shutil
from math import nan
from pathlib import Path
from typing import Any

import pytest

from mcpmq.artifact import MANIFEST, Artifact
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import ORIGINAL, Estimate, VocabularyDifference, changes
from mcpmq.evaluate.task_scores import compare_scores
from mcpmq.gate import Bound, Gate, Verdict, check, check_artifacts
from mcpmq.quantized_model import QuantizedModel
from mcpmq.report import Report
from tests.fake_reports import make_report


def gate(**parts: Any) -> Gate:
    """Return a gate from plain values."""
    return Gate.model_validate(parts)


def violated(report: Report, gate: Gate, baseline: Report | None = None) -> list[str]:
    """Return the violated bounds as text."""
    return [str(one) for one in check(report, gate, baseline) if one.status == "failed"]


def with_result(report: Report, **changed: Any) -> Report:
    """Return the report with a changed first artifact only."""
    return report.model_copy(update={"artifacts": (report.artifacts[0].model_copy(update=changed),)})


def test_a_value_above_its_bound_is_violated() -> None:
    """A bound equal to the value holds; a violated one has artifact, group, metric, value, interval and bound."""
    report = make_report(1)
    divergence = report.artifacts[0].differences["image"].kl_divergence
    allowed = {"image": {"kl_divergence": {"at_most": divergence.value}}}
    assert violated(report, gate(original=allowed)) == []
    allowed["image"]["kl_divergence"]["at_most"] = divergence.value * 0.99
    [line] = violated(report, gate(original=allowed))
    assert line.startswith("gguf phone-int4, image, kl_divergence against the original: ")
    assert f"{divergence.value:.6g} (95 % interval {divergence.low:.6g} to {divergence.high:.6g})" in line
    assert "allowed is at most" in line


@pytest.mark.parametrize(("end", "holds"), [("low", True), ("value", True), ("high", False)])
def test_a_bound_can_apply_to_an_end_of_the_interval(end: str, holds: bool) -> None:
    """A bound between the value and the high end holds for value and low end, and is violated for the high end."""
    report = make_report(1)
    divergence = report.artifacts[0].differences["text"].kl_divergence
    between = (divergence.value + divergence.high) / 2
    bounds = {"text": {"kl_divergence": {"at_most": between, "on": end}}}
    assert (violated(report, gate(original=bounds)) == []) is holds


def test_sizes_and_memory_are_checked() -> None:
    """Bounds apply to the artifact, its ratio to the original, and its ratio to the baseline."""
    report = make_report(1)
    bounds = {"nbytes": {"at_most": 1}, "peak_rss_bytes": {"at_most": 10**9}, "nbytes_ratio": {"at_most": 1.01}}
    [line] = violated(report, gate(original={"artifact": bounds}))
    assert "nbytes against the original: 1.606e+07, allowed is at most 1" in line
    assert violated(report, gate(baseline={"artifact": {"nbytes_ratio": {"at_most": 1.0}}}), report) == []


def estimate(value: float) -> Estimate:
    """Return an estimate with an interval."""
    return Estimate(value=value, standard_error=0.01, low=value - 0.02, high=value + 0.02)


def trimmed_report(removed_probability: Estimate) -> Report:
    """Return a report of an artifact with a trimmed vocabulary."""
    difference = VocabularyDifference(
        samples=9,
        same_tokens=7,
        answer_tokens=50,
        original_answer_tokens=44,
        removed_probability=removed_probability,
        original_character_perplexity=estimate(1.5),
        character_perplexity=estimate(1.65),
        character_perplexity_ratio=estimate(1.1),
    )
    return with_result(make_report(1), vocabulary={"text": difference})


def test_metrics_of_a_trimmed_vocabulary_are_checked() -> None:
    """Removed probability and perplexity per character are metrics of a group; all tokens have none of them."""
    bounds: dict[str, Any] = {
        "removed_probability": {"at_most": 0.04},
        "character_perplexity_ratio": {"at_most": 1.11, "on": "high"},
    }

    [line] = violated(trimmed_report(estimate(0.03)), gate(original={"text": bounds}))
    assert "text, character_perplexity_ratio against the original: 1.1 (95 % interval 1.08 to 1.12)" in line
    assert "allowed is at most 1.11 for the high end" in line
    first, second = violated(make_report(1), gate(original={"text": bounds}))
    assert "the metric is unknown" in first
    assert "the metric is unknown" in second


def test_the_removed_probability_of_no_sample_violates_its_bound() -> None:
    """If no sample has the tokens of the original, the removed probability is not known, and no bound holds."""
    report = trimmed_report(Estimate(value=nan, standard_error=nan, low=nan, high=nan))

    assert violated(report, gate(original={"text": {"removed_probability": {"at_most": 1}}}))
    assert violated(report, gate(original={"text": {"character_perplexity": {"at_most": 2}}})) == []


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"image": {"kl_divergense": {"at_most": 1}}}, "the metric is unknown; known are `loss_increase`"),
        (
            {"audio": {"kl_divergence": {"at_most": 1}}},
            "the report has no `audio`; it has `image`, `nonsquare`, `text`",
        ),
        ({"artifact": {"kl_divergence": {"at_most": 1}}}, "the metric is unknown; known are `nbytes`"),
        ({"artifact": {"nbytes": {"at_most": 1e9, "on": "high"}}}, "the metric has no interval and no high end"),
    ],
)
def test_a_bound_that_cannot_be_checked_is_violated(bounds: dict[str, Any], message: str) -> None:
    """An unknown metric, a group that the set does not have, an interval that the metric does not have."""
    [line] = violated(make_report(1), gate(original=bounds))
    assert message in line


def test_an_unknown_interval_violates_its_bound() -> None:
    """An end that is NaN, as of a single sample, is a violation."""
    report = make_report(1)
    differences = report.artifacts[0].differences
    unknown = differences["image"].kl_divergence.model_copy(update={"high": float("nan")})
    changed = {**differences, "image": differences["image"].model_copy(update={"kl_divergence": unknown})}
    bounds = {"image": {"kl_divergence": {"at_most": 100, "on": "high"}}}
    assert len(violated(with_result(report, differences=changed), gate(original=bounds))) == 1


def test_task_scores_are_checked() -> None:
    """A task is a group with the mean score and its change; against a baseline, the change between the artifacts."""
    ones = {str(sample): 1.0 for sample in range(40)}
    worse = ones | {str(sample): 0.0 for sample in range(10)}
    earlier, later = (
        with_result(make_report(1), task_scores={"ocr": compare_scores("exact", ones, one)}) for one in (ones, worse)
    )
    bounds = {"ocr": {"score": {"at_least": 0.8}, "score_change": {"at_least": -0.25}}}
    [line] = violated(later, gate(original=bounds))
    assert "ocr, score against the original: 0.75 (95 % interval" in line
    assert violated(later, gate(original={"ocr": {"score_change": {"at_least": -0.25, "on": "low"}}}))
    change = gate(baseline={"ocr": {"score_change": {"at_least": -0.2}}})
    [line] = violated(later, change, earlier)
    assert "ocr, score_change against the baseline: -0.25" in line
    assert violated(earlier, change, earlier) == []
    [line] = violated(earlier, change, make_report(1))
    assert "the report has no `ocr` with the samples of the baseline; it has `image`" in line


def test_a_gate_that_selects_no_artifact_is_violated() -> None:
    """The violation lists the artifacts of the report; a glob selects several of them."""
    bounds = {"image": {"kl_divergence": {"at_most": 0}}}
    [line] = violated(make_report(2), gate(artifacts="awq *", original=bounds))
    assert "the report has no such artifact; it has `gguf phone-int4`, `onnx phone-int4`" in line
    lines = violated(make_report(4), gate(artifacts="onnx *", original=bounds))
    assert [line.partition(",")[0] for line in lines] == ["onnx phone-int4", "onnx phone-int8"]


def test_the_baseline_is_compared_token_by_token() -> None:
    """The change from a report to itself is 0; the increase to another one is the paired difference."""
    report = make_report(1)
    bounds = {"image": {"kl_divergence_increase": {"at_most": 0}, "perplexity_ratio": {"at_most": 1}}}
    assert violated(report, gate(baseline=bounds), report) == []
    worse = with_result(report, measurement=make_report(4).artifacts[3].measurement)
    [first, *_] = violated(worse, gate(baseline=bounds), report)
    found = changes(report.artifacts[0].measurement.samples, worse.artifacts[0].measurement.samples, ORIGINAL)
    assert f"{found['image'].kl_divergence_increase.value:.6g}" in first


def test_the_bytes_of_the_cache_are_a_metric() -> None:
    """6,144 bytes of a token are allowed, one less is violated; without a known cache the bound is violated."""
    report = make_report(1)
    for limit, lines in ((6144, 0), (6143, 1)):
        bounds = {"artifact": {"kv_cache_bytes_per_token": {"at_most": limit}}}
        assert len(violated(report, gate(original=bounds))) == lines
    unknown = report.artifacts[0].measurement.model_copy(update={"kv_cache_bytes_per_token": None})
    assert len(violated(with_result(report, measurement=unknown), gate(original=bounds))) == 1


def test_a_baseline_that_cannot_be_compared_is_violated() -> None:
    """The violation has the reason: another checkpoint or set, or a missing report or artifact."""
    report, bounds = make_report(1), {"image": {"kl_divergence_increase": {"at_most": 9}}}
    bounded = gate(baseline=bounds)
    other_source = report.checkpoint.model_copy(update={"sha256": "99" * 32})
    other_set = report.eval_set.model_copy(update={"name": "easy", "sha256": "77" * 32})
    other_cache = report.artifacts[0].measurement.model_copy(update={"kv_cache": "q8_0"})
    for baseline, reason in (
        (report.model_copy(update={"checkpoint": other_source}), "checkpoint.*`model.*differs from.*9999"),
        (report.model_copy(update={"eval_set": other_set}), "evaluation set.*`heldout`.*`easy` .7777"),
        (with_result(report, measurement=other_cache), "KV cache.*`f16` differs from `q8_0`"),
        (with_result(report, calibration_set=None), "calibration set.*`starter`.*none"),
        (with_result(report, recipe="other"), "the baseline has no `gguf phone-int4`"),
        (None, "no baseline report is given"),
    ):
        [line] = violated(report, bounded, baseline)
        assert re.search(reason, line), line


def test_a_changed_artifact_is_rejected(tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """A manifest that is not in the report, or a file that differs from its manifest, is an error."""
    shutil.copytree(tiny_int4.path, tmp_path / "copy")
    copy = QuantizedModel.open(tmp_path / "copy").artifact
    report = with_result(make_report(1), sha256=copy.sha256)
    check_artifacts(report, [copy])
    with pytest.raises(ArtifactError, match="is not in the report"):
        check_artifacts(make_report(1), [copy])
    with (copy.path / "blocks" / "head.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(ArtifactError, match="differs from its SHA-256"):
        check_artifacts(report, [copy])
    manifest = json.loads((copy.path / MANIFEST).read_text())
    (copy.path / MANIFEST).write_text(json.dumps({**manifest, "notes": ["another"]}))
    with pytest.raises(ArtifactError, match="is not in the report"):
        check_artifacts(report, [Artifact.open(copy.path)])


def test_the_text_of_a_passed_verdict() -> None:
    """The text has artifact, group, metric and reference."""
    assert str(Verdict("a", "original", "image", "m")) == "a, image, m against the original: passed"


@pytest.mark.parametrize(
    ("bound", "margin"),
    [
        ({"at_most": 1.5}, 0.25),
        ({"at_least": 1.5}, -0.25),
        ({"at_least": 1.0, "at_most": 2.0}, 0.25),
        ({"at_most": 1.5, "on": "high"}, -0.5),
        ({"at_least": 1.0, "on": "low"}, 0.0),
    ],
)
def test_the_margin_is_the_distance_to_the_nearest_limit(bound: dict[str, Any], margin: float) -> None:
    """It applies to the value or the end that is bounded, and is negative outside of the limits."""
    value = Estimate(value=1.25, standard_error=0.1, low=1.0, high=2.0)
    verdict = Verdict("a", "original", "image", "m", bound=Bound(**bound), value=value)

    assert verdict.margin == pytest.approx(margin)
    assert Verdict("a", "original", "image", "m", bound=Bound(at_most=2.0), value=float("nan")).margin is None
    assert Verdict("a", "original", "image", "m", bound=Bound(at_most=2.0), value=0.5).margin == 1.5
