"""The language model in llama.cpp: decodes tokens and embeddings to logits."""

import ctypes
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import EngineError
from mcpmq.formats.kv_cache import F16_CACHE, F32_CACHE, KvCache
from mcpmq.runners.llamacpp import (
    CACHE_TYPES_OFFSET,
    EVAL_CALLBACK,
    EVAL_CALLBACK_OFFSET,
    FLAGS,
    FLASH_ATTENTION_OFFSET,
    FLOATS,
    INT,
    INTS,
    POINTER,
    VOCAB_ONLY_FLAGS,
    VOCAB_ONLY_OFFSET,
    Batch,
    Chunk,
    LlamaCpp,
    OpaqueParams,
)
from mcpmq.system import ggml_library

MAX_BATCH_TOKENS = 2048  # per call of llama_decode; the default of llama.cpp
MAX_METADATA_NBYTES = 256  # of a metadata value
CONTEXT_MULTIPLE = 256  # llama.cpp rounds the context length up to a multiple
BIDIRECTIONAL_ARCHITECTURES = {"gemma3"}  # the embeddings of an image attend to one another in both directions
MROPE_TYPES = {8, 40}  # llama_rope_type: MROPE and IMROPE (interleaved); an embedding has four positions
LAYER_OUTPUT_PREFIX = "l_out-"  # tensor name of a layer's output, before the layer number

LayerObserver = Callable[[int, NDArray[np.float32]], None]  # receives a layer number and the layer's output


class LanguageModel:
    """A loaded language model."""

    def __init__(self, engine: LlamaCpp, file: Path, *, vocab_only: bool = False) -> None:
        """Load the file, or only its vocabulary, which is enough to load an mmproj file.

        Raises:
            EngineError: llama.cpp cannot load the file.
        """
        engine.record_log()
        parameters = engine("llama_model_default_params")
        if vocab_only:
            parameters.write_uint32(VOCAB_ONLY_OFFSET, VOCAB_ONLY_FLAGS)
        pointer = engine("llama_model_load_from_file", str(file).encode(), parameters)
        if not pointer:
            raise engine.error(f"llama.cpp cannot load `{file}`", "export the artifact again")
        self.engine, self.pointer = engine, pointer
        self.vocab_size: int = engine("llama_vocab_n_tokens", engine("llama_model_get_vocab", pointer))
        self.bidirectional_images = self._metadata("general.architecture") in BIDIRECTIONAL_ARCHITECTURES
        self.uses_mrope = engine("llama_model_rope_type", pointer) in MROPE_TYPES
        self._finalizer = weakref.finalize(self, engine, "llama_model_free", pointer)
        # Includes the features that DeepStack adds to later layers; llama.cpp returns 0 for the vocabulary only.
        self.input_embedding_size: int = engine("llama_model_n_embd_inp", pointer) or self._metadata_embedding_size()

    def _metadata_embedding_size(self) -> int:
        architecture = self._metadata("general.architecture")
        deepstack_layers = int(self._metadata(f"{architecture}.n_deepstack_layers", "0"))
        return int(self._metadata(f"{architecture}.embedding_length")) * (1 + deepstack_layers)

    @property
    def context_length(self) -> int:
        """Return the number of tokens that the model was trained with."""
        return int(self._metadata(f"{self._metadata('general.architecture')}.context_length"))

    def _metadata(self, key: str, default: str | None = None) -> str:
        """Return a metadata value of the file."""
        text = ctypes.create_string_buffer(MAX_METADATA_NBYTES)
        if self.engine("llama_model_meta_val_str", self.pointer, key.encode(), text, MAX_METADATA_NBYTES) >= 0:
            return text.value.decode()
        if default is None:
            raise EngineError(f"the language model file has no metadata `{key}`", "export the artifact again")
        return default

    def close(self) -> None:
        """Free the memory."""
        self._finalizer()


