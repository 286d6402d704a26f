"""The mmproj file in llama.cpp: encodes slices, or whole images, and reports the size after resizing."""

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil, isqrt, prod, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import EngineError
from mcpmq.families.inputs import slice_size
from mcpmq.runners.llamacpp import (
    AUDIO_CHUNK_TYPE,
    FLOATS,
    IMAGE_CHUNK_TYPE,
    INT,
    MTMD_FLASH_ATTENTION_OFFSET,
    MTMD_THREADS_OFFSET,
    POINTER,
    SIZE,
    Chunk,
    InputText,
    LlamaCpp,
    image_chunk_size,
)
from mcpmq.runners.llamacpp.language import LanguageModel
from mcpmq.runners.runner import SliceEmbeddings
from mcpmq.system import ggml_library

CLIP_HPARAMS_SYMBOL = "_Z16clip_get_hparamsPK8clip_ctx"  # returns clip_hparams; its first field is image_size
MAX_HPARAMS_NBYTES = 128  # of clip_hparams, with the fields of image sizes
Grid = tuple[int, int]  # rows and columns of tokens
NO_AUDIO_HINT = "give no audio, or use another format; GGUF files of MiniCPM-o have audio with `--gguf-audio glma`"
PROBE_IMAGE = np.zeros((8, 8, 3), np.uint8)  # smaller than a slice: llama.cpp resizes it to the slice size


def token_grid(size: tuple[int, int], num_tokens: int) -> Grid:
    """Return the rows and columns of tokens of a slice of (height, width) pixels, where a token is a square of pixels.

    Tokens without a position, such as those of a resampler, are one row.
    """
    side = round(sqrt(size[0] * size[1] / num_tokens))
    rows, columns = size[0] // side, size[1] // side
    return (rows, columns) if rows * columns == num_tokens else (1, num_tokens)


