"""The images and questions a model is calibrated on, and those it is measured on: the same kind of set."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mcpmq.errors import CalibrationError

MANIFEST = "manifest.jsonl"
LARGEST_IMAGE_PIXELS = 64_000_000  # of one image; a bomb is refused from its header
HELD_OUT_EVERY = 5
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
    """One question, its answer, and the image it is about, if any."""

    id: str
    image: Path | None
    prompt: str
    answer: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class CalibrationSet:
    """Samples in their order, every one checked: its line, its image, its hash."""

    path: Path
    samples: tuple[Sample, ...]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a folder that holds `manifest.jsonl`, one JSON object a line, and its images.

        Raises:
            CalibrationError: there is none, it is empty, or a line or an image is broken; names the line.
        """
        manifest = path / MANIFEST
        if not manifest.is_file():
            raise CalibrationError(f"no `{MANIFEST}` in `{path}`", "see `calibration/README.md` for how to make a set")
        lines = manifest.read_bytes().splitlines()
        samples = tuple(_sample(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
        if not samples:
            raise CalibrationError(f"`{manifest}` holds no sample", "write one JSON object a line")
        _refuse_repeated_ids(manifest, samples)
        return cls(path, samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def sha256(self) -> str:
        """Hash of every sample and of the bytes of every image, in order."""
        digest = hashlib.sha256()
        for sample in self.samples:
            image = hashlib.sha256(sample.image.read_bytes()).hexdigest() if sample.image else ""
            digest.update(json.dumps([sample.id, image, sample.prompt, sample.answer]).encode())
        return digest.hexdigest()

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """Of every picture, and of every text sample: what two sets must not share if one is to judge the other."""
        return tuple(sorted({_fingerprint(sample) for sample in self.samples}))

    def refuse_seen(self, name: str, fingerprints: Iterable[str]) -> None:
        """Refuse to measure on what was calibrated on: samples of the set of that name, by their fingerprints.

        Raises:
            CalibrationError: a picture or a text sample is in both.
        """
        shared = set(self.fingerprints).intersection(fingerprints)
        if shared:
            raise CalibrationError(
                f"`{self.path}` shares {len(shared):,} pictures or texts with the calibration set `{name}`",
                "measure on samples that decided nothing",
            )

    def split(self) -> tuple[Self, Self]:
        """The set without every fifth sample, and every fifth sample: for measuring when no other set is given.

        Raises:
            CalibrationError: there are too few samples to hold any out.
        """
        if len(self) < HELD_OUT_EVERY:
            raise CalibrationError(
                f"{len(self)} samples are too few to hold out a fifth", "name a held-out set with `--on`"
            )
        held_out = self.samples[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
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
        raise CalibrationError(f"{where}: {field + ': ' if field else ''}{first['msg']}") from error
    image = _checked_image(folder, checked, where) if checked.image is not None else None
    return Sample(checked.id, image, checked.prompt, checked.answer, tuple(checked.tags))


def _checked_image(folder: Path, line: _Line, where: str) -> Path:
    path = folder / str(line.image)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CalibrationError(f"{where}: the image `{line.image}` lies outside the folder", "copy it into the folder")
    if not path.is_file():
        raise CalibrationError(f"{where}: there is no image `{line.image}`")
    if line.image_sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != line.image_sha256:
        raise CalibrationError(f"{where}: the image `{line.image}` is not the one that was hashed")
    _check_pixels(path, where)
    return path


def _check_pixels(path: Path, where: str) -> None:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is the lower one
            with Image.open(path) as image:
                _refuse_enormous(image.width * image.height, path, where)
                image.load()
    except Image.DecompressionBombError as error:
        raise CalibrationError(f"{where}: the image `{path.name}` is too large: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise CalibrationError(f"{where}: the image `{path.name}` cannot be read: {error}") from error


def _refuse_enormous(pixels: int, path: Path, where: str) -> None:
    if pixels > LARGEST_IMAGE_PIXELS:
        raise CalibrationError(
            f"{where}: the image `{path.name}` has {pixels:,} pixels, more than {LARGEST_IMAGE_PIXELS:,}",
            "make it smaller",
        )


def _refuse_repeated_ids(manifest: Path, samples: tuple[Sample, ...]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise CalibrationError(f"`{manifest}` has the id `{sample.id}` twice", "give every sample an id of its own")
        seen.add(sample.id)
