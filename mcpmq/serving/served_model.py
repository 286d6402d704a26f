"""The artifact that is served: its name, and its measured quality from the report beside it."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpmq.artifact import MANIFEST, Artifact
from mcpmq.errors import McpmqError
from mcpmq.evaluate import Difference
from mcpmq.evaluate.schema import GroupResult
from mcpmq.report import Report
from mcpmq.report.report import ArtifactResult
from mcpmq.serving.limits import Limits
from mcpmq.system.escaping import escape_controls


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Facts about the served artifact, for `GET /v1/models`."""

    name: str
    created: int  # seconds since 1970: the time of its manifest
    has_vision: bool
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the model as OpenAI's API describes models, with the facts as `meta`."""
        model = {"id": self.name, "object": "model", "created": self.created, "owned_by": "mcpmq"}
        return {**model, "meta": self.facts}


def describe(
    artifact: Artifact, engine: str, *, has_vision: bool, context: int, notes: tuple[str, ...], limits: Limits
) -> ServedModel:
    """Return the facts about an artifact; `context` is in tokens, `notes` are differences from the measured quality."""
    manifest = artifact.manifest
    facts = {
        "original": escape_controls(manifest.source.name),
        "recipe": _recipe(artifact),
        "format": manifest.kind,
        "engine": engine,
        "nbytes": sum(artifact.nbytes_by_component().values()),
        "context_tokens": context,
        "vision": has_vision,
        "quality": _quality(artifact),
        "notes": notes,
        "limits": {"images": limits.images, "pixels": limits.pixels, "body_nbytes": limits.body_nbytes},
    }
    return ServedModel(model_name(artifact), int((artifact.path / MANIFEST).stat().st_mtime), has_vision, facts)


def model_name(artifact: Artifact) -> str:
    """Return the name in requests and answers: original, recipe and format."""
    manifest = artifact.manifest
    return escape_controls(f"{manifest.source.name}-{_recipe(artifact)}-{manifest.kind}")


def _recipe(artifact: Artifact) -> str:
    return escape_controls(str(artifact.manifest.recipe.get("name", "")))


def _quality(artifact: Artifact) -> dict[str, Any] | None:
    """Return the accuracy of the artifact in the report of its folder or of its parent; None if it has none."""
    for folder in (artifact.path, artifact.path.absolute().parent):
        with suppress(McpmqError):
            report = Report.load(folder)
            if (result := next(_results_of(artifact, report, folder), None)) is not None:
                return _accuracy(report, result)
    return None


def _results_of(artifact: Artifact, report: Report, folder: Path) -> Iterator[ArtifactResult]:
    known = {artifact.sha256, *_measured_hashes(artifact, folder)}
    return (result for result in report.artifacts if result.sha256 in known)


def _measured_hashes(artifact: Artifact, folder: Path) -> Iterator[str]:
    """Yield the hash that a release records: packaging may have split the files of the artifact."""
    from mcpmq.release.record import Release

    with suppress(McpmqError):
        for packaged in Release.open(folder).record.artifacts:
            if (folder / packaged.folder).resolve() == artifact.path.resolve():
                yield packaged.measured_sha256


def _accuracy(report: Report, result: ArtifactResult) -> dict[str, Any]:
    groups = [
        {"group": group, **_group_accuracy(report.original.groups[group], found, result.differences[group])}
        for group, found in result.measurement.groups.items()
    ]
    return {"eval_set": escape_controls(report.eval_set.name), "samples": report.eval_set.samples, "groups": groups}


def _group_accuracy(original: GroupResult, found: GroupResult, difference: Difference) -> dict[str, float]:
    return {
        "original_perplexity": original.perplexity.value,
        "perplexity": found.perplexity.value,
        "mean_kl_divergence": difference.kl_divergence.value,
        "top_1_agreement": difference.top_1_agreement.value,
        "exact_match": found.exact_match.value,
    }
