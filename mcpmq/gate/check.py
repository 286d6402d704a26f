"""Holds a report against a gate: one verdict a bound, and a bound that cannot be checked is violated."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import ORIGINAL, Estimate, changes
from mcpmq.gate.gate import ARTIFACT, Bound, Bounds, Gate
from mcpmq.report import Entry, Report

SIZES = ("nbytes", "bits_per_weight", "peak_resident_bytes", "tokens_per_second")
Found: TypeAlias = Mapping[str, Estimate | float]  # by metric


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one bound makes of one artifact; `problem` is empty where it holds."""

    artifact: str
    against: str  # "original" or "baseline"
    kind: str  # of sample, or "artifact"
    metric: str
    problem: str = ""

    @property
    def holds(self) -> bool:
        return not self.problem

    def __str__(self) -> str:
        return f"{self.artifact}, {self.kind}, {self.metric} against the {self.against}: {self.problem or 'holds'}"


def check(report: Report, gate: Gate, baseline: Report | None = None) -> tuple[Verdict, ...]:
    """Hold every artifact that the gate is about against its bounds."""
    entries = [entry for entry in report.artifacts if fnmatchcase(entry.label, gate.artifacts)]
    if not entries:
        names = ", ".join(f"`{entry.label}`" for entry in report.artifacts) or "none"
        return (
            Verdict(gate.artifacts, "original", ARTIFACT, "name", f"no artifact has such a name; there are {names}"),
        )
    return tuple(verdict for entry in entries for verdict in _verdicts(report, entry, gate, baseline))


def _verdicts(report: Report, entry: Entry, gate: Gate, baseline: Report | None) -> Iterator[Verdict]:
    yield from _held(entry, "original", gate.original, _from_original(report, entry))
    if not gate.baseline and baseline is None:
        return
    earlier, problems = _comparable(report, entry, baseline)
    for name, problem in problems.items():
        yield Verdict(entry.label, "baseline", ARTIFACT, name, problem)
    if earlier and not problems:
        yield from _held(entry, "baseline", gate.baseline, _from_baseline(entry, earlier))


def _held(entry: Entry, against: str, bounds: Bounds, found: Mapping[str, Found]) -> Iterator[Verdict]:
    for kind, metrics in bounds.items():
        for metric, bound in metrics.items():
            yield Verdict(entry.label, against, kind, metric, _problem(kind, metric, bound, found))


def _problem(kind: str, metric: str, bound: Bound, found: Mapping[str, Found]) -> str:
    if kind not in found:
        return f"the report has no `{kind}`; it has {_listed(found)}"
    if metric not in found[kind]:
        return f"no such metric; there are {_listed(found[kind])}"
    value = found[kind][metric]
    if bound.on != "value" and not isinstance(value, Estimate):
        return f"it has no interval, so no {bound.on} end"
    judged = getattr(value, bound.on) if isinstance(value, Estimate) else value
    if bound.holds(judged):
        return ""
    return f"{_told(value)}, allowed is {bound}" + ("" if bound.on == "value" else f" for its {bound.on} end")


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _told(value: Estimate | float) -> str:
    if not isinstance(value, Estimate):
        return f"{value:.6g}"
    return f"{value.value:.6g} (95 % interval {value.low:.6g} to {value.high:.6g})"


def _from_original(report: Report, entry: Entry) -> dict[str, Found]:
    found: dict[str, Found] = {kind: dict(difference) for kind, difference in entry.differences.items()}
    return found | {ARTIFACT: _sizes(entry) | {"nbytes_ratio": entry.measurement.nbytes / report.original.nbytes}}


def _sizes(entry: Entry) -> dict[str, float]:
    measured = entry.measurement
    machine = measured.machine_dependent
    values = (measured.nbytes, entry.weights.bits_per_weight, machine.peak_resident_bytes, machine.tokens_per_second)
    return dict(zip(SIZES, values, strict=True))


def _from_baseline(entry: Entry, earlier: Entry) -> dict[str, Found]:
    found: dict[str, Found] = {
        kind: dict(change)
        for kind, change in changes(earlier.measurement.samples, entry.measurement.samples, ORIGINAL).items()
    }
    before, after = _sizes(earlier), _sizes(entry)
    return found | {ARTIFACT: {f"{name}_ratio": after[name] / before[name] for name in after}}


def _comparable(report: Report, entry: Entry, baseline: Report | None) -> tuple[Entry | None, dict[str, str]]:
    """The artifact in the baseline, and why the two cannot be compared, by what differs."""
    if baseline is None:
        return None, {"report": "no baseline report was given"}
    earlier = next((one for one in baseline.artifacts if one.label == entry.label), None)
    if earlier is None:
        return None, {"report": f"the baseline has no `{entry.label}`"}
    pairs = {
        "checkpoint": (report.checkpoint, baseline.checkpoint),
        "held-out set": (report.measured_on, baseline.measured_on),
        "calibration set": (entry.calibrated_on, earlier.calibrated_on),
    }
    return earlier, {
        name: f"{_named(now)} is not the baseline's {_named(then)}"
        for name, (now, then) in pairs.items()
        if now != then
    }


def _named(facts: object) -> str:
    if facts is None:
        return "none"
    return f"`{getattr(facts, 'name', '')}` ({getattr(facts, 'sha256', '')[:12]})"


def refuse_changed(report: Report, artifacts: Sequence[Artifact]) -> None:
    """Refuse artifacts that are not those that were measured.

    Raises:
        ArtifactError: one is not in the report, was written anew since, or has files that changed.
    """
    known = {entry.sha256 for entry in report.artifacts}
    for artifact in artifacts:
        if artifact.sha256 not in known:
            raise ArtifactError(f"the report is not about `{artifact.path}` as it is now", "measure it again")
        artifact.verify()
