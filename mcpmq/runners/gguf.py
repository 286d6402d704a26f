"""Run the two files of a GGUF artifact in llama.cpp, on the tokens and pixels that every other engine receives."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import EngineError, prefix_errors
from mcpmq.families.inputs import Inputs, slice_size
from mcpmq.families.position_ids import mrope_position_ids
from mcpmq.formats.kv_cache import F16_CACHE, KvCache
from mcpmq.runners.generation import Predictions, without_answer
from mcpmq.runners.llamacpp import Chunk, llamacpp
from mcpmq.runners.llamacpp.artifact_files import artifact_files
from mcpmq.runners.llamacpp.language import Context, LanguageModel, LayerObserver
from mcpmq.runners.llamacpp.video import check_times
from mcpmq.runners.llamacpp.vision import Grid, PrecomputedImages, VisionEncoder, token_grid
from mcpmq.runners.runner import Logits, Metric, PhaseTimings, Result, SliceEmbeddings, phase_timings

MAX_SLICES = 10  # of an image that llama.cpp slices: the overview and nine parts
MARKER_TOKENS_PER_SLICE = 3  # start, end, line feed
AUDIO_NOTE = "llama.cpp pads audio with silence to segments of 30 seconds; the features of the padding were left out"
_Span = tuple[int, int]  # first and past-the-last token
_MaskedChunk = tuple[Chunk, Grid | None, NDArray[np.bool_]]  # the mask is True for tokens whose logits are needed


class GgufRunner:
    """A loaded language model and, unless the model is text-only, a loaded vision encoder."""

    def __init__(
        self,
        language: LanguageModel,
        vision: VisionEncoder | PrecomputedImages | None,
        threads: int,
        f32_attention: bool,
        uses_mrope: bool = False,
        cache: KvCache = F16_CACHE,
        image_markers: tuple[int, int] = (1, 1),
    ) -> None:
        self._cache = cache
        self._language, self._threads, self._f32_attention = language, threads, f32_attention
        self._optional_vision, self._uses_mrope, self._image_markers = vision, uses_mrope, image_markers
        self._resized: list[str] = []  # ids of samples with a slice that llama.cpp resized
        self.notes: tuple[str, ...] = ()  # complete after all samples were run

    def run(self, samples: Sequence[Inputs], metric: Metric[Result]) -> Iterator[Result]:
        """Yield `metric(sample, logits)` for each sample, in order.

        Raises:
            EngineError: llama.cpp failed, or cannot encode a slice or place a video as the sample expects.
        """
        for sample in samples if self._uses_mrope else ():
            check_times(sample)
        longest = max((_max_tokens(sample) for sample in samples), default=1)
        context = self._context(longest)
        try:
            for sample in samples:
                context.clear()
                yield metric(sample, self._check_finite(sample, self._logits(sample, context)))
        finally:
            context.close()

    def _context(self, max_tokens: int, layer_observer: LayerObserver | None = None) -> Context:
        options = self._threads, self._f32_attention, layer_observer, self._cache
        return Context(self._language, max_tokens, *options)

    def _check_finite(self, sample: Inputs, logits: Iterator[Logits]) -> Iterator[Logits]:
        for row in logits:
            if not np.isfinite(row).all():
                raise EngineError(
                    f"sample `{sample.id}`: first non-finite values in the output of `{self._overflowing(sample)}`",
                    "its weights or activations overflow in this engine",
                )
            yield row

    def _overflowing(self, sample: Inputs) -> str:
        """Run the sample again with an observer on the output of every layer."""
        layers: list[int] = []

        def observe(layer: int, values: NDArray[np.float32]) -> None:
            if not np.isfinite(values).all():
                layers.append(layer)

        context = self._context(_max_tokens(sample), observe)
        for _ in self._logits(sample, context):
            pass
        context.close()
        return f"language.layers.{min(layers)}" if layers else "head"

    def time_phases(self, sample: Inputs) -> PhaseTimings:
        """Time image encoding, prefill, and token-by-token decode of the answer."""
        context = self._context(_max_tokens(sample))
        prompt = replace(sample, tokens=sample.tokens[: sample.answer_start])
        answer = sample.tokens[sample.answer_start :].astype(np.int32)
        encode_seconds, (chunks, grids, _) = _timed(lambda: tuple(zip(*self._chunks(prompt), strict=True)))
        tokens = np.split(answer, len(answer))
        starts = np.cumsum([0, *map(len, chunks), *map(len, tokens)]).tolist()
        positions = self._positions(sample, starts, (*grids, *(None for _ in tokens)))
        prefill_seconds, _ = _timed(lambda: _decode_chunks(context, chunks, positions))
        decode_seconds, _ = _timed(lambda: _decode_chunks(context, tokens, positions[:, starts[len(chunks)] :]))
        context.close()
        return phase_timings(sample, encode_seconds, prefill_seconds, decode_seconds)

    def predict(self, sample: Inputs, max_tokens: int) -> Predictions:
        """Yield the logits after the prompt, then those after every token that is sent, at most `max_tokens`."""
        prompt = without_answer(sample)
        context = self._context(_max_tokens(prompt) + max_tokens)
        try:
            chunks, grids, _ = zip(*self._chunks(prompt), strict=True)
            starts = np.cumsum([0, *map(len, chunks)]).tolist()
            positions = self._positions(sample, starts, grids)
            logits = _decode_chunks(context, chunks, positions)
            position = positions[:1, -1:]
            while True:
                token = yield logits
                position = position + 1  # a text token has the same position on all M-RoPE axes
                logits = _decode_chunks(context, [np.array([token], np.int32)], position)
        finally:
            context.close()

    def close(self) -> None:
        """Free the memory of both models."""
        if self._optional_vision:
            self._optional_vision.close()
        self._language.close()

    @property
    def _vision(self) -> VisionEncoder | PrecomputedImages:
        if self._optional_vision is None:
            raise EngineError("the artifact has no mmproj file", "evaluate it on text samples")
        return self._optional_vision

    def encode_slice(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Convert a slice uint8 RGB [height, width, 3] or two frames to embeddings [tokens, input size]."""
        return self._vision.encode_slice(pixels)[0]

    def _logits(self, sample: Inputs, context: Context) -> Iterator[Logits]:
        chunks, grids, masks = zip(*self._chunks(sample), strict=True)
        starts = np.cumsum([0, *map(len, chunks)]).tolist()
        positions = self._positions(sample, starts, grids)
        for start, chunk, mask in zip(starts, chunks, masks, strict=False):
            yield from context.decode(chunk, positions[:, start : start + len(chunk)], mask)

    def _positions(self, sample: Inputs, starts: Sequence[int], grids: Sequence[Grid | None]) -> NDArray[np.int64]:
        """Return the position ids of all chunks: [1, length], or [4, length] for M-RoPE (time, row, column, unused)."""
        positions = np.arange(starts[-1], dtype=np.int64)[None]
        if not self._language.uses_mrope:
            return positions
        positions = positions.repeat(3, axis=0)
        if self._uses_mrope:
            spans = [(start, end) for start, end, grid in zip(starts[:-1], starts[1:], grids, strict=True) if grid]
            positions = mrope_position_ids(starts[-1], spans, filter(None, grids), sample.slice_times)
        return np.concatenate([positions, np.zeros_like(positions[:1])])

    def _chunks(self, sample: Inputs) -> Iterator[_MaskedChunk]:
        """Yield the text and image chunks of a sample in order, with the grid of image chunks and the logits mask."""
        tokens, done = sample.tokens.astype(np.int32), 0
        mask = np.zeros(len(tokens), np.bool_)
        mask[sample.measured - 1] = True  # each predicts the next token
        encoded = self._engine_images(sample) if sample.images else self._encoded_slices(sample)
        for (start, end), chunks in sorted([*encoded, *self._encoded_audio(sample)], key=lambda one: one[0]):
            yield tokens[done:start], None, mask[done:start]
            for chunk, grid in chunks:
                yield chunk, grid, np.zeros(len(chunk), np.bool_)
            done = end
        yield tokens[done:], None, mask[done:]

    def _encoded_slices(self, sample: Inputs) -> Iterator[tuple[_Span, list[tuple[Chunk, Grid | None]]]]:
        """Yield the tokens that each slice replaces, and its embeddings."""
        for pixels, (start, end) in zip(sample.slices, sample.image_bounds.tolist(), strict=True):
            yield (start, end), [self._encode(sample, pixels, end - start)]

    def _encoded_audio(self, sample: Inputs) -> Iterator[tuple[_Span, list[tuple[Chunk, Grid | None]]]]:
        """Yield the tokens of each span of audio tokens, and the embeddings that replace them."""
        for samples, spans in zip(sample.audio, sample.spans_by_audio, strict=True):
            embeddings, done = self._vision.encode_audio(samples), 0
            needed = sum(end - start for start, end in spans)
            if len(embeddings) < needed or not np.isfinite(embeddings[:needed]).all():
                found = f"llama.cpp encoded audio to {len(embeddings)} tokens; expected {needed} with finite values"
                raise EngineError(f"sample `{sample.id}`: {found}", "export the artifact again")
            self.notes = tuple(dict.fromkeys((*self.notes, AUDIO_NOTE)))
            for start, end in spans:
                yield (start, end), [(embeddings[done : done + end - start], None)]
                done += end - start

    def _engine_images(self, sample: Inputs) -> Iterator[tuple[_Span, list[tuple[Chunk, Grid | None]]]]:
        """Yield the tokens of each image that llama.cpp slices and resizes, and the chunks with its marker tokens."""
        assert isinstance(self._vision, VisionEncoder)
        last = np.cumsum(sample.slices_per_image) - 1
        before, after = self._image_markers
        for image, first, end in zip(sample.images, last - sample.slices_per_image + 1, last, strict=True):
            span = int(sample.image_bounds[first, 0]) - before, int(sample.image_bounds[end, 1]) + after
            yield span, self._vision.encode_image(image)

    def _encode(self, sample: Inputs, pixels: NDArray[np.uint8], num_tokens: int) -> tuple[Chunk, Grid]:
        with prefix_errors(f"sample `{sample.id}`"):
            embeddings, size = self._vision.encode_slice(pixels)
        if size != slice_size(pixels) and sample.id not in self._resized:
            self._resized.append(sample.id)
            count, kept = len(self._resized), [note for note in self.notes if note == AUDIO_NOTE]
            note = f"llama.cpp resized slices of {count} samples, the first of them `{self._resized[0]}`"
            self.notes = (note, *kept)
        if not np.isfinite(embeddings).all():
            raise EngineError(
                f"sample `{sample.id}`: non-finite values in the output of `vision` or `projector`",
                "weights or activations overflow in this engine",
            )
        if embeddings.shape != (num_tokens, self._language.input_embedding_size):
            found = f"llama.cpp encoded a slice to {len(embeddings)} tokens; expected {num_tokens}"
            raise EngineError(f"sample `{sample.id}`: {found}", "export the artifact again")
        return embeddings, token_grid(size, num_tokens)


