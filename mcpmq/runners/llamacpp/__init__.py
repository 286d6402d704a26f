"""Bindings to the C functions of llama.cpp that the xllamacpp wheel exports, with a layout check at start-up.

Parameter structures change between versions, so they are opaque: llama.cpp fills in the defaults, and only fields
whose offset was checked are set.
"""

import ctypes
import struct
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import EngineError
from mcpmq.system import ggml_library

MAX_PARAMS_NBYTES = 1024  # larger than every parameter structure; llama.cpp accesses only its own bytes
AUTO = 0xFFFFFFFF  # -1
# Offsets of fields, and the default values of the fields from there on.
CONTEXT_LAYOUT = {
    0: (512, 2048, 512, 1),  # n_ctx, n_batch, n_ubatch, n_seq_max
    40: (AUTO,) * 4,  # types of rope scaling, pooling and attention; flash attention
    88: (0,) * 4,  # evaluation callback and its user data
    104: (1, 1),  # types of the cached keys and values: F16
}
FLASH_ATTENTION_OFFSET, EVAL_CALLBACK_OFFSET, CACHE_TYPES_OFFSET = 52, 88, 104
MODEL_LAYOUT = {16: (AUTO, 1, AUTO, 1), 72: (1 << 16,)}  # number of offloaded layers, load options; vocab_only
VOCAB_ONLY_OFFSET, VOCAB_ONLY_FLAGS = 72, 1 << 16 | 1
MTMD_LAYOUT = {16: (1, 4), 40: (AUTO, 1)}  # timings, threads; flash attention, warm-up
MEDIA_MARKER_OFFSET, MTMD_THREADS_OFFSET, MTMD_FLASH_ATTENTION_OFFSET = 32, 20, 40
CHUNK_VERSION = 2
IMAGE_CHUNK_TYPE, AUDIO_CHUNK_TYPE = 1, 2
LOG_LEVEL_WARN, LOG_LEVEL_CONT = 3, 5  # ggml_log_level: WARN 3, ERROR 4, CONT 5 (progress dots)

Chunk = NDArray[np.int32 | np.float32]  # tokens [length], or embeddings [length, input size]
POINTER, TEXT, FLAG = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_bool
INT, UINT, SIZE = ctypes.c_int32, ctypes.c_uint32, ctypes.c_size_t
FLOATS, INTS, FLAGS = (ctypes.POINTER(kind) for kind in (ctypes.c_float, ctypes.c_int32, ctypes.c_int8))
EVAL_CALLBACK = ctypes.CFUNCTYPE(FLAG, POINTER, FLAG, POINTER)  # ggml_backend_sched_eval_callback
LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, TEXT, POINTER)


class OpaqueParams(ctypes.Structure):
    """A parameter structure that is passed by value; only fields with a checked offset are accessed."""

    _fields_ = (("bytes", ctypes.c_uint8 * MAX_PARAMS_NBYTES),)

    def read_uint32(self, offset: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}I", self, offset)

    def write_uint32(self, offset: int, *values: int) -> None:
        struct.pack_into(f"<{len(values)}I", self, offset, *values)

    def write_pointer(self, offset: int, value: int | None) -> None:
        struct.pack_into("<Q", self, offset, value or 0)


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", INT),
        ("token", INTS),
        ("embd", FLOATS),
        ("pos", INTS),
        ("n_seq_id", INTS),
        ("seq_id", ctypes.POINTER(INTS)),
        ("logits", FLAGS),
    )


class InputText(ctypes.Structure):
    """mtmd_input_text."""

    _fields_ = (("text", TEXT), ("text_len", SIZE), ("add_special", FLAG), ("parse_special", FLAG))


# Name -> result type, argument types. Headers: llama.h and mtmd.h of llama.cpp.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "llama_backend_init": (None,),
    "llama_log_set": (None, LOG_CALLBACK, POINTER),
    "mtmd_log_set": (None, LOG_CALLBACK, POINTER),
    "mtmd_helper_log_set": (None, LOG_CALLBACK, POINTER),
    "llama_model_default_params": (OpaqueParams,),
    "llama_context_default_params": (OpaqueParams,),
    "mtmd_context_params_default": (OpaqueParams,),
    "llama_model_load_from_file": (POINTER, TEXT, OpaqueParams),
    "llama_model_free": (None, POINTER),
    "llama_model_n_embd": (INT, POINTER),
    "llama_model_n_embd_inp": (INT, POINTER),
    "llama_model_rope_type": (INT, POINTER),
    "llama_model_meta_val_str": (INT, POINTER, TEXT, TEXT, SIZE),
    "llama_model_get_vocab": (POINTER, POINTER),
    "llama_vocab_n_tokens": (INT, POINTER),
    "llama_init_from_model": (POINTER, POINTER, OpaqueParams),
    "llama_free": (None, POINTER),
    "llama_n_ctx": (UINT, POINTER),
    "llama_n_batch": (UINT, POINTER),
    "llama_n_threads": (INT, POINTER),
    "llama_set_causal_attn": (None, POINTER, FLAG),
    "llama_set_n_threads": (None, POINTER, INT, INT),
    "llama_get_memory": (POINTER, POINTER),
    "llama_memory_clear": (None, POINTER, FLAG),
    "llama_decode": (INT, POINTER, Batch),
    "llama_get_logits_ith": (FLOATS, POINTER, INT),
    "ggml_get_name": (TEXT, POINTER),
    "ggml_nelements": (ctypes.c_int64, POINTER),
    "ggml_get_data_f32": (FLOATS, POINTER),
    "mtmd_default_marker": (POINTER,),
    "mtmd_init_from_file": (POINTER, TEXT, POINTER, OpaqueParams),
    "mtmd_free": (None, POINTER),
    "mtmd_support_vision": (FLAG, POINTER),
    "mtmd_support_audio": (FLAG, POINTER),
    "mtmd_bitmap_init": (POINTER, UINT, UINT, TEXT),
    "mtmd_bitmap_init_from_audio": (POINTER, SIZE, FLOATS),
    "mtmd_bitmap_free": (None, POINTER),
    "mtmd_bitmap_set_mergeable": (None, POINTER, FLAG),
    "mtmd_tokenize": (INT, POINTER, POINTER, ctypes.POINTER(InputText), ctypes.POINTER(POINTER), SIZE),
    "mtmd_input_chunks_init": (POINTER,),
    "mtmd_input_chunks_free": (None, POINTER),
    "mtmd_input_chunks_size": (SIZE, POINTER),
    "mtmd_input_chunks_get": (POINTER, POINTER, SIZE),
    "mtmd_input_chunk_get_type": (INT, POINTER),
    "mtmd_input_chunk_get_n_tokens": (SIZE, POINTER),
    "mtmd_input_chunk_get_tokens_text": (INTS, POINTER, ctypes.POINTER(SIZE)),
    "mtmd_input_chunk_save": (INT, POINTER, TEXT, SIZE, ctypes.POINTER(SIZE)),
    "mtmd_encode_chunk": (INT, POINTER, POINTER),
    "mtmd_get_output_embd": (FLOATS, POINTER),
}


