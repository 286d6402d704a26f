"""The language model's file in llama.cpp: tokens and embeddings in, logits out."""

import ctypes
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import EngineError
from mcpmq.runners.llamacpp import (
    CACHE_TYPES,
    EVALUATED,
    EVALUATION_CALLBACK,
    FLAGS,
    FLASH_ATTENTION,
    FLOATS,
    INT,
    INTS,
    ONLY,
    POINTER,
    VOCABULARY_ALONE,
    Batch,
    LlamaCpp,
    Piece,
)
from mcpmq.system import ggml_library

BATCH_TOKENS = 2048  # at most in one call; the engine's default
METADATA_NBYTES = 256  # of a short value
CONTEXT_MULTIPLE = 256  # the engine rounds its cache up to it
SECTIONED = {8, 40}  # of llama_rope_type: M-RoPE, whose embeddings come with four positions each, and interleaved
OUT_OF_LAYER = "l_out-"  # the engine's name for what a layer gives, before its number

Watch = Callable[[int, NDArray[np.float32]], None]  # gets the number of every layer and all that it gives


class LanguageModel:
    """A loaded language model."""

    def __init__(self, engine: LlamaCpp, file: Path, *, vocabulary_alone: bool = False) -> None:
        """Load the file, or no more of it than a `mmproj` file needs to be loaded beside.

        Raises:
            EngineError: llama.cpp does not load it.
        """
        parameters = engine("llama_model_default_params")
        if vocabulary_alone:
            parameters.put(VOCABULARY_ALONE, ONLY)
        pointer = engine("llama_model_load_from_file", str(file).encode(), parameters)
        if not pointer:
            raise engine.error(f"llama.cpp does not load `{file}`", "make the artifact again")
        self.engine, self.pointer = engine, pointer
        self.vocabulary: int = engine("llama_vocab_n_tokens", engine("llama_model_get_vocab", pointer))
        self.sectioned = engine("llama_model_rope_type", pointer) in SECTIONED
        self._finalizer = weakref.finalize(self, engine, "llama_model_free", pointer)
        # The width of embeddings of images, with what is added behind the first layers.
        self.width_of_embeddings: int = engine("llama_model_n_embd_inp", pointer) or self._told_width()

    def _told_width(self) -> int:
        """The same where nothing but the vocabulary was loaded."""
        architecture = self._said("general.architecture")
        stacked = int(self._said(f"{architecture}.n_deepstack_layers", "0"))
        return int(self._said(f"{architecture}.embedding_length")) * (1 + stacked)

    def _said(self, key: str, otherwise: str | None = None) -> str:
        """A value of the file's metadata."""
        text = ctypes.create_string_buffer(METADATA_NBYTES)
        if self.engine("llama_model_meta_val_str", self.pointer, key.encode(), text, METADATA_NBYTES) >= 0:
            return text.value.decode()
        if otherwise is None:
            raise EngineError(f"the language model's file does not say `{key}`", "make the artifact again")
        return otherwise

    def close(self) -> None:
        """Free the memory."""
        self._finalizer()


class Context:
    """A language model's cache, for sequences of a bounded length; one sequence at a time."""

    def __init__(
        self, model: LanguageModel, tokens: int, threads: int, exact: bool, watch: Watch | None = None
    ) -> None:
        """Make room for `tokens`; `exact` computes attention in F32 where the engine would take F16.

        Raises:
            EngineError: there is not enough memory, or the engine took the sizes for something else.
        """
        engine, length = model.engine, -(-tokens // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE
        parameters = engine("llama_context_default_params")
        batch = min(length, BATCH_TOKENS)
        parameters.put(0, length, batch)
        if exact:
            parameters.put(FLASH_ATTENTION, 0)
            parameters.put(CACHE_TYPES, 0, 0)  # F32
        if watch:
            self._watching = _watching(engine, watch)  # the engine calls it as long as the context lives
            parameters.put_pointer(EVALUATION_CALLBACK, ctypes.cast(self._watching, POINTER).value)
        pointer = engine("llama_init_from_model", model.pointer, parameters)
        if not pointer:
            raise engine.error(f"llama.cpp cannot make room for {length:,} tokens")
        self._engine, self._model, self._pointer, self._batch = engine, model, pointer, batch
        self._finalizer = weakref.finalize(self, engine, "llama_free", pointer)
        engine("llama_set_n_threads", pointer, threads, threads)
        sizes = tuple(engine(name, pointer) for name in ("llama_n_ctx", "llama_n_batch", "llama_n_threads"))
        if sizes != (length, batch, threads):
            raise EngineError(f"llama.cpp took {(length, batch, threads)} for {sizes}", ggml_library.INSTALL)

    def close(self) -> None:
        """Free the memory."""
        self._finalizer()

    def clear(self) -> None:
        """Forget the sequence."""
        self._engine("llama_memory_clear", self._engine("llama_get_memory", self._pointer), True)

    def read(
        self, piece: Piece, positions: NDArray[np.int64], wanted: NDArray[np.bool_]
    ) -> Iterator[NDArray[np.float32]]:
        """Read a piece at positions [axes, length]; of several axes tokens of text need the first only.

        Yields the logits float32 [vocabulary] after each wanted one; they are the engine's own memory.

        Raises:
            EngineError: the engine failed.
        """
        for first in range(0, len(piece), self._batch):
            part = slice(first, first + self._batch)
            yield from self._read_batch(np.ascontiguousarray(piece[part]), positions[:, part], wanted[part])

    def _read_batch(
        self, piece: Piece, positions: NDArray[np.int64], wanted: NDArray[np.bool_]
    ) -> Iterator[NDArray[np.float32]]:
        count, start = len(piece), positions[0, 0]
        sequence = INT(0)
        sequences = np.full(count, ctypes.addressof(sequence), np.uintp)
        places = np.ascontiguousarray(positions[: 1 if piece.ndim == 1 else None], np.int32)
        ones, flags = np.ones(count, np.int32), wanted.astype(np.int8)
        batch = Batch(
            n_tokens=count,
            token=piece.ctypes.data_as(INTS) if piece.ndim == 1 else None,
            embd=piece.ctypes.data_as(FLOATS) if piece.ndim == 2 else None,
            pos=places.ctypes.data_as(INTS),
            n_seq_id=ones.ctypes.data_as(INTS),
            seq_id=sequences.ctypes.data_as(ctypes.POINTER(INTS)),
            logits=flags.ctypes.data_as(FLAGS),
        )
        if status := self._engine("llama_decode", self._pointer, batch):
            raise self._engine.error(f"llama.cpp failed with {status} at token {start:,}")
        for index in np.flatnonzero(wanted):
            logits = self._engine("llama_get_logits_ith", self._pointer, int(index))
            if not logits:
                raise self._engine.error(f"llama.cpp gave no logits at token {start + index:,}")
            yield np.ctypeslib.as_array(logits, shape=(self._model.vocabulary,))


def _watching(engine: LlamaCpp, watch: Watch) -> Any:
    def evaluated(tensor: int, asking: bool, _: object) -> bool:
        name: str = engine("ggml_get_name", tensor).decode(errors="replace")
        if not name.startswith(OUT_OF_LAYER):
            return not asking
        if not asking:
            count = engine("ggml_nelements", tensor)
            values = np.ctypeslib.as_array(engine("ggml_get_data_f32", tensor), shape=(count,))
            watch(int(name.removeprefix(OUT_OF_LAYER)), values)
        return True

    return EVALUATED(evaluated)
