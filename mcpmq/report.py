"""The original beside its artifacts, with their differences; report.json is the truth, all else is drawn from it."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from mcpmq.artifact import Artifact
from mcpmq.calibration import CalibrationSet
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError, OutputError
from mcpmq.evaluate import NONSQUARE, Estimate, Measurement, Settings, encoded, measure, paired
from mcpmq.machine import describe_machine, installed_versions
from mcpmq.table import Row, Table, megabytes

JSON_FILE, MARKDOWN_FILE = "report.json", "report.md"
PACKAGES = ("mcpmq", "torch", "transformers", "tokenizers", "numpy", "pillow", "xllamacpp", "onnxruntime")
WEIGHTS = {"vision, connector": ("vision", "projector"), "language model": ("language", "embedding", "head")}


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class SourceFacts(_Record):
    """The checkpoint that everything is compared with."""

    name: str
    sha256: str


class SetFacts(_Record):
    """The samples that everything was measured on."""

    name: str
    sha256: str
    samples: int
    held_out_from_calibration: bool  # no other set was named, so a part of the calibration set was held out
    images_shuffled: bool
    cut_by_engine: bool  # llama.cpp cut and resized the images itself


class Environment(_Record):
    """Where and with what it was measured."""

    machine: dict[str, str | int]
    python: str
    versions: dict[str, str]
    threads: int


class Difference(_Record):
    """One kind of sample, artifact against original, token by token."""

    loss_increase: Estimate
    perplexity_ratio: Estimate


class Entry(_Record):
    """One artifact, measured."""

    name: str
    kind: str
    recipe: str
    measurement: Measurement
    differences: dict[str, Difference]


class Report(_Record):
    """What `compare` found out."""

    schema_version: Literal[1] = 1
    checkpoint: SourceFacts
    measured_on: SetFacts
    original: Measurement
    artifacts: tuple[Entry, ...]
    environment: Environment

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read report.json, or the one in a folder.

        Raises:
            ArtifactError: there is none, it is of another version of mcpmq, or it is broken.
        """
        file = path / JSON_FILE if path.is_dir() else path
        if not file.is_file():
            raise ArtifactError(f"no `{JSON_FILE}` at `{path}`", "`mcpmq evaluate` writes one")
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            message = f"`{file}` is no report that this mcpmq reads: {where + ': ' if where else ''}{first['msg']}"
            raise ArtifactError(message, "measure again with `mcpmq evaluate`") from error

    @classmethod
    def merged(cls, reports: Sequence["Report"]) -> "Report":
        """The artifacts of all of them beside one original.

        Raises:
            ArtifactError: they are about different checkpoints or different samples.
        """
        first = reports[0]
        for other in reports[1:]:
            if (other.checkpoint, other.measured_on) != (first.checkpoint, first.measured_on):
                raise ArtifactError(
                    f"one report is about `{first.checkpoint.name}` on `{first.measured_on.name}`, another about"
                    f" `{other.checkpoint.name}` on `{other.measured_on.name}`",
                    "only reports of one checkpoint on one set can stand in one table",
                )
        return first.model_copy(update={"artifacts": tuple(entry for one in reports for entry in one.artifacts)})

    def write(self, folder: Path) -> None:
        """Write report.json and, drawn from it, report.md.

        Raises:
            OutputError: the folder cannot be written to.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in (
                (JSON_FILE, self.model_dump_json(indent=1) + "\n"),
                (MARKDOWN_FILE, table_of(self).markdown()),
            ):
                partial = folder / f".{name}.partial"
                partial.write_text(text, encoding="utf-8")
                partial.replace(folder / name)
        except OSError as error:
            raise OutputError(
                f"the report cannot be written into `{folder}`: {error}", "name another folder"
            ) from error


def compare(
    checkpoint: Checkpoint,
    artifacts: Sequence[Artifact],
    samples: CalibrationSet,
    settings: Settings,
    *,
    held_out_from_calibration: bool = False,
) -> Report:
    """Measure the original and every artifact on the same tokens and pixels, each in its own engine and process.

    Raises:
        ArtifactError: an artifact was made from another checkpoint, or its files changed.
        EngineError: an engine failed.
    """
    for artifact in artifacts:
        _refuse_other_source(checkpoint, artifact)
    with encoded(checkpoint, samples, settings) as inputs:
        original = measure(checkpoint, inputs, settings)
        entries = tuple(_entry(artifact, original, measure(artifact, inputs, settings)) for artifact in artifacts)
    return Report(
        checkpoint=SourceFacts(name=checkpoint.path.resolve().name, sha256=checkpoint.sha256),
        measured_on=SetFacts(
            name=samples.path.resolve().name,
            sha256=samples.sha256,
            samples=len(samples),
            held_out_from_calibration=held_out_from_calibration,
            images_shuffled=settings.shuffle_images,
            cut_by_engine=settings.engine_cuts,
        ),
        original=original,
        artifacts=entries,
        environment=_environment(settings),
    )


def _refuse_other_source(checkpoint: Checkpoint, artifact: Artifact) -> None:
    source = artifact.manifest.source
    if source.sha256 != checkpoint.sha256:
        raise ArtifactError(
            f"`{artifact.path}` was made from `{source.name}` ({source.sha256[:12]}), which is not"
            f" `{checkpoint.path}` ({checkpoint.sha256[:12]})",
            "measure it against the checkpoint that it was made from",
        )


def _entry(artifact: Artifact, original: Measurement, measurement: Measurement) -> Entry:
    return Entry(
        name=artifact.path.resolve().name,
        kind=artifact.manifest.kind,
        recipe=str(artifact.manifest.recipe["name"]),
        measurement=measurement,
        differences={
            kind: Difference(loss_increase=increase, perplexity_ratio=increase.exponential())
            for kind, increase in paired(original, measurement).items()
        },
    )


def _environment(settings: Settings) -> Environment:
    return Environment(
        machine=describe_machine(),
        python=platform.python_version(),
        versions=installed_versions(PACKAGES),
        threads=settings.threads,
    )


def table_of(report: Report) -> Table:
    """Bytes on disk, memory, perplexities and their differences, speed: a column for the original and each artifact."""
    entries = [(entry.measurement, entry.differences) for entry in report.artifacts]
    columns = [(report.original, {}), *entries]
    names = ["original", *(f"{entry.kind} {entry.recipe}" for entry in report.artifacts)]
    kinds = [row for kind in report.original.kinds for row in _kind_rows(kind, columns)]
    rows = [*_size_rows(report), *_memory_rows(report), *kinds, *_speed_rows(report)]
    return Table(_title(report), names, rows, _notes(report, names))


def _title(report: Report) -> str:
    on = report.measured_on
    whose = "samples held out from" if on.held_out_from_calibration else "samples of"
    control = ", images shuffled" * on.images_shuffled + ", images cut by llama.cpp itself" * on.cut_by_engine
    return f"{report.checkpoint.name} on {on.samples} {whose} {on.name}{control}"


def _all(report: Report) -> list[Measurement]:
    return [report.original, *(entry.measurement for entry in report.artifacts)]


def _size_rows(report: Report) -> list[Row]:
    sizes = [_grouped(one.nbytes_by_component) for one in _all(report)]
    rows = [(f"{name}, MB", [_megabytes(size[name]) for size in sizes]) for name in sizes[0]]
    totals = [one.nbytes for one in _all(report)]
    shares = [f"{total / totals[0] * 100:.1f}" for total in totals]
    return [*rows, ("all files, MB", [_megabytes(total) for total in totals]), ("  % of the original", shares)]


def _grouped(sizes: dict[str, int]) -> dict[str, int]:
    # A format may put components together, `vision+projector`: then the first says where they belong.
    groups = dict.fromkeys((*WEIGHTS, "other files"), 0)
    for component, nbytes in sizes.items():
        first = component.partition("+")[0]
        group = next((name for name, members in WEIGHTS.items() if first in members), "other files")
        groups[group] += nbytes
    return groups


def _memory_rows(report: Report) -> list[Row]:
    machine = [one.machine_dependent for one in _all(report)]
    return [
        ("peak memory, MB", [_megabytes(one.peak_resident_bytes) for one in machine]),
        ("  before loading, MB", [_megabytes(one.resident_bytes_before_load) for one in machine]),
    ]


def _kind_rows(kind: str, columns: Sequence[tuple[Measurement, dict[str, Difference]]]) -> list[Row]:
    perplexities = [measurement.kinds[kind].perplexity for measurement, _ in columns]
    ratios = [differences[kind].perplexity_ratio if differences else None for _, differences in columns]
    return [
        (f"{kind} perplexity", [_as_precise(one.mean, one.mean) for one in perplexities]),
        ("  ± standard error", [_as_precise(one.standard_error, one.mean) for one in perplexities]),
        ("  difference, %", [f"{(one.mean - 1) * 100:+.2f}" if one else "" for one in ratios]),
        ("  ± standard error, %", [f"{one.standard_error * 100:.2f}" if one else "" for one in ratios]),
    ]


def _speed_rows(report: Report) -> list[Row]:
    machine = [one.machine_dependent for one in _all(report)]
    return [
        ("time to load *, s", [f"{one.load_seconds:.2f}" for one in machine]),
        ("speed *, tokens/s", [f"{one.tokens_per_second:,.0f}" for one in machine]),
    ]


def _notes(report: Report, columns: Sequence[str]) -> list[str]:
    where = report.environment
    told = [
        "perplexity: of the answers' tokens; differences are paired by token, errors clustered by sample",
        f"*: depends on the machine, here {where.machine['processor']}, threads: {where.threads}",
    ]
    if NONSQUARE in report.original.kinds:
        told.append(f"{NONSQUARE}: images that llama.cpp by itself would cut or resize in another way than published")
    if report.original.machine_dependent.reused:
        told.append("original: measured earlier by the same versions on the same inputs, and reused")
    measured = zip(columns, _all(report), strict=True)
    return told + [f"{name}: {'; '.join([one.engine, *one.notes])}" for name, one in measured]


def _megabytes(nbytes: int) -> str:
    return megabytes(nbytes).removesuffix(" MB")


def _as_precise(value: float, measure: float) -> str:
    return f"{value:,.{0 if measure >= 10_000 else 1 if measure >= 100 else 3}f}"
