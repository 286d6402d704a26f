"""A GGUF pair in llama.cpp: the same tokens and the same pixels as every other engine gets."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError, EngineError
from mcpmq.families.family import Inputs
from mcpmq.runners.llamacpp import Piece, llamacpp
from mcpmq.runners.llamacpp.language import Context, LanguageModel
from mcpmq.runners.llamacpp.sight import Sight
from mcpmq.runners.runner import Judge, Logits, Phases, Result, phases_of

MOST_SLICES, TAGS_OF_A_SLICE = 10, 3  # the overview and nine; opening, closing, line feed


class GgufRunner:
    """Both files of a GGUF artifact, loaded."""

    def __init__(self, language: LanguageModel, sight: "Sight | Recalled", threads: int, exact: bool) -> None:
        self._language, self._sight, self._threads, self._exact = language, sight, threads, exact
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
        pieces = list(self._pieces(prompt))
        encoded = time.perf_counter()
        _read(context, pieces, 0)
        read = time.perf_counter()
        answer = sample.tokens[sample.answer_start :].astype(np.int32)
        _read(context, np.split(answer, len(answer)), sum(map(len, pieces)))
        done = time.perf_counter()
        context.close()
        return phases_of(sample, encoded - start, read - encoded, done - read)

    def close(self) -> None:
        """Free the memory of both models."""
        self._sight.close()
        self._language.close()

    def see(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One slice uint8 [height, width, 3] -> [tokens, hidden]."""
        return self._sight.encode(pixels)[0]

    def _logits(self, sample: Inputs, context: Context) -> Iterator[Logits]:
        pieces = list(self._pieces(sample))
        predicts = np.zeros(sum(map(len, pieces)), np.bool_)
        predicts[sample.answer_start - len(sample.tokens) - 1 : -1] = True
        starts = np.cumsum([0, *map(len, pieces)]).tolist()
        for start, piece in zip(starts, pieces, strict=False):
            yield from context.read(piece, start, predicts[start : start + len(piece)])

    def _pieces(self, sample: Inputs) -> Iterator[Piece]:
        """The sample where text and slices meet, in order: our slices, or those that the engine cuts itself."""
        tokens, done = sample.tokens.astype(np.int32), 0
        if sample.image is not None:
            yield tokens[: sample.image_bounds[0, 0] - 1]  # the engine brings its own tags
            assert isinstance(self._sight, Sight)
            yield from self._sight.cut(sample.image)
            yield tokens[sample.image_bounds[-1, 1] + 1 :]
            return
        for pixels, (start, end) in zip(sample.slices, sample.image_bounds.tolist(), strict=True):
            yield tokens[done:start]
            yield self._seen(sample, pixels, end - start)
            done = end
        yield tokens[done:]

    def _seen(self, sample: Inputs, pixels: NDArray[np.uint8], length: int) -> NDArray[np.float32]:
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
        if embeddings.shape != (length, self._language.hidden):
            raise EngineError(f"sample `{sample.id}`: llama.cpp made {len(embeddings)} tokens of a slice, not {length}")
        return embeddings


def _read(context: Context, pieces: Sequence[Piece], start: int) -> None:
    """Read pieces one after the other, with the logits after the last token of each."""
    for piece in pieces:
        wanted = np.zeros(len(piece), np.bool_)
        wanted[-1:] = True
        for _ in context.read(piece, start, wanted):
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
    language_file, sight_file = _files(path)
    language = LanguageModel(llamacpp(), language_file)
    return GgufRunner(language, Sight(llamacpp(), sight_file, language, threads, exact), threads, exact)


def _files(path: Path) -> tuple[Path, Path]:
    artifact = Artifact.open(path)
    files = [artifact.files_of(component) for component in ("language", "vision+projector")]
    if artifact.manifest.kind != "gguf" or not files[0] or len(files[1]) != 1:
        raise ArtifactError(f"`{path}` is no GGUF artifact of two files", "export one with `--format gguf`")
    language_files, [sight_file] = files
    return language_files[0], sight_file  # of parts, the first: llama.cpp finds the others


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
    language_file, sight_file = _files(path)
    language = LanguageModel(llamacpp(), language_file, vocabulary_alone=True)
    sight = Sight(llamacpp(), sight_file, language, threads, exact=False)
    seen = [sight.encode(part)[0] for sample in samples for part in sample.slices]
    sight.close()
    language.close()
    return seen


def open_reader(path: Path, threads: int, seen: Sequence[NDArray[np.float32]]) -> GgufRunner:
    """The language model loaded alone; it recalls what was seen."""
    return GgufRunner(LanguageModel(llamacpp(), _files(path)[0]), Recalled(seen), threads, exact=False)
