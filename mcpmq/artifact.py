"""Artifacts: directories that mcpmq wrote, with a manifest of origin, decisions and file hashes."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mcpmq.checkpoint import Checkpoint
from mcpmq.checkpoint.adapter import merged_name
from mcpmq.checkpoint.expert_record import ExpertRecord
from mcpmq.checkpoint.image_limits import ImageLimits
from mcpmq.checkpoint.kept_vocabulary import KeptVocabulary
from mcpmq.compression_tables import LayersTable
from mcpmq.dataset import SampleSet
from mcpmq.errors import ArtifactError
from mcpmq.families import family_named
from mcpmq.system.durable_file import write_durably
from mcpmq.system.file_hash import file_sha256
from mcpmq.system.input_file import check_file, check_files
from mcpmq.system.inside import is_file_inside
from mcpmq.system.json_file import check_integers
from mcpmq.system.output import output_errors
from mcpmq.system.safetensors_file import PACKED_DTYPES

MANIFEST, MODEL_CARD = "mcpmq.json", "README.md"
RELEASE_RECORD = "release.json"  # in the folder of a release
RESULTS_HEADING = "## Evaluation"  # the last heading of a model card; evaluations replace the text below it
NOT_EVALUATED = "Not evaluated yet: `mcpmq evaluate` writes the results here."
FormatName = Literal["gguf", "onnx", "gptq", "awq", "bnb", "compressed-tensors", "mlx"]
Kind = Literal["quantized", "imatrix"] | FormatName
READ_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.safetensors", "*/*.safetensors")  # read also if they are not listed
REBUILD = "delete the artifact and build it again"
OMIT_IF_EMPTY = Field(exclude_if=lambda value: not value)
OMIT_IF_NONE = Field(exclude_if=lambda value: value is None)  # keeps manifests without calibration short

Nbytes = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """One file of an artifact; `component` is `model` for a file of the whole model.

    Size and hash of the model card are those without results; evaluations write results into it.
    """

    path: str
    component: str
    nbytes: Nbytes
    sha256: str


def _check_dtype(dtype: str) -> str:
    if dtype not in dict(PACKED_DTYPES.values()):
        raise ValueError(f"`{dtype}` is not a dtype of a weight")
    return dtype


class WeightRecord(_Record):
    """The decision about one weight, and its reason."""

    name: str
    hub_name: str
    shape: tuple[int, ...]
    dtype: Annotated[str, AfterValidator(_check_dtype)]
    scheme: str | None
    reason: str
    nbytes: Nbytes
    calibration_tokens: Annotated[dict[str, int] | None, OMIT_IF_NONE] = None  # by modality
    method: Annotated[str | None, OMIT_IF_NONE] = None  # of a calibrated weight
    # Shrinkage of the Hessian towards its diagonal; one for every equal share of the rows with an input of its own.
    shrinkage: Annotated[tuple[float | None, ...] | None, OMIT_IF_NONE] = None
    smoothing_exponent: Annotated[float | None, OMIT_IF_NONE] = None  # alpha of the scales on its columns, 1 if fitted
    # Powers of two that rows and columns were multiplied by, which cancel in neighboring layers: channels by exponent.
    row_exponents: Annotated[dict[int, int] | None, OMIT_IF_NONE] = None
    column_exponents: Annotated[dict[int, int] | None, OMIT_IF_NONE] = None
    deviation: Annotated[str | None, OMIT_IF_NONE] = None  # from the plan or from exact scales, and its reason
    activation: Annotated[str | None, OMIT_IF_NONE] = None  # quantization of its inputs, `u8`
    # Minimum and maximum calibration input; one pair for every equal share of the rows with an input of its own.
    input_ranges: Annotated[tuple[tuple[float, float], ...] | None, OMIT_IF_NONE] = None
    padded_shape: Annotated[tuple[int, ...] | None, OMIT_IF_NONE] = None  # [out, in] in the file


RESULT_FIELDS = (  # of a weight's record, known after quantization
    "calibration_tokens",
    "method",
    "shrinkage",
    "smoothing_exponent",
    "row_exponents",
    "column_exponents",
    "deviation",
    "input_ranges",
)


class CalibrationRecord(_Record):
    """The calibration set of an artifact."""

    name: str
    sha256: str
    samples: int
    with_image: int  # or a video
    with_audio: Annotated[int | None, OMIT_IF_NONE] = None  # None for a set without audio
    fingerprints: tuple[str, ...]  # of images, videos and text samples, to detect overlap

    @classmethod
    def from_samples(cls, samples: SampleSet) -> Self:
        """Return the record of a sample set."""
        return cls(
            name=samples.name,
            sha256=samples.sha256,
            samples=len(samples),
            with_image=sum(sample.has_vision for sample in samples),
            with_audio=sum(bool(sample.audio) for sample in samples) or None,
            fingerprints=samples.fingerprints,
        )


class AdapterRecord(_Record):
    """A LoRA adapter that is merged into the original."""

    name: str
    sha256: str  # of its configuration and weights


class SourceRecord(_Record):
    """The original of an artifact: a checkpoint, with its adapters."""

    name: str
    sha256: str  # of the checkpoint and the adapters
    nbytes: Nbytes
    revision: Annotated[str | None, OMIT_IF_NONE] = None  # commit of a checkpoint of the hub
    adapters: Annotated[tuple[AdapterRecord, ...], OMIT_IF_EMPTY] = ()  # in the order of merging

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Return the record of a checkpoint."""
        return cls(
            name=checkpoint.name,
            sha256=checkpoint.sha256,
            nbytes=checkpoint.source.nbytes,
            revision=checkpoint.revision,
            adapters=tuple(AdapterRecord(name=one.name, sha256=one.sha256) for one in checkpoint.adapters),
        )

    @property
    def merged_name(self) -> str:
        """Return the name of the checkpoint with those of its adapters: `base+adapter`."""
        return merged_name(self.name, [adapter.name for adapter in self.adapters])


