"""Encoded samples on disk: made once, read by every engine's process, one at a time."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from mcpmq.families.family import Inputs

WHOLE = "whole"  # the image before it was cut


class SampleFiles(Sequence[Inputs]):
    """The samples of a folder in order; each is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = sum(1 for _ in folder.glob("*.text.npz"))

    def append(self, sample: Inputs) -> None:
        """Write one more: its text (id, tokens, bounds) and its pixels in files of their own, without pickle."""
        text, pixels = self._files(self._count)
        named: dict[str, Any] = {f"{index:03}": part for index, part in enumerate(sample.slices)}
        if sample.image is not None:
            named[WHOLE] = sample.image
        np.savez(text, id=sample.id, tokens=sample.tokens, start=sample.answer_start, bounds=sample.image_bounds)
        np.savez(pixels, **named)
        self._count += 1

    def move_pixels(self, givers: Sequence[int]) -> None:
        """Give sample number n the pixels of sample `givers[n]`, a permutation."""
        for number, giver in enumerate(givers):
            self._files(giver)[1].rename(self.folder / f"{number}.moved")
        for number in range(len(givers)):
            (self.folder / f"{number}.moved").rename(self._files(number)[1])

    @property
    def sha256(self) -> str:
        """Hash of every token and every pixel, in order."""
        digest = hashlib.sha256()
        for sample in self:
            whole = () if sample.image is None else (sample.image,)
            arrays: tuple[NDArray[Any], ...] = (sample.tokens, sample.image_bounds, *sample.slices, *whole)
            for array in arrays:
                digest.update(f"{sample.id} {sample.answer_start} {array.shape}".encode())
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
            slices = tuple(pixels[name] for name in sorted(pixels.files) if name != WHOLE)
            whole = pixels[WHOLE] if WHOLE in pixels.files else None
            return Inputs(str(text["id"]), text["tokens"], int(text["start"]), slices, text["bounds"], whole)