def _timed(action: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def _decode_chunks(context: Context, chunks: Sequence[Chunk], positions: NDArray[np.int64]) -> Logits:
    """Decode chunks one after the other, and return the logits after the last one, which the next call overwrites."""
    start, logits = 0, np.empty(0, np.float32)
    for chunk in chunks:
        logits_mask = np.zeros(len(chunk), np.bool_)
        logits_mask[-1:] = True
        for row in context.decode(chunk, positions[:, start : start + len(chunk)], logits_mask):
            logits = row
        start += len(chunk)
    return logits


def _max_tokens(sample: Inputs) -> int:
    """Return the length of a sample, with space for more slices than ours if llama.cpp slices the images."""
    if not sample.images:
        return len(sample.tokens)
    tokens_per_slice = int(np.diff(sample.image_bounds).max())
    return len(sample.tokens) + len(sample.images) * MAX_SLICES * (tokens_per_slice + MARKER_TOKENS_PER_SLICE)


def open_runner(path: Path, threads: int, *, f32_attention: bool = False, kv_cache: str | None = None) -> GgufRunner:
    """Load a GGUF artifact into llama.cpp with the engine's default settings.

    By default llama.cpp rounds cached keys and values to F16. `f32_attention` keeps them in F32, which separates this
    rounding from an error of the artifact. `kv_cache` has other types, as in `KvCache.parse`.

    Raises:
        ArtifactError: the folder is not a GGUF artifact.
        EngineError: llama.cpp cannot load a file.
        MissingExtra: llama.cpp is not installed.
    """
    files = artifact_files(path)
    language = LanguageModel(llamacpp(), files.language)
    options = threads, f32_attention, files.audio_markers
    vision = VisionEncoder(llamacpp(), files.mmproj, language, *options) if files.mmproj else None
    cache = KvCache.parse(kv_cache) if kv_cache else F16_CACHE
    return GgufRunner(language, vision, threads, f32_attention, files.uses_mrope, cache, files.image_markers)


def encode_images(path: Path, threads: int, samples: Sequence[Inputs]) -> SliceEmbeddings:
    """Return the embeddings of every slice and audio, in order, without the language model's weights in memory."""
    files = artifact_files(path)
    if files.mmproj is None:
        return []
    language = LanguageModel(llamacpp(), files.language, vocab_only=True)
    vision = VisionEncoder(llamacpp(), files.mmproj, language, threads, False, files.audio_markers)
    embeddings: SliceEmbeddings = []
    for sample in samples:
        embeddings += [vision.encode_slice(pixels)[0] for pixels in sample.slices]
        embeddings += map(vision.encode_audio, sample.audio)
    vision.close()
    language.close()
    return embeddings


def open_language_model(
    path: Path, threads: int, embeddings: SliceEmbeddings, *, kv_cache: str | None = None
) -> GgufRunner:
    """Load the language model alone; the embeddings of slices are taken from `embeddings`, in order."""
    files = artifact_files(path)
    language = LanguageModel(llamacpp(), files.language)
    images, cache = PrecomputedImages(embeddings), KvCache.parse(kv_cache) if kv_cache else F16_CACHE
    return GgufRunner(language, images, threads, f32_attention=False, uses_mrope=files.uses_mrope, cache=cache)
