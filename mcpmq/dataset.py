"""Sample sets of images, prompts and answers, for calibration and evaluation."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mcpmq.errors import DatasetError
from mcpmq.system.hub_cache import folder_name, is_inside
from mcpmq.system.json_file import unique_keys
from mcpmq.system.text_file import decode_text, split_lines

MANIFEST = "manifest.jsonl"
MAX_MANIFEST_NBYTES = 64 << 20
HOLDOUT_EVERY = 5
# The KL divergence grows fast with fewer tokens than the first number, and changes little with more than the second
# (benchmarks/README.md).
MIN_CALIBRATION_TOKENS, RECOMMENDED_CALIBRATION_TOKENS = 4_096, 16_384
FINGERPRINT_DIGITS = 16
MANIFEST_HINT = (
    'write one JSON object per line: {"id": "1", "image": "images/1.jpg", "prompt": "How many?", "answer": "Three."}'
)
PERMISSION_HINT = "check the path and its permissions"
KEYS_HINT = "use the keys {}; the image file is named in `image`"


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(min_length=1)
    image: str | None = Field(default=None, min_length=1)
    image_sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")
    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    tags: list[str] = []

    @field_validator("id")
    @classmethod
    def _check_id(cls, value: str) -> str:
        if any(unicodedata.category(character) == "Cc" for character in value):
            raise ValueError("it has a control character")
        return value

    @model_validator(mode="after")
    def _check_hash(self) -> Self:
        if self.image_sha256 and not self.image:
            raise ValueError("`image_sha256` without `image`")
        return self


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt, its answer, and its image, if any."""

    id: str
    image: Path | None
    prompt: str
    answer: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class SampleSet:
    """Samples in order; every line, image and hash is checked when the set is opened."""

    path: Path
    samples: tuple[Sample, ...]

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a folder with images and `manifest.jsonl`, one JSON object per line.

        Raises:
            DatasetError: the manifest is missing or empty, or a line or an image is invalid; the error has the line.
        """
        path = Path(path)
        manifest, lines = path / MANIFEST, _manifest_lines(path)
        samples = tuple(_sample(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
        if not samples:
            raise DatasetError(f"`{manifest}` has no samples", MANIFEST_HINT)
        _check_unique_ids(manifest, samples)
        return cls(path, samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def name(self) -> str:
        """Return the name of the folder, or of its repository in a cache of the hub."""
        return folder_name(self.path)

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of all samples and image bytes, in order."""
        digest = hashlib.sha256()
        for sample in self.samples:
            image = _digest(sample.image) if sample.image else ""
            digest.update(json.dumps([sample.id, image, sample.prompt, sample.answer]).encode())
        return digest.hexdigest()

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """Return the fingerprints of all images and text samples; disjoint sets share none."""
        return tuple(sorted({_fingerprint(sample) for sample in self.samples}))

    def check_disjoint(self, name: str, fingerprints: Iterable[str]) -> None:
        """Check that no sample is in the calibration set of that name and fingerprints.

        Raises:
            DatasetError: an image or a text sample is in both.
        """
        shared = set(self.fingerprints).intersection(fingerprints)
        if shared:
            raise DatasetError(
                f"`{self.path}` shares {len(shared):,} images or texts with the calibration set `{name}`",
                "use an evaluation set that does not overlap the calibration set",
            )

    def split_holdout(self) -> tuple[Self, Self]:
        """Return the set without every fifth sample, and every fifth sample as held-out set.

        Raises:
            DatasetError: the set has fewer than five samples.
        """
        if len(self) < HOLDOUT_EVERY:
            raise DatasetError(
                f"{len(self)} samples are too few to hold out a fifth", "name an evaluation set with `--eval-set`"
            )
        held_out = self.samples[HOLDOUT_EVERY - 1 :: HOLDOUT_EVERY]
        kept = tuple(sample for sample in self.samples if sample not in held_out)
        return type(self)(self.path, kept), type(self)(self.path, held_out)

    def few_tokens_warning(self, tokens: int) -> str:
        """Return a warning, or "" if the tokens of the set are enough for the correlations of inputs."""
        if tokens >= MIN_CALIBRATION_TOKENS:
            return ""
        return (
            f"calibration set `{self.name}`: {tokens:,} tokens, fewer than {MIN_CALIBRATION_TOKENS:,}: errors on other"
            f" inputs are larger; {RECOMMENDED_CALIBRATION_TOKENS:,} tokens are recommended"
        )

    def spread(self, count: int) -> Self:
        """Return a set of at most `count` samples, evenly spread."""
        return type(self)(self.path, self.samples[:: max(1, -(-len(self) // count))])


def _fingerprint(sample: Sample) -> str:
    text = json.dumps([sample.prompt, sample.answer]).encode()
    digest = _digest(sample.image) if sample.image else hashlib.sha256(text).hexdigest()
    return digest[:FINGERPRINT_DIGITS]


def _digest(image: Path) -> str:
    try:
        with image.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(
            f"the image `{image}` cannot be read: {error}", "check the file and its permissions"
        ) from error


def _manifest_lines(folder: Path) -> list[str]:
    manifest = folder / MANIFEST
    try:
        if not manifest.is_file():
            raise DatasetError(f"no `{MANIFEST}` in `{folder}`", MANIFEST_HINT)
        if not is_inside(manifest, folder):
            raise DatasetError(f"`{manifest}` is a link out of the folder", "copy the file into the folder")
        if (nbytes := manifest.stat().st_size) > MAX_MANIFEST_NBYTES:
            raise DatasetError(f"`{manifest}` has {nbytes:,} bytes, more than {MAX_MANIFEST_NBYTES:,}", MANIFEST_HINT)
        return split_lines(decode_text(content := manifest.read_bytes()))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"`{manifest}` line {line} is not UTF-8 text: {error.reason}", "save it as UTF-8") from error
    except (OSError, ValueError, RuntimeError) as error:  # of the path
        raise DatasetError(f"`{folder}` cannot be read: {error}", PERMISSION_HINT) from error


def _sample(folder: Path, number: int, line: str) -> Sample:
    where = f"`{folder / MANIFEST}` line {number}"
    try:
        checked = _Line.model_validate(json.loads(line, object_pairs_hook=unique_keys))
    except ValidationError as error:
        raise _line_error(where, error) from error
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DatasetError(f"{where} is not a JSON object: {reason}", MANIFEST_HINT) from error
    image = _checked_image(folder, checked, where) if checked.image is not None else None
    return Sample(checked.id, image, checked.prompt, checked.answer, tuple(checked.tags))


def _line_error(where: str, error: ValidationError) -> DatasetError:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = ", ".join(f"`{name}`" for name in _Line.model_fields)
        return DatasetError(f"{where}: unknown key `{key}`", KEYS_HINT.format(known))
    return DatasetError(f"{where}: {key + ': ' if key else ''}{first['msg']}", MANIFEST_HINT)


def _checked_image(folder: Path, line: _Line, where: str) -> Path:
    from mcpmq.system.image_file import read_image

    path = folder / str(line.image)
    try:
        if not is_inside(path, folder):
            raise DatasetError(f"{where}: the image `{line.image}` is outside of the folder", "copy it into the folder")
        if not path.is_file():
            kind = "is not a regular file" if path.exists() else "is missing"
            raise DatasetError(
                f"{where}: the image `{line.image}` {kind}", "paths are relative to the folder of the set"
            )
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long or has a null, a loop of links
        raise DatasetError(f"{where}: `image` is not a valid path: {error}", "name a file in the folder") from error
    if line.image_sha256 and _digest(path) != line.image_sha256.lower():
        raise DatasetError(
            f"{where}: the image `{line.image}` differs from its SHA-256",
            "restore the image, or compute `image_sha256` again with `sha256sum`",
        )
    read_image(path, where)
    return path


def _check_unique_ids(manifest: Path, samples: tuple[Sample, ...]) -> None:
    ids: set[str] = set()
    for sample in samples:
        if sample.id in ids:
            raise DatasetError(f"`{manifest}` has the id `{sample.id}` twice", "give every sample a unique id")
        ids.add(sample.id)
