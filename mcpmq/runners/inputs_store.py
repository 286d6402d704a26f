"""Encoded samples on disk: written once, read one at a time by the worker process of every engine."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from mcpmq.families.inputs import Inputs

UNCUT_IMAGE = "whole"  # first part of the array names of images before slicing
AUDIO = "audio"  # first part of the array names of audio


class InputsStore(Sequence[Inputs]):
    """The encoded samples of a folder, in order; each is read on access."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = sum(1 for _ in folder.glob("*.text.npz"))

    def append(self, sample: Inputs) -> None:
        """Write a sample: pixels in a file of their own, everything else in another one, without pickle."""
        text_file, pixel_file = self._files(self._count)
        arrays: dict[str, Any] = {f"{index:06}": pixels for index, pixels in enumerate(sample.slices)}
        arrays |= {f"{UNCUT_IMAGE}{index:06}": image for index, image in enumerate(sample.images)}
        _write_text(text_file, sample)
        np.savez(pixel_file, **arrays)
        self._count += 1

    def append_with_pixels(self, sample: Inputs, pixels: Path) -> None:
        """Write the text of a sample whose pixels are in the file of another store."""
        text_file, pixel_file = self._files(self._count)
        _write_text(text_file, sample)
        pixel_file.hardlink_to(pixels)
        self._count += 1

    def pixel_file(self, number: int) -> Path:
        """Return the file with the pixels of a sample."""
        return self._files(number)[1]

    def permute_pixels(self, sources: Sequence[int]) -> None:
        """Replace the pixels of sample n by those of sample `sources[n]`; `sources` is a permutation."""
        for number, source in enumerate(sources):
            self._files(source)[1].rename(self.folder / f"{number}.moved")
        for number in range(len(sources)):
            (self.folder / f"{number}.moved").rename(self._files(number)[1])

    @property
    def sha256(self) -> str:
        """The hash of all tokens, pixels and audio, in order."""
        digest = hashlib.sha256()
        for sample in self:
            texts = (sample.tokens, sample.image_bounds, sample.earlier_answers)
            arrays: tuple[NDArray[Any], ...] = (*texts, *sample.slices, *sample.images)
            if sample.audio:
                arrays = (*arrays, sample.audio_bounds, *sample.audio)
            for array in arrays:
                place = f"{sample.id} {sample.answer_start} {sample.slices_per_image} {array.shape}"
                if sample.frame_intervals:
                    place += f" {sample.frame_intervals} {sample.slice_times}"
                digest.update(place.encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Inputs]:
        return (self[number] for number in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Inputs: ...
    @overload
    def __getitem__(self, index: slice) -> list[Inputs]: ...
    def __getitem__(self, index: int | slice) -> Inputs | list[Inputs]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return self._read(range(len(self))[index])

    def _files(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"{number:06}.text.npz", self.folder / f"{number:06}.pixels.npz"

    def _read(self, number: int) -> Inputs:
        text_file, pixel_file = self._files(number)
        with np.load(text_file, allow_pickle=False) as text, np.load(pixel_file, allow_pickle=False) as pixels:
            slices = tuple(pixels[name] for name in sorted(pixels.files) if not name.startswith(UNCUT_IMAGE))
            images = tuple(pixels[name] for name in sorted(pixels.files) if name.startswith(UNCUT_IMAGE))
            return Inputs(
                str(text["id"]),
                text["tokens"],
                int(text["start"]),
                slices,
                text["bounds"],
                images,
                text["earlier"],
                tuple(text["per_image"].tolist()),
                tuple(text[f"{AUDIO}{index:06}"] for index in range(len(text["per_audio"]))),
                text["audio_bounds"],
                tuple(text["per_audio"].tolist()),
                tuple(text["intervals"].tolist()),
                tuple(text["times"].tolist()),
            )


def _write_text(file: Path, sample: Inputs) -> None:
    texts: dict[str, Any] = {"tokens": sample.tokens, "start": sample.answer_start, "bounds": sample.image_bounds}
    texts |= {"earlier": sample.earlier_answers, "per_image": np.array(sample.slices_per_image, np.int64)}
    texts |= {"audio_bounds": sample.audio_bounds, "per_audio": np.array(sample.spans_per_audio, np.int64)}
    texts |= {f"{AUDIO}{index:06}": samples for index, samples in enumerate(sample.audio)}
    texts |= {"intervals": np.array(sample.frame_intervals), "times": np.array(sample.slice_times, np.int64)}
    np.savez(file, id=sample.id, **texts)
