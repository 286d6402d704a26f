"""The `mmproj` file in llama.cpp: what a slice of an image becomes, and at which size the engine looked at it."""

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import EngineError
from mcpmq.runners.llamacpp import (
    IMAGE_CHUNK,
    IMAGE_FLASH_ATTENTION,
    IMAGE_THREADS,
    INT,
    POINTER,
    SIZE,
    InputText,
    LlamaCpp,
    Piece,
    chunk_size,
)
from mcpmq.runners.llamacpp.language import LanguageModel
from mcpmq.system import ggml_library

CLIP_SIZES = "_Z16clip_get_hparamsPK8clip_ctx"  # returns the sizes of a vision tower; the first is a slice's side
Grid = tuple[int, int]  # rows and columns of tokens
PROBE = np.zeros((8, 8, 3), np.uint8)  # smaller than any slice: the engine resizes it to a square of a slice's side


def grid_of(size: tuple[int, int], tokens: int) -> Grid:
    """Rows and columns of tokens of a slice of (height, width) pixels, each token a square of pixels; of what has no
    such order, as the queries of a resampler have none, a row."""
    side = round(sqrt(size[0] * size[1] / tokens))
    rows, columns = size[0] // side, size[1] // side
    return (rows, columns) if rows * columns == tokens else (1, tokens)


class Sight:
    """A loaded `mmproj` file.

    The engine cuts every image into slices itself, and first takes a look at the whole. Given one slice, that look is
    the slice as it is, if the engine's side of a slice lies between the root of the area and the longer side.
    """

    def __init__(self, engine: LlamaCpp, file: Path, language: LanguageModel, threads: int, exact: bool) -> None:
        """`language` is the model that it belongs to, or its vocabulary; `exact` computes attention in F32.

        Raises:
            EngineError: llama.cpp does not load the file, or saves images in a way that is not known here.
        """
        parameters = engine("mtmd_context_params_default")
        parameters.put(IMAGE_THREADS, threads)
        if exact:
            parameters.put(IMAGE_FLASH_ATTENTION, 0)
        context = engine("mtmd_init_from_file", str(file).encode(), language.pointer, parameters)
        if not context:
            raise engine.error(f"llama.cpp does not load `{file}`", "make the artifact again")
        self._engine, self._context, self._width = engine, context, language.width_of_embeddings
        self._finalizer = weakref.finalize(self, engine, "mtmd_free", context)
        if not engine("mtmd_support_vision", context):
            raise EngineError(f"`{file}` holds nothing that sees", "make the artifact again")
        self._usual_side = self._probed_side()
        self._slice_side = self._find_slice_side(self._usual_side)

    def close(self) -> None:
        """Free the memory."""
        self._finalizer()

    def encode(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Embeddings float32 [tokens, hidden] of a slice uint8 RGB [height, width, 3], and the (height, width) seen.

        Raises:
            EngineError: llama.cpp refused the image.
        """
        if self._slice_side is not None:
            height, width, _ = pixels.shape
            self._slice_side.value = ceil(sqrt(height * width))
        with self._chunks(pixels) as chunks:
            first = self._first_image(chunks)
            return self._embeddings(first), self._size(first)

    def cut(self, pixels: NDArray[np.uint8]) -> list[tuple[Piece, Grid | None]]:
        """What an image uint8 RGB [height, width, 3] becomes when the engine cuts and resizes it as it always does:
        tokens int32 [length] and embeddings float32 [tokens, hidden] by turns, these with their rows and columns.

        Raises:
            EngineError: llama.cpp refused the image.
        """
        if self._slice_side is not None:
            self._slice_side.value = self._usual_side
        with self._chunks(pixels) as chunks:
            return [self._piece(chunk) for chunk in chunks]

    def _piece(self, chunk: int) -> tuple[Piece, Grid | None]:
        if self._is_image(chunk):
            embeddings = self._embeddings(chunk)
            return embeddings, grid_of(self._size(chunk), len(embeddings))
        count = SIZE()
        tokens = self._engine("mtmd_input_chunk_get_tokens_text", chunk, ctypes.byref(count))
        return np.ctypeslib.as_array(tokens, shape=(count.value,)).copy(), None

    def _embeddings(self, chunk: int) -> NDArray[np.float32]:
        if self._engine("mtmd_encode_chunk", self._context, chunk):
            raise self._engine.error("llama.cpp could not encode an image")
        shape = (self._engine("mtmd_input_chunk_get_n_tokens", chunk), self._width)
        seen: NDArray[np.float32] = np.ctypeslib.as_array(
            self._engine("mtmd_get_output_embd", self._context), shape=shape
        )
        return seen.copy()

    def _find_slice_side(self, usual: int) -> ctypes.c_int32 | None:
        """The engine's variable, proved by what it does; None where the wheel does not show it."""
        clip = POINTER.from_address(self._context).value  # the first field of mtmd_context
        address = self._engine.optional(CLIP_SIZES, POINTER, POINTER)(clip)
        if address is None:
            return None
        side = INT.from_address(address)
        if side.value != usual:
            return None
        side.value = 2 * usual
        moved = self._probed_side() == 2 * usual
        side.value = usual
        return side if moved else None

    def _probed_side(self) -> int:
        with self._chunks(PROBE) as chunks:
            height, width = self._size(self._first_image(chunks))
        if height != width:
            raise EngineError(f"llama.cpp looks at a square as {width}x{height}", ggml_library.INSTALL)
        return height

    @contextmanager
    def _chunks(self, pixels: NDArray[np.uint8]) -> Iterator[list[int]]:
        height, width, _ = pixels.shape
        chunks = self._engine("mtmd_input_chunks_init")
        bitmap = self._engine("mtmd_bitmap_init", width, height, pixels.tobytes())
        try:
            marker = ctypes.string_at(self._engine("mtmd_default_marker"))
            text = InputText(marker, len(marker), False, True)
            bitmaps = (POINTER * 1)(bitmap)
            if self._engine("mtmd_tokenize", self._context, chunks, ctypes.byref(text), bitmaps, 1):
                raise self._engine.error(f"llama.cpp could not prepare an image of {width}x{height}")
            count = self._engine("mtmd_input_chunks_size", chunks)
            yield [self._engine("mtmd_input_chunks_get", chunks, number) for number in range(count)]
        finally:
            self._engine("mtmd_bitmap_free", bitmap)
            self._engine("mtmd_input_chunks_free", chunks)

    def _first_image(self, chunks: list[int]) -> int:
        found = next((chunk for chunk in chunks if self._is_image(chunk)), None)
        if found is None:
            raise self._engine.error("llama.cpp made nothing of an image")
        return found

    def _is_image(self, chunk: int) -> bool:
        kind: int = self._engine("mtmd_input_chunk_get_type", chunk)
        return kind == IMAGE_CHUNK

    def _size(self, chunk: int) -> tuple[int, int]:
        nbytes = SIZE()
        self._engine("mtmd_input_chunk_save", chunk, None, 0, ctypes.byref(nbytes))
        saved = ctypes.create_string_buffer(nbytes.value)
        self._engine("mtmd_input_chunk_save", chunk, saved, nbytes.value, None)
        size = chunk_size(saved.raw)
        if size is None:
            raise EngineError("llama.cpp saves images in a way that is not known here", ggml_library.INSTALL)
        return size[1], size[0]
