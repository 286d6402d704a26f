"""What a model loses on held-out answers, what it weighs and what it takes: measured in its own engine."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from mcpmq.artifact import Artifact
from mcpmq.calibration import CalibrationSet, Sample
from mcpmq.checkpoint import HUB_PATTERNS, Checkpoint
from mcpmq.errors import ArtifactError
from mcpmq.families.family import Inputs
from mcpmq.machine import describe_machine
from mcpmq.progress import Progress, silent
from mcpmq.runners.process import ENGINES, Engine, Run, run
from mcpmq.runners.sample_files import SampleFiles

NONSQUARE = "nonsquare"  # tag of images that llama.cpp resizes in another way than the published code
LOSS_DIGITS = 6
LARGEST_EXPONENT = 700.0


class _Record(BaseModel):
    # What cannot be known, as the error of one sample, is "NaN" in JSON, which has no number for it.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class SampleLosses(_Record):
    """Natural-log loss of every answer token of one sample."""

    id: str
    kind: str  # "image", "text", or "nonsquare"
    losses: tuple[float, ...]


class Estimate(_Record):
    """A mean over tokens and its standard error, clustered by sample: the tokens of one answer are not independent."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, clusters: Sequence[Sequence[float]]) -> Self:
        """Of values that come in clusters, by linearisation of the ratio sum / count (Cochran 1977, section 6.3)."""
        sums, counts = np.array([sum(one) for one in clusters]), np.array([len(one) for one in clusters])
        mean = float(sums.sum() / counts.sum())
        spread = float(((sums - mean * counts) ** 2).sum())
        several = len(clusters) / (len(clusters) - 1) if len(clusters) > 1 else math.nan
        return cls(mean=mean, standard_error=math.sqrt(several * spread) / int(counts.sum()))

    def exponential(self) -> "Estimate":
        """Of exp(mean), by the delta method: a perplexity, or a ratio of perplexities."""
        value = math.exp(self.mean) if self.mean < LARGEST_EXPONENT else math.inf
        return Estimate(mean=value, standard_error=value * self.standard_error)


class KindResult(_Record):
    """All samples of one kind together."""

    samples: int
    tokens: int  # of the answers
    loss: Estimate
    perplexity: Estimate


class MachineFigures(_Record):
    """What another machine, or this one tomorrow, would measure differently."""

    load_seconds: float  # from starting the engine to being ready
    tokens_per_second: float  # prompts and answers, images included
    peak_resident_bytes: int
    resident_bytes_before_load: int  # the engine itself
    reused: bool = False  # measured earlier, on the same inputs, by the same versions


class Measurement(_Record):
    """One model on one set of samples."""

    engine: str
    kinds: dict[str, KindResult]
    nbytes_by_component: dict[str, int]
    machine_dependent: MachineFigures
    notes: tuple[str, ...]
    samples: tuple[SampleLosses, ...]

    @property
    def nbytes(self) -> int:
        return sum(self.nbytes_by_component.values())


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure; `cache` is the folder in which measurements of originals are kept, None for none."""

    threads: int
    cache: Path | None = None
    progress: Progress = silent
    shuffle_images: bool = False
    engine_cuts: bool = False  # llama.cpp cuts and resizes images itself, as applications have it do

    @classmethod
    def of(
        cls,
        threads: int | None,
        cache: bool,
        progress: Progress = silent,
        shuffle_images: bool = False,
        engine_cuts: bool = False,
    ) -> "Settings":
        """As the command line has them: all cores unless told, and the user's own cache folder."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(
            threads or os.cpu_count() or 1, home / "mcpmq" if cache else None, progress, shuffle_images, engine_cuts
        )


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """Samples as every engine gets them; `notes` says what was done to them."""

    files: SampleFiles
    kinds: tuple[str, ...]
    notes: tuple[str, ...] = ()


@contextmanager
def encoded(checkpoint: Checkpoint, samples: CalibrationSet, settings: Settings) -> Iterator[EncodedSet]:
    """The samples encoded once, by the original's own processor, in a temporary folder.

    Raises:
        CheckpointError: the tokenizer or the processor's settings are broken.
        CalibrationError: an image cannot be read, or a sample is too long.
    """
    processor = checkpoint.family.processor(checkpoint.path)
    with TemporaryDirectory(prefix="mcpmq-") as folder:
        files, kinds, slices = SampleFiles(Path(folder)), [], []
        for sample in settings.progress(samples.samples, "preparing images and questions"):
            inputs = processor.encode(sample.id, sample.image, sample.prompt, sample.answer)
            files.append(_whole(sample, inputs) if settings.engine_cuts else inputs)
            kinds.append(_kind(sample, inputs))
            slices.append(len(inputs.slices))
        notes = _shuffle(files, slices) if settings.shuffle_images else ()
        yield EncodedSet(files, tuple(kinds), notes)


def _whole(sample: Sample, inputs: Inputs) -> Inputs:
    """With the image as it was before it was cut."""
    if sample.image is None:
        return inputs
    with Image.open(sample.image) as image:
        return replace(inputs, image=np.asarray(image.convert("RGB")))


def _kind(sample: Sample, inputs: Inputs) -> str:
    return NONSQUARE if NONSQUARE in sample.tags and inputs.slices else inputs.kind


def _shuffle(files: SampleFiles, slices: Sequence[int]) -> tuple[str, ...]:
    files.move_pixels(shuffled(slices))
    alone = sum(1 for count in slices if count and slices.count(count) == 1)
    kept = f"; {alone} kept their own: no other image has as many slices" if alone else ""
    return (f"images shuffled among the questions{kept}",)