class Context:
    """A KV cache of a language model for one sequence at a time, of bounded length."""

    def __init__(
        self,
        model: LanguageModel,
        max_tokens: int,
        threads: int,
        f32_attention: bool,
        layer_observer: LayerObserver | None = None,
        cache: KvCache = F16_CACHE,
    ) -> None:
        """Allocate a cache of `max_tokens` with the types of `cache`.

        `f32_attention` replaces the cache by one in F32, and the flash attention of llama.cpp.

        Raises:
            EngineError: the memory is not sufficient, or llama.cpp read other sizes than were set.
        """
        engine, length = model.engine, -(-max_tokens // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE
        batch = min(length, MAX_BATCH_TOKENS)
        engine.record_log()
        parameters = _context_parameters(engine, length, batch, f32_attention, cache)
        if layer_observer:
            self._callback = _eval_callback(engine, layer_observer)  # llama.cpp calls it until the context is freed
            parameters.write_pointer(EVAL_CALLBACK_OFFSET, ctypes.cast(self._callback, POINTER).value)
        pointer = engine("llama_init_from_model", model.pointer, parameters)
        if not pointer:
            raise engine.error(f"llama.cpp cannot allocate a context of {length:,} tokens")
        self._engine, self._model, self._pointer, self._batch = engine, model, pointer, batch
        self._finalizer = weakref.finalize(self, engine, "llama_free", pointer)
        engine("llama_set_n_threads", pointer, threads, threads)
        self._check_sizes((length, batch, threads))

    def _check_sizes(self, expected: tuple[int, int, int]) -> None:
        names = ("llama_n_ctx", "llama_n_batch", "llama_n_threads")
        found = tuple(self._engine(name, self._pointer) for name in names)
        if found != expected:
            raise EngineError(f"llama.cpp read the context sizes {expected} as {found}", ggml_library.INSTALL_HINT)

    def close(self) -> None:
        """Free the memory."""
        self._finalizer()

    def clear(self) -> None:
        """Clear the cache."""
        self._engine("llama_memory_clear", self._engine("llama_get_memory", self._pointer), True)

    def decode(
        self, chunk: Chunk, positions: NDArray[np.int64], logits_mask: NDArray[np.bool_]
    ) -> Iterator[NDArray[np.float32]]:
        """Decode a chunk at positions [axes, length]; text tokens use the first axis only.

        Yields logits float32 [vocab_size] for each True in `logits_mask` [length]; the array is memory of llama.cpp
        that the next call overwrites.

        Raises:
            EngineError: llama.cpp failed.
        """
        for first in range(0, len(chunk), self._batch):
            part = slice(first, first + self._batch)
            yield from self._decode_batch(np.ascontiguousarray(chunk[part]), positions[:, part], logits_mask[part])

    def _decode_batch(
        self, chunk: Chunk, positions: NDArray[np.int64], logits_mask: NDArray[np.bool_]
    ) -> Iterator[NDArray[np.float32]]:
        count, start = len(chunk), positions[0, 0]
        sequence = INT(0)
        sequences = np.full(count, ctypes.addressof(sequence), np.uintp)
        axes = np.ascontiguousarray(positions[: 1 if chunk.ndim == 1 else None], np.int32)
        ones, flags = np.ones(count, np.int32), logits_mask.astype(np.int8)
        batch = Batch(
            n_tokens=count,
            token=chunk.ctypes.data_as(INTS) if chunk.ndim == 1 else None,
            embd=chunk.ctypes.data_as(FLOATS) if chunk.ndim == 2 else None,
            pos=axes.ctypes.data_as(INTS),
            n_seq_id=ones.ctypes.data_as(INTS),
            seq_id=sequences.ctypes.data_as(ctypes.POINTER(INTS)),
            logits=flags.ctypes.data_as(FLAGS),
        )
        if status := self._decode(batch, is_image=chunk.ndim == 2):
            raise self._engine.error(f"llama.cpp failed with {status} at token {start:,}")
        for index in np.flatnonzero(logits_mask):
            logits = self._engine("llama_get_logits_ith", self._pointer, int(index))
            if not logits:
                raise self._engine.error(f"llama.cpp returned no logits at token {start + index:,}")
            yield np.ctypeslib.as_array(logits, shape=(self._model.vocab_size,))

    def _decode(self, batch: Batch, is_image: bool) -> int:
        """Decode a batch, an image without a causal mask if the model has none for images; return the status."""
        if not (is_image and self._model.bidirectional_images):
            return int(self._engine("llama_decode", self._pointer, batch))
        self._engine("llama_set_causal_attn", self._pointer, False)
        status = int(self._engine("llama_decode", self._pointer, batch))
        self._engine("llama_set_causal_attn", self._pointer, True)
        return status


def _context_parameters(engine: LlamaCpp, length: int, batch: int, f32_attention: bool, cache: KvCache) -> OpaqueParams:
    parameters: OpaqueParams = engine("llama_context_default_params")
    parameters.write_uint32(0, length, batch)
    parameters.write_uint32(CACHE_TYPES_OFFSET, *(F32_CACHE if f32_attention else cache).ids)
    if f32_attention or cache.needs_flash_attention:
        parameters.write_uint32(FLASH_ATTENTION_OFFSET, int(not f32_attention))
    return parameters


def _eval_callback(engine: LlamaCpp, observe: LayerObserver) -> Any:
    def evaluated(tensor: int, is_query: bool, _: object) -> bool:
        """Request the value of a tensor (query), then receive it; only layer outputs are requested."""
        name: str = engine("ggml_get_name", tensor).decode(errors="replace")
        if not name.startswith(LAYER_OUTPUT_PREFIX):
            return not is_query
        if not is_query:
            count = engine("ggml_nelements", tensor)
            values = np.ctypeslib.as_array(engine("ggml_get_data_f32", tensor), shape=(count,))
            observe(int(name.removeprefix(LAYER_OUTPUT_PREFIX)), values)
        return True

    return EVAL_CALLBACK(evaluated)
