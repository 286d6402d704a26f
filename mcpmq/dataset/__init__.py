"""Sample sets of images, videos, audio, prompts and answers, for calibration and evaluation."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from mcpmq.dataset.holdout import HOLDOUT_EVERY, held_out_samples
from mcpmq.dataset.hub import find_set
from mcpmq.dataset.manifest import MANIFEST_HINT
from mcpmq.dataset.options import READ_ALL, ReadOptions
from mcpmq.dataset.sample import Audio, EmbeddedImage, ImageSource, Part, Sample, Turn, Video
from mcpmq.dataset.source import MANIFEST, Record, RecordSource, has_records, open_source
from mcpmq.errors import DatasetError
from mcpmq.system.hub_cache import folder_name

__all__ = [
    "ENCODER_INPUTS_PER_COLUMN",
    "HOLDOUT_EVERY",
    "MANIFEST",
    "MIN_ENCODER_INPUTS",
    "RECOMMENDED_CALIBRATION_TOKENS",
    "TOKENS_PER_SAMPLE",
    "Audio",
    "EmbeddedImage",
    "ImageSource",
    "Part",
    "ReadOptions",
    "Sample",
    "SampleSet",
    "Turn",
    "Video",
    "has_records",
]

# GPTQ needs several times as many tokens as a matrix has columns: the widest of small models have 1,536 to 2,048.
MIN_CALIBRATION_TOKENS, RECOMMENDED_CALIBRATION_TOKENS = 4_096, 16_384
# Inputs of a vision or audio encoder that calibrate its matrices, and their number for each column if that is more.
MIN_ENCODER_INPUTS, ENCODER_INPUTS_PER_COLUMN = 16_384, 8
TOKENS_PER_SAMPLE = 1024  # estimated, of a sample with an image that is not encoded yet
MAX_LISTED = 3  # invalid records in an error


@dataclass(frozen=True)
class SampleSet:
    """Samples in order; every line, image and hash is checked when the set is opened."""

    path: Path
    samples: tuple[Sample, ...]

    invalid: tuple[str, ...] = ()  # reasons of records that were left out
    num_records: int = 0  # of the set, before a draw; 0 if unknown
    num_read: int = 0  # records that were drawn, valid or not; 0 if unknown

    @classmethod
    def open(cls, path: str | Path, options: ReadOptions = READ_ALL) -> Self:
        """Open a folder with `manifest.jsonl`, a file of records, a folder of Parquet files, or a set of the hub.

        Raises:
            DatasetError: the set is empty, or records are invalid; the error has their number and the first ones.
            MissingExtra: the records are in Parquet files, and pyarrow is not installed.
        """
        path = find_set(Path(path))
        path = path.parent if path.name == MANIFEST else path
        source = open_source(path, options)
        samples, errors = _read(source, options)
        if errors and not (options.skip_invalid and samples):
            raise _invalid(source, errors, len(samples) + len(errors))
        if not samples:
            raise DatasetError(f"`{source.file}` has no samples", MANIFEST_HINT)
        return cls(path, tuple(samples), tuple(map(str, errors)), source.count, len(samples) + len(errors))

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
        """Return the SHA-256 of all samples and the bytes of their files, in order."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(json.dumps([sample.id, *sample.content()]).encode())
        return digest.hexdigest()

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """Return the fingerprints of all images, videos and text samples; disjoint sets share none."""
        return tuple(sorted({fingerprint for sample in self.samples for fingerprint in sample.fingerprints}))

    @cached_property
    def duplicates(self) -> tuple[tuple[str, str], ...]:
        """Return the ids of samples with the content of an earlier one, each with the id of that one."""
        texts = Counter((sample.prompt, sample.answer) for sample in self.samples)
        repeated = [sample for sample in self.samples if texts[sample.prompt, sample.answer] > 1]  # files are hashed
        first: dict[str, str] = {}
        found = [(sample.id, first.setdefault(json.dumps(sample.content()), sample.id)) for sample in repeated]
        return tuple(pair for pair in found if pair[0] != pair[1])

    def few_tokens_warning(self, tokens: int) -> str:
        """Return a warning, or "" if the tokens of the set are enough for the correlations of inputs."""
        if tokens >= MIN_CALIBRATION_TOKENS:
            return ""
        return (
            f"calibration set `{self.name}`: {tokens:,} tokens, fewer than {MIN_CALIBRATION_TOKENS:,}: errors on other"
            f" inputs are larger; {RECOMMENDED_CALIBRATION_TOKENS:,} tokens are recommended"
        )

    @property
    def left_out_warning(self) -> str:
        """Return a warning with the number of invalid records and the first ones, or "" if all records are valid."""
        if not self.invalid:
            return ""
        more = len(self.invalid) - MAX_LISTED
        rest = f"; and {more:,} more, which `mcpmq inspect {self.path}` names" if more > 0 else ""
        listed = "; ".join(self.invalid[:MAX_LISTED])
        return f"sample set `{self.name}`: left out {len(self.invalid):,} of {self.num_read:,} records: {listed}{rest}"

    def check_disjoint(self, name: str, fingerprints: Iterable[str]) -> None:
        """Check that no sample is in the calibration set of that name and fingerprints.

        Raises:
            DatasetError: an image, a frame, a video or a text sample is in both.
        """
        shared = set(self.fingerprints).intersection(fingerprints)
        if shared:
            raise DatasetError(
                f"`{self.path}` shares {len(shared):,} images, videos or texts with the calibration set `{name}`",
                "use an evaluation set that does not overlap the calibration set",
            )

    def split_holdout(self) -> tuple[Self, Self]:
        """Return the set without every fifth sample, and every fifth sample as held-out set, which has all kinds.

        Raises:
            DatasetError: the set has fewer than five samples.
        """
        if len(self) < HOLDOUT_EVERY:
            raise DatasetError(
                f"{len(self)} samples are too few to hold out a fifth", "name an evaluation set with `--eval-set`"
            )
        held_out = held_out_samples(self.samples)
        ids = {sample.id for sample in held_out}
        kept = tuple(sample for sample in self.samples if sample.id not in ids)
        return replace(self, samples=kept), type(self)(self.path, held_out)

    def spread(self, count: int) -> Self:
        """Return a set of at most `count` samples, evenly spread."""
        return type(self)(self.path, self.samples[:: max(1, -(-len(self) // count))])


def _read(source: RecordSource, options: ReadOptions) -> tuple[list[Sample], list[DatasetError]]:
    """Return the valid samples of a source, and the errors of the other records."""
    samples, errors, places = list[Sample](), list[DatasetError](), dict[str, int]()
    for record in source.read(options.draw(source.count)):
        try:
            sample = record.parse().open(source.folder, record.where)
            number = places[sample.id] = places.get(sample.id, 0) + 1
            if number > 1:
                sample = _renamed(sample, number, record, source)
        except DatasetError as error:
            errors.append(error)
        else:
            samples.append(sample)
    return samples, errors


def _renamed(sample: Sample, number: int, record: Record, source: RecordSource) -> Sample:
    """Return a sample whose id is not its first use with a number; ids of a manifest must be unique.

    Raises:
        DatasetError: the record is of a manifest.
    """
    if source.has_unique_ids:
        raise DatasetError(f"{record.where}: the id `{sample.id}` is given twice", "give every sample a unique id")
    return replace(sample, id=f"{sample.id}#{number}")


def _invalid(source: RecordSource, errors: Sequence[DatasetError], count: int) -> DatasetError:
    """Return the error of all invalid records: the number of them, and the first ones."""
    if len(errors) == 1:
        return errors[0]
    listed = "; ".join(map(str, errors[:MAX_LISTED]))
    more = f"; and {len(errors) - MAX_LISTED:,} more" if len(errors) > MAX_LISTED else ""
    return DatasetError(
        f"{len(errors):,} of {count:,} records of `{source.file}` are invalid: {listed}{more}",
        f"{errors[0].hint}; or leave them out with `mcpmq dataset convert --skip-invalid`",
    )
