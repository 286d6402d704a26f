"""A GGUF pair in llama.cpp: the same tokens and the same pixels as every other engine gets."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError, EngineError
from mcpmq.families.family import Inputs
from mcpmq.runners.llamacpp import llamacpp
from mcpmq.runners.llamacpp.language import Context, LanguageModel, Piece
from mcpmq.runners.llamacpp.sight import Sight


class GgufRunner:
    """Both files of a GGUF artifact, loaded."""

    def __init__(self, language: LanguageModel, sight: Sight, threads: int, exact: bool) -> None:
        self._language, self._sight, self._threads, self._exact = language, sight, threads, exact
        self._resized: list[str] = []  # ids of samples with a slice that the engine saw at another size
        self.notes: tuple[str, ...] = ()  # complete when all losses were taken

    def losses(self, samples: Sequence[Inputs]) -> Iterator[NDArray[np.float64]]:
        """For every sample in order, the natural-log loss of each token of its answer: float64 [tokens of the answer].

        Raises:
            EngineError: llama.cpp failed, or a slice became another number of tokens than the sample has room for.
        """
        longest = max((len(sample.tokens) for sample in samples), default=1)
        context = Context(self._language, longest, self._threads, self._exact)
        try:
            for sample in samples:
                context.clear()
                yield self._losses_of(sample, context)
        finally:
            context.close()

    def close(self) -> None:
        """Free the memory of both models."""
        self._sight.close()
        self._language.close()

    def _losses_of(self, sample: Inputs, context: Context) -> NDArray[np.float64]:
        predicts = np.zeros(len(sample.tokens), np.bool_)
        predicts[sample.answer_start - 1 : -1] = True
        logits = (
            row
            for start, piece in self._pieces(sample)
            for row in context.read(piece, start, predicts[start : start + len(piece)])
        )
        targets = sample.tokens[sample.answer_start :]
        return np.array([_loss(row, int(target)) for row, target in zip(logits, targets, strict=True)], np.float64)

    def _pieces(self, sample: Inputs) -> Iterator[tuple[int, Piece]]:
        """The sample cut where text and slices meet, in order, each piece with its first position."""
        tokens, done = sample.tokens.astype(np.int32), 0
        for pixels, (start, end) in zip(sample.slices, sample.image_bounds.tolist(), strict=True):
            if start > done:
                yield done, tokens[done:start]
            yield start, self._seen(sample, pixels, end - start)
            done = end
        if done < len(tokens):
            yield done, tokens[done:]

    def _seen(self, sample: Inputs, pixels: NDArray[np.uint8], length: int) -> NDArray[np.float32]:
        embeddings, size = self._sight.encode(pixels)
        if size != pixels.shape[:2] and sample.id not in self._resized:
            self._resized.append(sample.id)
            seen = f"llama.cpp resized slices of {len(self._resized)} samples before it looked at them"
            self.notes = (f"{seen}, first those of `{self._resized[0]}`",)
        if embeddings.shape != (length, self._language.hidden):
            raise EngineError(f"sample `{sample.id}`: llama.cpp made {len(embeddings)} tokens of a slice, not {length}")
        return embeddings


def _loss(logits: NDArray[np.float32], target: int) -> float:
    """-log softmax(logits)[target], in float64."""
    values = logits.astype(np.float64)
    largest = values.max()
    return float(largest + np.log(np.exp(values - largest).sum()) - values[target])


def open_runner(path: Path, threads: int, *, exact: bool = False) -> GgufRunner:
    """Load a GGUF artifact into llama.cpp, set as llama.cpp sets itself.

    By default it rounds keys and values to F16 on the way through attention; `exact` keeps them in F32, which tells
    that rounding from a difference of the artifact.

    Raises:
        ArtifactError: the folder is no GGUF artifact.
        EngineError: llama.cpp does not load a file of it.
        MissingExtra: llama.cpp is not installed.
    """
    artifact = Artifact.open(path)
    files = [artifact.files_of(component) for component in ("language", "vision+projector")]
    if artifact.manifest.kind != "gguf" or [len(found) for found in files] != [1, 1]:
        raise ArtifactError(f"`{path}` is no GGUF artifact of two files", "export one with `--format gguf`")
    [language_file], [sight_file] = files
    language = LanguageModel(llamacpp(), language_file)
    return GgufRunner(language, Sight(llamacpp(), sight_file, language.pointer, threads, exact), threads, exact)