class Manifest(_Record):
    """Origin, recipe, decisions, versions and files of an artifact; no time and no path: equal inputs, equal bytes."""

    schema_version: Literal[1] = 1
    kind: Kind
    family: str
    source: SourceRecord
    recipe: dict[str, Any]
    vocabulary: Annotated[KeptVocabulary | None, OMIT_IF_NONE] = None  # None: all tokens of the original
    layers: Annotated[LayersTable | None, OMIT_IF_NONE] = None  # None: all layers of the original
    images: Annotated[ImageLimits | None, OMIT_IF_NONE] = None  # None: those of the original
    calibration_set: Annotated[CalibrationRecord | None, OMIT_IF_NONE] = None  # None: not calibrated
    device: Annotated[str | None, OMIT_IF_NONE] = None  # of calibration; None: CPU
    instruction_set: Annotated[str | None, OMIT_IF_NONE] = None  # of calibration; another one gives other codes
    quantized_sha256: Annotated[str | None, OMIT_IF_NONE] = None  # of the quantized model that was exported
    versions: dict[str, str]
    weights: tuple[WeightRecord, ...]
    experts: Annotated[ExpertRecord | None, OMIT_IF_NONE] = None  # None: no experts, or not calibrated
    # By block and method: relative squared error of the outputs on held-out samples.
    held_out_errors: Annotated[dict[str, dict[str, float]] | None, OMIT_IF_NONE] = None
    # Bytes of a full context in llama.cpp's KV cache, by type and tokens.
    kv_cache_nbytes: Annotated[dict[str, dict[int, Nbytes]] | None, OMIT_IF_NONE] = None
    notes: tuple[str, ...] = ()
    files: tuple[FileRecord, ...] = ()

    @property
    def compression(self) -> str | None:
        """The part of the original that the artifact lacks, or encodes otherwise; None if it has all."""
        parts = [str(one) for one in (self.vocabulary, self.layers, self.images) if one]
        return "; ".join(parts) or None

    def deviations(self) -> dict[str, str]:
        """Return the deviations from the plan or from exact scales, and their reasons, by weight."""
        return {record.name: record.deviation for record in self.weights if record.deviation}


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact opened for reading."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read the manifest.

        Raises:
            ArtifactError: the manifest is missing or invalid, or a file is a link out of the folder.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise ArtifactError(f"no `{MANIFEST}` in `{path}`", "point at a folder that mcpmq wrote")
        check_files(path, READ_PATTERNS, ArtifactError)
        content = (path / MANIFEST).read_bytes()
        check_integers(path / MANIFEST, content, ArtifactError, REBUILD)
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ArtifactError(f"`{path / MANIFEST}`: {where}: {first['msg']}", REBUILD) from error
        for record in manifest.files:
            if os.path.lexists(path / record.path):
                check_file(path / record.path, path, ArtifactError)
        return cls(path, manifest)

    def verify(self) -> None:
        """Check the SHA-256 of every file.

        Raises:
            ArtifactError: a file is missing or changed.
        """
        for record in self.manifest.files:
            file = self.path / record.path
            if not is_file_inside(self.path, record.path):
                raise ArtifactError(f"`{record.path}` is missing from `{self.path}`", REBUILD)
            if _size_and_hash(self.path, record.path)["sha256"] != record.sha256:
                raise ArtifactError(f"`{file}` differs from its SHA-256 in the manifest", REBUILD)

    @property
    def has_vision(self) -> bool:
        """Return whether the family of the artifact has a vision encoder."""
        return family_named(self.manifest.family).has_vision

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the manifest."""
        return hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()

    def nbytes_by_component(self) -> dict[str, int]:
        """Return the bytes on disk of every component, in the order of the manifest."""
        sizes: dict[str, int] = {}
        for record in self.manifest.files:
            sizes[record.component] = sizes.get(record.component, 0) + record.nbytes
        return sizes

    def component_files(self, component: str) -> list[Path]:
        """Return the paths of the files of one component."""
        return [self.path / record.path for record in self.manifest.files if record.component == component]


def _size_and_hash(folder: Path, name: str) -> dict[str, int | str]:
    if name == MODEL_CARD:
        card = replace_results((folder / name).read_bytes(), NOT_EVALUATED)
        return {"nbytes": len(card), "sha256": hashlib.sha256(card).hexdigest()}
    return {"nbytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}


def replace_results(card: bytes, results: str) -> bytes:
    """Replace the text under the heading of results of a model card, its last heading."""
    heading = f"\n{RESULTS_HEADING}\n".encode()
    return b"%b%b\n%b\n" % (card.partition(heading)[0], heading, results.rstrip().encode())


def has_manifest(folder: Path) -> bool:
    """Return whether a folder is a complete artifact.

    Raises:
        OutputError: the folder cannot be read.
    """
    with output_errors(folder):
        return (folder / MANIFEST).is_file()


def write_manifest(folder: Path, manifest: Manifest, files: Mapping[str, list[str]]) -> Manifest:
    """Write a manifest with the hashes of files, given by component as paths relative to `folder`, and return it."""
    whole = manifest.model_copy(update={"files": file_records(folder, files)})
    write_durably(folder / MANIFEST, whole.model_dump_json(indent=1) + "\n")
    return whole


def file_records(folder: Path, files: Mapping[str, list[str]]) -> tuple[FileRecord, ...]:
    """Return the records of files, given by component as paths relative to `folder`."""
    return tuple(
        FileRecord.model_validate({"path": name, "component": component, **_size_and_hash(folder, name)})
        for component, names in files.items()
        for name in names
    )
