"""Check a report against a gate: one verdict for every bound; a bound that cannot be checked is violated."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import ORIGINAL, Estimate, VocabularyDifference, changes
from mcpmq.evaluate.task_scores import score_changes
from mcpmq.formats.kv_cache import F16_CACHE
from mcpmq.gate.gate import ARTIFACT, Bound, Gate, Reference
from mcpmq.gate.verdict import Verdict
from mcpmq.report import ArtifactResult, Report
from mcpmq.report.report import CalibrationInfo, DatasetInfo, SourceInfo

SIZES = ("nbytes", "bits_per_weight", "peak_rss_bytes", "kv_cache_bytes_per_token", "tokens_per_second")
Metrics: TypeAlias = Mapping[str, Estimate | float]  # by name
MISSING_GROUP = {
    "original": "the report has no `{}`",
    "baseline": "the report has no `{}` with the samples of the baseline",
}
Info: TypeAlias = SourceInfo | DatasetInfo | CalibrationInfo | None


def check(report: Report, gate: Gate, baseline: Report | None = None) -> tuple[Verdict, ...]:
    """Check the artifacts that the gate selects, against the original and a baseline report."""
    results = [result for result in report.artifacts if fnmatchcase(result.label, gate.artifacts)]
    if not results:
        problem = f"the report has no such artifact; it has {_quote(result.label for result in report.artifacts)}"
        return (Verdict(gate.artifacts, "original", ARTIFACT, "name", problem, gate=gate.file),)
    return tuple(verdict for result in results for verdict in _verdicts(report, result, gate, baseline))


def _verdicts(report: Report, result: ArtifactResult, gate: Gate, baseline: Report | None) -> Iterator[Verdict]:
    yield from _check_bounds(result, "original", gate, _original_metrics(report, result))
    if not gate.baseline and baseline is None:
        return
    earlier, problems = _find_baseline(report, result, baseline)
    for name, problem in problems.items():
        yield Verdict(result.label, "baseline", ARTIFACT, name, problem, gate=gate.file)
    if earlier and not problems:
        yield from _check_bounds(result, "baseline", gate, _baseline_metrics(result, earlier))
    else:
        for group, metric, bound in gate.bounds("baseline"):
            line = gate.line("baseline", group, metric)
            reason = f"the baseline cannot be compared: {', '.join(problems)}"
            yield Verdict(result.label, "baseline", group, metric, "", reason, bound, None, gate.file, line)


def _check_bounds(
    result: ArtifactResult, reference: Reference, gate: Gate, metrics: Mapping[str, Metrics]
) -> Iterator[Verdict]:
    for group, metric, bound in gate.bounds(reference):
        problem, value = _problem(reference, group, metric, bound, metrics), metrics.get(group, {}).get(metric)
        line = gate.line(reference, group, metric)
        yield Verdict(result.label, reference, group, metric, problem, "", bound, value, gate.file, line)


def _problem(reference: Reference, group: str, metric: str, bound: Bound, metrics: Mapping[str, Metrics]) -> str:
    if group not in metrics:
        return f"{MISSING_GROUP[reference].format(group)}; it has {_quote(metrics)}"
    if metric not in metrics[group]:
        return f"the metric is unknown; known are {_quote(metrics[group])}"
    value = metrics[group][metric]
    if bound.on != "value" and not isinstance(value, Estimate):
        return f"the metric has no interval and no {bound.on} end"
    if bound.holds(getattr(value, bound.on) if isinstance(value, Estimate) else value):
        return ""
    return f"{_format(value)}, allowed is {bound}" + ("" if bound.on == "value" else f" for the {bound.on} end")


def _quote(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _format(value: Estimate | float) -> str:
    if not isinstance(value, Estimate):
        return f"{value:.6g}"
    if not math.isfinite(value.low):
        return f"{value.value:.6g} (95 % interval not known: too few samples)"
    return f"{value.value:.6g} (95 % interval {value.low:.6g} to {value.high:.6g})"


def _original_metrics(report: Report, result: ArtifactResult) -> dict[str, Metrics]:
    metrics: dict[str, Metrics] = {
        task: {"score": one.artifact, "score_change": one.score_change} for task, one in result.task_scores.items()
    }
    trimmed = {group: _estimates(difference) for group, difference in (result.vocabulary or {}).items()}
    metrics |= {group: dict(one) | trimmed.get(group, {}) for group, one in result.differences.items()}
    sizes = {"nbytes_ratio": _ratio(result.measurement.nbytes, report.original.nbytes)}
    return metrics | {ARTIFACT: _sizes(result) | sizes}


def _estimates(difference: VocabularyDifference) -> dict[str, Estimate]:
    """Return the metrics of a trimmed vocabulary that have an interval; its numbers of samples are not bounded."""
    return {name: value for name, value in difference if isinstance(value, Estimate)}


def _baseline_metrics(result: ArtifactResult, earlier: ArtifactResult) -> dict[str, Metrics]:
    scores = score_changes(earlier.task_scores, result.task_scores)
    metrics: dict[str, Metrics] = {task: {"score_change": change} for task, change in scores.items()}
    by_group = changes(earlier.measurement.samples, result.measurement.samples, ORIGINAL)
    metrics |= {group: dict(change) for group, change in by_group.items()}
    before, after = _sizes(earlier), _sizes(result)
    return metrics | {ARTIFACT: {f"{name}_ratio": _ratio(after[name], before[name]) for name in after}}


def _ratio(after: float, before: float) -> float:
    """Return the ratio; NaN, which no bound allows, if a damaged report has a size of 0."""
    return after / before if before else math.nan


def _sizes(result: ArtifactResult) -> dict[str, float]:
    nbytes, machine = result.measurement.nbytes, result.measurement.machine_dependent
    cache = result.measurement.kv_cache_bytes_per_token
    memory = (machine.peak_rss_bytes, math.nan if cache is None else cache)
    values = (nbytes, result.weights.bits_per_weight, *memory, machine.tokens_per_second)
    return dict(zip(SIZES, values, strict=True))


def _find_baseline(
    report: Report, result: ArtifactResult, baseline: Report | None
) -> tuple[ArtifactResult | None, dict[str, str]]:
    """Return the artifact in the baseline report, and by field the reasons why both cannot be compared."""
    if baseline is None:
        return None, {"report": "no baseline report is given"}
    earlier = next((one for one in baseline.artifacts if one.label == result.label), None)
    if earlier is None:
        return None, {"report": f"the baseline has no `{result.label}`"}
    pairs: dict[str, tuple[Info, Info]] = {
        "checkpoint": (report.checkpoint, baseline.checkpoint),
        "evaluation set": (report.eval_set, baseline.eval_set),
        "calibration set": (result.calibration_set, earlier.calibration_set),
    }
    differing = {
        name: f"{_describe(now)} differs from {_describe(then)} of the baseline"
        for name, (now, then) in pairs.items()
        if now != then
    }
    now, then = (one.measurement.kv_cache or str(F16_CACHE) for one in (result, earlier))
    return earlier, differing | ({"KV cache": f"`{now}` differs from `{then}` of the baseline"} if now != then else {})


def _describe(info: Info) -> str:
    return f"`{info.name}` ({info.sha256[:12]})" if info else "none"


def check_artifacts(report: Report, artifacts: Sequence[Artifact]) -> None:
    """Check that artifacts are those that the report measures.

    Raises:
        ArtifactError: an artifact is not in the report, or its files changed.
    """
    measured = {result.sha256 for result in report.artifacts}
    for artifact in artifacts:
        if artifact.sha256 not in measured:
            raise ArtifactError(f"`{artifact.path}` is not in the report", "evaluate it again")
        artifact.verify()
