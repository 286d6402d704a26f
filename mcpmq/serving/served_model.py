"""The artifact that is served: its name, and its measured quality from the report beside it."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpmq.artifact import MANIFEST, Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import McpmqError
from mcpmq.evaluate import Difference
from mcpmq.evaluate.schema import GroupResult
from mcpmq.families.family import Family
from mcpmq.report import Report
from mcpmq.report.report import ArtifactResult
from mcpmq.serving.artifacts import CONFIG
from mcpmq.serving.limits import Limits
from mcpmq.system.escaping import escape_controls

LIMIT_NAMES = ("images", "pixels", "videos", "audios", "audio_seconds", "body_nbytes", "tokens")  # for clients
NO_AUDIO_ENCODER, NO_VISION_ENCODER = "the model has no audio encoder", "the model has no vision encoder"


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """Facts about a running engine."""

    name: str  # with its version
    context: int  # tokens of a slot
    has_vision: bool
    notes: tuple[str, ...] = ()  # differences from the measured quality
    unsupported: tuple[str, ...] = ()  # fields of requests
    family: Family | None = None  # for llama.cpp, which does not add the tags around images; None for others
    kv_cache: str | None = None  # types of llama.cpp's KV cache
    no_audio: str = NO_AUDIO_ENCODER  # why audio is not accepted; "" if it is
    no_video: str = NO_VISION_ENCODER  # likewise for videos


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The served model, for `GET /v1/models`."""

    name: str
    created: int  # seconds since 1970: the time of its manifest or its config
    engine: EngineFacts
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the model as OpenAI's API describes models, with the facts as `meta`."""
        model = {"id": self.name, "object": "model", "created": self.created, "owned_by": "mcpmq"}
        return {**model, "meta": self.facts}


def describe(artifact: Artifact, engine: EngineFacts, limits: Limits) -> ServedModel:
    """Return the description of an artifact."""
    facts = {
        "sha256": artifact.sha256,
        "original": escape_controls(artifact.manifest.source.merged_name),
        "original_sha256": artifact.manifest.source.sha256,
        "recipe": _recipe(artifact),
        "format": artifact.manifest.kind,
        "nbytes": sum(artifact.nbytes_by_component().values()),
        "quality": _quality(artifact),
        **_engine_facts(engine, limits),
    }
    return ServedModel(model_name(artifact), int((artifact.path / MANIFEST).stat().st_mtime), engine, facts)


def describe_original(checkpoint: Checkpoint, engine: EngineFacts, limits: Limits) -> ServedModel:
    """Return the description of a checkpoint, which is not quantized."""
    name = escape_controls(checkpoint.merged_name)
    facts = {"original": name, "recipe": None, "format": "checkpoint", "nbytes": checkpoint.nbytes, "quality": None}
    created = int((checkpoint.path / CONFIG).stat().st_mtime)
    return ServedModel(name, created, engine, {**facts, **_engine_facts(engine, limits)})


def _engine_facts(engine: EngineFacts, limits: Limits) -> dict[str, Any]:
    return {
        "engine": engine.name,
        "context_tokens": engine.context,
        "kv_cache": engine.kv_cache,
        "vision": engine.has_vision,
        "video": not engine.no_video,
        "audio": not engine.no_audio,
        "notes": engine.notes,
        "limits": {name: getattr(limits, name) for name in LIMIT_NAMES},
    }


def model_name(artifact: Artifact) -> str:
    """Return the name in requests and answers: original, recipe and format."""
    manifest = artifact.manifest
    return escape_controls(f"{manifest.source.merged_name}-{_recipe(artifact)}-{manifest.kind}")


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