RECENT_LOG: deque[str] = deque(maxlen=20)  # the last messages, for errors


def _record(level: int, text: bytes, _: object) -> None:
    if LOG_LEVEL_WARN <= level < LOG_LEVEL_CONT:
        RECENT_LOG.append(text.decode(errors="replace"))


LOG_HANDLER = LOG_CALLBACK(_record)  # a global, because llama.cpp calls it until the process ends


class LlamaCpp:
    """llama.cpp functions, called by name; log messages appear in errors only."""

    def __init__(self) -> None:
        self._functions = ggml_library.load_library()
        for name, (result, *arguments) in SIGNATURES.items():
            function = getattr(self._functions, name)
            function.restype, function.argtypes = result, arguments
        self._check_layouts()
        self.record_log()
        self("llama_backend_init")

    def __call__(self, name: str, *arguments: object) -> Any:
        return getattr(self._functions, name)(*arguments)

    def record_log(self) -> None:
        """Receive log messages for errors, also after a server of this process, which prints them itself."""
        for name in ("llama_log_set", "mtmd_log_set", "mtmd_helper_log_set"):
            self(name, LOG_HANDLER, None)

    def optional(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        """Return a function that some builds of the wheel do not export; there it returns None."""
        try:
            function = self._functions[name]
        except AttributeError:
            return lambda *_: None
        function.restype, function.argtypes = result, arguments
        return function

    def error(self, message: str, hint: str = "") -> EngineError:
        """Return an error that ends with the last log messages of llama.cpp."""
        log = "".join(RECENT_LOG).strip()
        RECENT_LOG.clear()
        return EngineError(f"{message}; log of llama.cpp:\n{log}" if log else message, hint)

    def _check_layouts(self) -> None:
        """Raise EngineError if the parameter structures differ from those of the pinned version."""
        context, image = self("llama_context_default_params"), self("mtmd_context_params_default")
        layouts = (
            (self("llama_model_default_params"), MODEL_LAYOUT),
            (context, CONTEXT_LAYOUT),
            (image, MTMD_LAYOUT),
        )
        fields = [
            (parameters.read_uint32(offset, len(defaults)), defaults)
            for parameters, layout in layouts
            for offset, defaults in layout.items()
        ]
        fields.append((struct.unpack_from("<Q", image, MEDIA_MARKER_OFFSET), (self("mtmd_default_marker"),)))
        if any(found != expected for found, expected in fields):
            raise EngineError("the parameter structures of llama.cpp have an unknown layout", ggml_library.INSTALL_HINT)


@cache
def llamacpp() -> LlamaCpp:
    """Return llama.cpp, loaded and checked once per process.

    Raises:
        EngineError: the version of llama.cpp is not supported.
    """
    return LlamaCpp()


def image_chunk_size(saved: bytes, frames: int = 1) -> tuple[int, int] | None:
    """Return the (width, height) of the images in a serialized chunk, or None if the layout is unknown.

    Layout, from mtmd_input_chunk::serialize in mtmd.cpp: version, chunk type, number of texts (0), image flag (1);
    number of tokens, position type, three more numbers, id; then an entry for each of the `frames`: two flags, a
    number, width, height.
    """
    head = struct.Struct("<QIQBIIIIIQ")
    if len(saved) < head.size:
        return None
    version, kind, texts, has_image, *_, id_nbytes = head.unpack_from(saved)
    entry = struct.Struct("<BQBBiii")
    known = (version, kind, texts, has_image) == (CHUNK_VERSION, IMAGE_CHUNK_TYPE, 0, 1)
    if not known or len(saved) < head.size + id_nbytes + entry.size:
        return None
    is_audio, entries, *_, width, height = entry.unpack_from(saved, head.size + id_nbytes)
    return (width, height) if (is_audio, entries) == (0, frames) else None
