"""A GGUF pair in llama.cpp: the same tokens and the same pixels as every other engine gets."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError, EngineError
from mcpmq.families import family_named
from mcpmq.families.family import Inputs
from mcpmq.families.position_ids import sectioned_positions
from mcpmq.runners.llamacpp import Piece, llamacpp
from mcpmq.runners.llamacpp.language import Context, LanguageModel
from mcpmq.runners.llamacpp.vision import Grid, Sight, grid_of
from mcpmq.runners.runner import Judge, Logits, Phases, Result, phases_of

MOST_SLICES, TAGS_OF_A_SLICE = 10, 3  # the overview and nine; opening, closing, line feed


class GgufRunner:
    """Both files of a GGUF artifact, loaded; one where the model reads text only."""

    def __init__(
        self,
        language: LanguageModel,
        sight: "Sight | Recalled | None",
        threads: int,
        exact: bool,
        images_have_rows: bool = False,
    ) -> None:
        self._language, self._threads, self._exact = language, threads, exact
        self._sight_or_none, self._images_have_rows = sight, images_have_rows
        self._resized: list[str] = []  # ids of samples with a slice that the engine saw at another size
        self.notes: tuple[str, ...] = ()  # complete when all samples were run

    def run(self, samples: Sequence[Inputs], judge: Judge[Result]) -> Iterator[Result]:
        """For every sample in order, what `judge` makes of the logits of its answer.

        Raises:
            EngineError: llama.cpp failed, or a slice became another number of tokens than the sample has room for.
        """
        longest = max((_room(sample) for sample in samples), default=1)
        context = Context(self._language, longest, self._threads, self._exact)
        try:
            for sample in samples:
                context.clear()
                yield judge(sample, self._finite(sample, self._logits(sample, context)))
        finally:
            context.close()

    def _finite(self, sample: Inputs, logits: Iterator[Logits]) -> Iterator[Logits]:
        for row in logits:
            if not np.isfinite(row).all():
                raise EngineError(
                    f"sample `{sample.id}`: values that are not finite first come out of `{self._overflowing(sample)}`",
                    "its weights or activations overflow in this engine",
                )
            yield row

    def _overflowing(self, sample: Inputs) -> str:
        """The sample once more, watched layer by layer."""
        layers: list[int] = []

        def watch(layer: int, values: NDArray[np.float32]) -> None:
            if not np.isfinite(values).all():
                layers.append(layer)

        context = Context(self._language, _room(sample), self._threads, self._exact, watch)
        for _ in self._logits(sample, context):
            pass
        context.close()
        return f"language.layers.{min(layers)}" if layers else "head"

    def phases(self, sample: Inputs) -> Phases:
        """Take the time of encoding the images, reading the prompt, and reading the answer token by token."""
        context = Context(self._language, _room(sample), self._threads, self._exact)
        prompt = replace(sample, tokens=sample.tokens[: sample.answer_start])
        start = time.perf_counter()
        pieces, grids = zip(*self._pieces(prompt), strict=True)
        encoded = time.perf_counter()
        answer = sample.tokens[sample.answer_start :].astype(np.int32)
        tokens = np.split(answer, len(answer))
        starts = np.cumsum([0, *map(len, pieces), *map(len, tokens)]).tolist()
        positions = self._positions(starts, (*grids, *(None for _ in tokens)))
        _read(context, pieces, positions)
        read = time.perf_counter()
        _read(context, tokens, positions[:, starts[len(pieces)] :])
        done = time.perf_counter()
        context.close()
        return phases_of(sample, encoded - start, read - encoded, done - read)

    def close(self) -> None:
        """Free the memory of both models."""
        if self._sight_or_none:
            self._sight_or_none.close()
        self._language.close()

    @property
    def _sight(self) -> "Sight | Recalled":
        if self._sight_or_none is None:
            raise EngineError("the artifact has no file that sees", "measure it on text")
        return self._sight_or_none

    def see(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One slice uint8 [height, width, 3] -> [tokens, hidden]."""
        return self._sight.encode(pixels)[0]

    def _logits(self, sample: Inputs, context: Context) -> Iterator[Logits]:
        pieces, grids = zip(*self._pieces(sample), strict=True)
        predicts = np.zeros(sum(map(len, pieces)), np.bool_)
        predicts[sample.answer_start - len(sample.tokens) - 1 : -1] = True
        starts = np.cumsum([0, *map(len, pieces)]).tolist()
        positions = self._positions(starts, grids)
        for start, piece in zip(starts, pieces, strict=False):
            yield from context.read(piece, positions[:, start : start + len(piece)], predicts[start:][: len(piece)])

    def _positions(self, starts: Sequence[int], grids: Sequence[Grid | None]) -> NDArray[np.int64]:
        """Where the tokens of all pieces stand: [1, length], or by time, row and column, and a fourth axis that is not
        used, [4, length]."""
        positions = np.arange(starts[-1], dtype=np.int64)[None]
        if not self._language.sectioned:
            return positions
        positions = positions.repeat(3, axis=0)
        if self._images_have_rows:
            spans = [(start, end) for start, end, grid in zip(starts[:-1], starts[1:], grids, strict=True) if grid]
            positions = sectioned_positions(starts[-1], spans, filter(None, grids))
        return np.concatenate([positions, np.zeros_like(positions[:1])])

    def _pieces(self, sample: Inputs) -> Iterator[tuple[Piece, Grid | None]]:
        """The sample where text and slices meet, in order: our slices, or those that the engine cuts itself."""
        tokens, done = sample.tokens.astype(np.int32), 0
        if sample.image is not None:
            yield tokens[: sample.image_bounds[0, 0] - 1], None  # the engine brings its own tags
            assert isinstance(self._sight, Sight)
            yield from self._sight.cut(sample.image)
            yield tokens[sample.image_bounds[-1, 1] + 1 :], None
            return
        for pixels, (start, end) in zip(sample.slices, sample.image_bounds.tolist(), strict=True):
            yield tokens[done:start], None
            yield self._seen(sample, pixels, end - start)
            done = end
        yield tokens[done:], None

    def _seen(self, sample: Inputs, pixels: NDArray[np.uint8], length: int) -> tuple[Piece, Grid]:
        embeddings, size = self._sight.encode(pixels)
        if size != pixels.shape[:2] and sample.id not in self._resized:
            self._resized.append(sample.id)
            seen = f"llama.cpp resized slices of {len(self._resized)} samples before it looked at them"
            self.notes = (f"{seen}, first those of `{self._resized[0]}`",)
        if not np.isfinite(embeddings).all():
            raise EngineError(
                f"sample `{sample.id}`: values that are not finite come out of `vision` or `projector`",
                "weights or activations overflow in this engine",
            )
        if embeddings.shape != (length, self._language.width_of_embeddings):
            raise EngineError(f"sample `{sample.id}`: llama.cpp made {len(embeddings)} tokens of a slice, not {length}")
        return embeddings, grid_of(size, length)