def shuffled(slices: Sequence[int]) -> list[int]:
    """For every sample the one whose image it gets: half a turn among the images with as many slices."""
    givers = list(range(len(slices)))
    for count in set(slices) - {0}:
        group = [number for number, value in enumerate(slices) if value == count]
        half = (len(group) + 1) // 2
        for taker, giver in zip(group, group[half:] + group[:half], strict=True):
            givers[taker] = giver
    return givers


def measure(model: Checkpoint | Artifact, inputs: EncodedSet, settings: Settings) -> Measurement:
    """Run a model over the inputs in its own engine, in a fresh process.

    A quantized artifact that is in no engine's format yet is measured in PyTorch on dequantized weights.

    Raises:
        EngineError: the engine failed.
        ArtifactError: files of the artifact are missing or changed.
    """
    if isinstance(model, Checkpoint):
        return _measure_original(model, inputs, settings)
    kind = model.manifest.kind
    if kind == "imatrix":
        raise ArtifactError(f"`{model.path}` holds an importance matrix, no model", "name what `mcpmq export` wrote")
    model.verify()
    engine: Engine = "torch" if kind == "quantized" else kind
    result = run(engine, model.path, inputs.files, settings.threads, settings.progress)
    return _measurement(engine_name(engine), result, model.nbytes_by_component(), inputs)


def engine_name(engine: Engine) -> str:
    """`ONNX Runtime 1.24.2`."""
    label, package = ENGINES[engine]
    return f"{label} {version(package)}"


def _measure_original(checkpoint: Checkpoint, inputs: EncodedSet, settings: Settings) -> Measurement:
    kept = settings.cache / f"{_cache_key(checkpoint, inputs, settings)}.json" if settings.cache else None
    if kept and (found := _cached(kept)):
        return found
    result = run("torch", checkpoint.path, inputs.files, settings.threads, settings.progress)
    made = _measurement(engine_name("torch"), result, _original_nbytes(checkpoint), inputs)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(made.model_dump_json())
        partial.replace(kept)
    return made


def _cache_key(checkpoint: Checkpoint, inputs: EncodedSet, settings: Settings) -> str:
    versions = [version(package) for package in ("mcpmq", "torch", "transformers")]
    asked = [checkpoint.sha256, inputs.files.sha256, inputs.kinds, inputs.notes, versions, settings.threads]
    return hashlib.sha256(json.dumps([*asked, describe_machine()]).encode()).hexdigest()


def _cached(file: Path) -> Measurement | None:
    try:
        kept = Measurement.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):  # not there, or of another version: then it is measured
        return None
    reused = kept.machine_dependent.model_copy(update={"reused": True})
    return kept.model_copy(update={"machine_dependent": reused})


def _original_nbytes(checkpoint: Checkpoint) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spec in checkpoint.specs:
        sizes[spec.component] = sizes.get(spec.component, 0) + checkpoint.entries[spec.name].nbytes
    texts = {file for pattern in HUB_PATTERNS[1:] for file in checkpoint.path.glob(pattern)}
    return sizes | {"model": sum(file.stat().st_size for file in texts if not file.name.endswith(".index.json"))}


def _measurement(engine: str, result: Run, nbytes: Mapping[str, int], inputs: EncodedSet) -> Measurement:
    samples = tuple(
        SampleLosses(id=sample.id, kind=kind, losses=tuple(round(loss, LOSS_DIGITS) for loss in losses))
        for sample, kind, losses in zip(inputs.files, inputs.kinds, result.losses, strict=True)
    )
    machine = MachineFigures(
        load_seconds=round(result.load_seconds, 3),
        tokens_per_second=round(result.tokens / result.seconds, 1),
        peak_resident_bytes=result.peak_resident_bytes,
        resident_bytes_before_load=result.resident_bytes_before_load,
    )
    return Measurement(
        engine=engine,
        kinds=by_kind(samples),
        nbytes_by_component=dict(nbytes),
        machine_dependent=machine,
        notes=(*inputs.notes, *result.notes),
        samples=samples,
    )


def by_kind(samples: Sequence[SampleLosses]) -> dict[str, KindResult]:
    """Loss and perplexity of every kind of sample that there is."""
    results = {}
    for kind in sorted({sample.kind for sample in samples}, key=("image", NONSQUARE, "text").index):
        clusters = [sample.losses for sample in samples if sample.kind == kind]
        loss, tokens = Estimate.of(clusters), sum(map(len, clusters))
        results[kind] = KindResult(samples=len(clusters), tokens=tokens, loss=loss, perplexity=loss.exponential())
    return results


def paired(original: Measurement, other: Measurement) -> dict[str, Estimate]:
    """By kind, how much more an answer token costs the other: the mean of differences on the same tokens.

    Raises:
        ArtifactError: they were measured on different samples.
    """
    if [(one.id, len(one.losses)) for one in original.samples] != [(one.id, len(one.losses)) for one in other.samples]:
        raise ArtifactError("the two measurements are of different samples", "measure both on the same set")
    differences: dict[str, list[list[float]]] = {}
    for before, after in zip(original.samples, other.samples, strict=True):
        more = [b - a for a, b in zip(before.losses, after.losses, strict=True)]
        differences.setdefault(before.kind, []).append(more)
    return {kind: Estimate.of(differences[kind]) for kind in original.kinds}