class VisionEncoder:
    """A loaded mmproj file.

    llama.cpp slices every image itself, and encodes an overview of the whole image first. Given one slice, the overview
    is the unchanged slice if the slice size of llama.cpp lies between the square root of the area and the longer side.
    `encode_slice` sets the size accordingly.

    If tiles have one size, llama.cpp first enlarges every image to a longest edge of several tiles.
    `encode_slice` sets the longest edge to one tile, which is then unchanged.
    """

    def __init__(
        self,
        engine: LlamaCpp,
        file: Path,
        language: LanguageModel,
        threads: int,
        f32_attention: bool,
        audio_markers: tuple[int, int] = (0, 0),
    ) -> None:
        """Load the file for a language model, or its vocabulary; `f32_attention` computes attention in F32.

        `audio_markers` are the numbers of embeddings that llama.cpp adds before and after those of a segment.

        Raises:
            EngineError: llama.cpp cannot load the file, or serializes image chunks in an unknown layout.
        """
        engine.record_log()
        parameters = engine("mtmd_context_params_default")
        parameters.write_uint32(MTMD_THREADS_OFFSET, threads)
        if f32_attention:
            parameters.write_uint32(MTMD_FLASH_ATTENTION_OFFSET, 0)
        context = engine("mtmd_init_from_file", str(file).encode(), language.pointer, parameters)
        if not context:
            raise engine.error(f"llama.cpp cannot load `{file}`", "export the artifact again")
        self._engine, self._context, self._width = engine, context, language.input_embedding_size
        self._audio_markers = audio_markers
        self._finalizer = weakref.finalize(self, engine, "mtmd_free", context)
        if not engine("mtmd_support_vision", context):
            raise EngineError(f"`{file}` has no vision encoder", "export the artifact again")
        self._default_side = self._probed_side()
        self._slice_side = self._find_slice_side(self._default_side)
        self._longest_edge = self._find_longest_edge(self._default_side)
        self._default_longest_edge = self._longest_edge.value if self._longest_edge else 0

    def close(self) -> None:
        """Free the memory."""
        self._finalizer()

    def encode_slice(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Convert a slice uint8 RGB [height, width, 3] to embeddings float32 [tokens, input size].

        Two frames of a video, [2, height, width, 3], are one temporal patch of Qwen-VL.

        Returns the embeddings and the (height, width) of the slice after resizing by llama.cpp.

        Raises:
            EngineError: llama.cpp rejected the image, or cannot encode the frames together and in their size.
        """
        if self._slice_side is not None:
            self._slice_side.value = ceil(sqrt(prod(slice_size(pixels))))
        if self._longest_edge is not None:
            self._longest_edge.value = max(slice_size(pixels))
        frames = pixels if pixels.ndim == 4 else pixels[None]
        with self._chunks(frames) as chunks:
            images = [chunk for chunk in chunks if self._is_image(chunk)]
            if len(frames) > 1 and len(images) != 1:
                raise EngineError(
                    f"llama.cpp does not encode {len(frames)} frames of a video together",
                    f"evaluate it in another format, or update llama.cpp; {ggml_library.INSTALL_HINT}",
                )
            first = self._first_image(chunks)
            size = self._size(first, len(frames))
            if len(frames) > 1 and size != slice_size(pixels):
                raise EngineError(
                    f"llama.cpp resizes frames of {frames.shape[2]}x{frames.shape[1]} pixels to {size[1]}x{size[0]},"
                    " because the mmproj file has the bounds of images",
                    "use videos with larger frames or fewer of them, or measure them in another format",
                )
            return self._embeddings(first), size

    def encode_image(self, pixels: NDArray[np.uint8]) -> list[tuple[Chunk, Grid | None]]:
        """Convert an image uint8 RGB [height, width, 3] to chunks, sliced and resized by llama.cpp.

        Returns marker tokens int32 [length], and embeddings float32 [tokens, input size] with their grid, alternating.

        Raises:
            EngineError: llama.cpp rejected the image.
        """
        if self._slice_side is not None:
            self._slice_side.value = self._default_side
        if self._longest_edge is not None:
            self._longest_edge.value = self._default_longest_edge
        with self._chunks(pixels[None]) as chunks:
            return [self._read_chunk(chunk) for chunk in chunks]

    def encode_audio(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert mono samples at 16 kHz, float32 [samples], to embeddings float32 [tokens, input size].

        The tokens are those of whole segments of 30 seconds, also of the silence that pads the last one.

        Raises:
            EngineError: the file has no audio encoder, or llama.cpp rejected the audio.
        """
        if not self._engine("mtmd_support_audio", self._context):
            raise EngineError("the mmproj file has no audio encoder", NO_AUDIO_HINT)
        data = np.ascontiguousarray(samples, np.float32)
        bitmap = self._engine("mtmd_bitmap_init_from_audio", len(data), data.ctypes.data_as(FLOATS))
        with self._tokenized([bitmap], f"audio of {len(data):,} samples") as chunks:
            segments = [self._embeddings(one) for one in chunks if self._type(one) == AUDIO_CHUNK_TYPE]
        before, after = self._audio_markers
        return np.concatenate([one[before : len(one) - after] for one in segments])

    def _read_chunk(self, chunk: int) -> tuple[Chunk, Grid | None]:
        if self._is_image(chunk):
            embeddings = self._embeddings(chunk)
            return embeddings, token_grid(self._size(chunk), len(embeddings))
        count = SIZE()
        tokens = self._engine("mtmd_input_chunk_get_tokens_text", chunk, ctypes.byref(count))
        return np.ctypeslib.as_array(tokens, shape=(count.value,)).copy(), None

    def _embeddings(self, chunk: int) -> NDArray[np.float32]:
        if self._engine("mtmd_encode_chunk", self._context, chunk):
            raise self._engine.error("llama.cpp could not encode an image or audio")
        shape = (self._engine("mtmd_input_chunk_get_n_tokens", chunk), self._width)
        output = self._engine("mtmd_get_output_embd", self._context)
        embeddings: NDArray[np.float32] = np.ctypeslib.as_array(output, shape=shape)
        return embeddings.copy()

    def _find_slice_side(self, default: int) -> ctypes.c_int32 | None:
        """Return the slice size variable of llama.cpp after a test of its effect; None if it is not exported."""
        address = self._hparams_address()
        if address is None:
            return None
        side = INT.from_address(address)
        if side.value != default:
            return None
        side.value = 2 * default
        moved = self._probed_side() == 2 * default
        side.value = default
        return side if moved else None

    def _hparams_address(self) -> int | None:
        clip = POINTER.from_address(self._context).value  # the first field of mtmd_context
        address: int | None = self._engine.optional(CLIP_HPARAMS_SYMBOL, POINTER, POINTER)(clip)
        return address

    def _find_longest_edge(self, side: int) -> ctypes.c_int32 | None:
        """Return the longest edge variable of llama.cpp after a test of its effect; None if images have one tile.

        Raises:
            EngineError: the variable is not found, so that no tile could be encoded unchanged.
        """
        tiles = self._probed_images() - 1  # the last one is the whole image
        address = self._hparams_address() if tiles > 1 else None
        for field in range(address + 4, address + MAX_HPARAMS_NBYTES, 4) if address else ():
            edge = INT.from_address(field)
            if ceil((original := edge.value) / side) != isqrt(tiles):
                continue
            edge.value = side
            is_found = self._probed_images() == 2
            edge.value = original
            if is_found:
                return edge
        if tiles > 1:
            raise EngineError("the image sizes of llama.cpp have an unknown layout", ggml_library.INSTALL_HINT)
        return None

    def _probed_images(self) -> int:
        """Return the number of images that llama.cpp cuts a small one into."""
        with self._chunks(PROBE_IMAGE[None]) as chunks:
            return sum(map(self._is_image, chunks))

    def _probed_side(self) -> int:
        with self._chunks(PROBE_IMAGE[None]) as chunks:
            height, width = self._size(self._first_image(chunks))
        if height != width:
            raise EngineError(f"llama.cpp resized a square image to {width}x{height}", ggml_library.INSTALL_HINT)
        return height

    @contextmanager
    def _chunks(self, frames: NDArray[np.uint8]) -> Iterator[list[int]]:
        """Tokenize an image, or frames uint8 RGB [frames, height, width, 3] that are encoded together."""
        count, height, width, _ = frames.shape
        bitmaps = [self._engine("mtmd_bitmap_init", width, height, frame.tobytes()) for frame in frames]
        for bitmap in bitmaps:
            self._engine("mtmd_bitmap_set_mergeable", bitmap, count > 1)
        with self._tokenized(bitmaps, f"an image of {width}x{height}") as chunks:
            yield chunks

    @contextmanager
    def _tokenized(self, bitmaps: Sequence[int], name: str) -> Iterator[list[int]]:
        """Yield the chunks of images or audio, which are freed with them; `name` is for errors."""
        chunks, count = self._engine("mtmd_input_chunks_init"), len(bitmaps)
        try:
            marker = ctypes.string_at(self._engine("mtmd_default_marker")) * count
            text, pointers = InputText(marker, len(marker), False, True), (POINTER * count)(*bitmaps)
            if self._engine("mtmd_tokenize", self._context, chunks, ctypes.byref(text), pointers, count):
                raise self._engine.error(f"llama.cpp could not prepare {name}")
            number = self._engine("mtmd_input_chunks_size", chunks)
            yield [self._engine("mtmd_input_chunks_get", chunks, index) for index in range(number)]
        finally:
            for bitmap in bitmaps:
                self._engine("mtmd_bitmap_free", bitmap)
            self._engine("mtmd_input_chunks_free", chunks)

    def _first_image(self, chunks: list[int]) -> int:
        found = next((chunk for chunk in chunks if self._is_image(chunk)), None)
        if found is None:
            raise self._engine.error("llama.cpp returned no image chunk")
        return found

    def _is_image(self, chunk: int) -> bool:
        return self._type(chunk) == IMAGE_CHUNK_TYPE

    def _type(self, chunk: int) -> int:
        kind: int = self._engine("mtmd_input_chunk_get_type", chunk)
        return kind

    def _size(self, chunk: int, frames: int = 1) -> tuple[int, int]:
        nbytes = SIZE()
        self._engine("mtmd_input_chunk_save", chunk, None, 0, ctypes.byref(nbytes))
        saved = ctypes.create_string_buffer(nbytes.value)
        self._engine("mtmd_input_chunk_save", chunk, saved, nbytes.value, None)
        size = image_chunk_size(saved.raw, frames)
        if size is None:
            raise EngineError("the image chunks of llama.cpp have an unknown layout", ggml_library.INSTALL_HINT)
        return size[1], size[0]


class PrecomputedImages:
    """Embeddings of slices and audio that were encoded earlier; replaces a `VisionEncoder`."""

    def __init__(self, embeddings: SliceEmbeddings) -> None:
        self._embeddings = iter(embeddings)

    def encode_slice(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the embeddings [tokens, input size] of the next slice, and its (height, width)."""
        return next(self._embeddings), slice_size(pixels)

    def encode_audio(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the embeddings [tokens, input size] of the next audio."""
        return next(self._embeddings)

    def close(self) -> None:
        """Do nothing: no encoder is loaded."""