def _read(context: Context, pieces: Sequence[Piece], positions: NDArray[np.int64]) -> None:
    """Read pieces one after the other, with the logits after the last token of each."""
    start = 0
    for piece in pieces:
        wanted = np.zeros(len(piece), np.bool_)
        wanted[-1:] = True
        for _ in context.read(piece, positions[:, start : start + len(piece)], wanted):
            pass
        start += len(piece)


def _room(sample: Inputs) -> int:
    """Tokens that a sample may take: an engine that cuts the image itself may cut more slices than we did."""
    if sample.image is None:
        return len(sample.tokens)
    queries = int(np.diff(sample.image_bounds[0])[0])
    return len(sample.tokens) + MOST_SLICES * (queries + TAGS_OF_A_SLICE)


def open_runner(path: Path, threads: int, *, exact: bool = False) -> GgufRunner:
    """Load a GGUF artifact into llama.cpp, set as llama.cpp sets itself.

    By default it rounds keys and values to F16 on the way through attention; `exact` keeps them in F32, which tells
    that rounding from a difference of the artifact.

    Raises:
        ArtifactError: the folder is no GGUF artifact.
        EngineError: llama.cpp does not load a file of it.
        MissingExtra: llama.cpp is not installed.
    """
    files = _files(path)
    language = LanguageModel(llamacpp(), files.language)
    sight = Sight(llamacpp(), files.sight, language, threads, exact) if files.sight else None
    return GgufRunner(language, sight, threads, exact, files.images_have_rows)


@dataclass(frozen=True, slots=True)
class _Files:
    language: Path
    sight: Path | None  # None: the model reads text only
    images_have_rows: bool


def _files(path: Path) -> _Files:
    artifact = Artifact.open(path)
    family = family_named(artifact.manifest.family)
    files = [artifact.files_of(component) for component in ("language", "vision+projector")]
    if artifact.manifest.kind != "gguf" or not files[0] or len(files[1]) != int(family.sees):
        told = f"`{path}` is no GGUF artifact of {1 + family.sees} files"
        raise ArtifactError(told, "export one with `--format gguf`")
    # Of parts, the first: llama.cpp finds the others.
    return _Files(files[0][0], files[1][0] if family.sees else None, family.images_have_rows)


class Recalled:
    """Slices that were seen before, in their order; it stands in for what sees."""

    def __init__(self, seen: Sequence[NDArray[np.float32]]) -> None:
        self._left = iter(seen)

    def encode(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """The embeddings [tokens, hidden] of the next slice, and its (height, width)."""
        return next(self._left), (pixels.shape[0], pixels.shape[1])

    def close(self) -> None:
        """Nothing was loaded."""


def see_all(path: Path, threads: int, samples: Sequence[Inputs]) -> list[NDArray[np.float32]]:
    """The embeddings [tokens, hidden] of every slice in order, without the language model's weights in memory."""
    files = _files(path)
    if files.sight is None:
        return []
    language = LanguageModel(llamacpp(), files.language, vocabulary_alone=True)
    sight = Sight(llamacpp(), files.sight, language, threads, exact=False)
    seen = [sight.encode(part)[0] for sample in samples for part in sample.slices]
    sight.close()
    language.close()
    return seen


def open_reader(path: Path, threads: int, seen: Sequence[NDArray[np.float32]]) -> GgufRunner:
    """The language model loaded alone; it recalls what was seen."""
    files = _files(path)
    language = LanguageModel(llamacpp(), files.language)
    return GgufRunner(language, Recalled(seen), threads, exact=False, images_have_rows=files.images_have_rows)
