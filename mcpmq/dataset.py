"""Sample sets of images, prompts and answers, for calibration and evaluation."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mcpmq.errors import DatasetError

MANIFEST = "manifest.jsonl"
MAX_IMAGE_PIXELS = 64_000_000  # of one image, checked in its header against decompression bombs
HOLDOUT_EVERY = 5
FINGERPRINT_DIGITS = 16


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    id: str = Field(min_length=1)
    image: str | None = None
    image_sha256: str | None = None
    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    tags: list[str] = []


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
        manifest = path / MANIFEST
        if not manifest.is_file():
            raise DatasetError(f"no `{MANIFEST}` in `{path}`", "see `calibration/README.md` for the format of a set")
        lines = manifest.read_bytes().splitlines()
        samples = tuple(_sample(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
        if not samples:
            raise DatasetError(f"`{manifest}` has no samples", "write one JSON object per line")
        _check_unique_ids(manifest, samples)
        return cls(path, samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of all samples and image bytes, in order."""
        digest = hashlib.sha256()
        for sample in self.samples:
            image = hashlib.sha256(sample.image.read_bytes()).hexdigest() if sample.image else ""
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
                f"{len(self)} samples are too few to hold out a fifth", "name a evaluation set with `--eval-set`"
            )
        held_out = self.samples[HOLDOUT_EVERY - 1 :: HOLDOUT_EVERY]
        kept = tuple(sample for sample in self.samples if sample not in held_out)
        return type(self)(self.path, kept), type(self)(self.path, held_out)


def _fingerprint(sample: Sample) -> str:
    content = sample.image.read_bytes() if sample.image else json.dumps([sample.prompt, sample.answer]).encode()
    return hashlib.sha256(content).hexdigest()[:FINGERPRINT_DIGITS]


def _sample(folder: Path, number: int, line: bytes) -> Sample:
    where = f"`{folder / MANIFEST}` line {number}"
    try:
        checked = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise DatasetError(f"{where}: {field + ': ' if field else ''}{first['msg']}") from error
    image = _checked_image(folder, checked, where) if checked.image is not None else None
    return Sample(checked.id, image, checked.prompt, checked.answer, tuple(checked.tags))


def _checked_image(folder: Path, line: _Line, where: str) -> Path:
    path = folder / str(line.image)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DatasetError(f"{where}: the image `{line.image}` is outside of the folder", "copy it into the folder")
    if not path.is_file():
        raise DatasetError(f"{where}: the image `{line.image}` is missing")
    if line.image_sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != line.image_sha256:
        raise DatasetError(f"{where}: the image `{line.image}` differs from its SHA-256")
    _check_pixels(path, where)
    return path


def _check_pixels(path: Path, where: str) -> None:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_IMAGE_PIXELS is the lower limit
            with Image.open(path) as image:
                _check_size(image.width * image.height, path, where)
                image.load()
    except Image.DecompressionBombError as error:
        raise DatasetError(f"{where}: the image `{path.name}` is too large: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{where}: the image `{path.name}` cannot be read: {error}") from error


def _check_size(pixels: int, path: Path, where: str) -> None:
    if pixels > MAX_IMAGE_PIXELS:
        raise DatasetError(
            f"{where}: the image `{path.name}` has {pixels:,} pixels, more than {MAX_IMAGE_PIXELS:,}",
            "shrink the image",
        )


def _check_unique_ids(manifest: Path, samples: tuple[Sample, ...]) -> None:
    ids: set[str] = set()
    for sample in samples:
        if sample.id in ids:
            raise DatasetError(f"`{manifest}` has the id `{sample.id}` twice", "give every sample a unique id")
        ids.add(sample.id)
