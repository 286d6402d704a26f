"""llama.cpp's C functions as the xllamacpp wheel exports them, checked at start-up to be what this room takes them for.

Parameter structures change from version to version, so they stay opaque: the engine fills in its defaults, and only the
few fields whose place was checked are set.
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

OPAQUE_NBYTES = 1024  # more than any of the structures has; the engine touches what is its own
AUTOMATIC = 0xFFFFFFFF  # -1
# Offset of fields and the engine's defaults for them, in the order of the fields.
CONTEXT_LAYOUT = {
    0: (512, 2048, 512, 1),  # n_ctx, n_batch, n_ubatch, n_seq_max
    40: (AUTOMATIC,) * 4,  # types of rope scaling, pooling and attention; flash attention
    88: (0,) * 4,  # evaluation callback and what it is given
    104: (1, 1),  # types of the cached keys and values: F16
}
FLASH_ATTENTION, EVALUATION_CALLBACK, CACHE_TYPES = 52, 88, 104
MODEL_LAYOUT = {16: (AUTOMATIC, 1, AUTOMATIC, 1), 72: (1 << 16,)}  # layers elsewhere, ways to load; vocabulary alone
VOCABULARY_ALONE, ONLY = 72, 1 << 16 | 1
IMAGE_LAYOUT = {16: (1, 4), 40: (AUTOMATIC, 1)}  # timings, threads; flash attention, warm-up
IMAGE_MARKER, IMAGE_THREADS, IMAGE_FLASH_ATTENTION = 32, 20, 40
CHUNK_VERSION = 2
IMAGE_CHUNK = 1
WARNING, CONTINUED = 3, 5  # of ggml_log_level: errors lie between; what continues a line is progress dots

Piece = NDArray[np.int32 | np.float32]  # tokens [length], or embeddings [length, hidden]
POINTER, TEXT, FLAG = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_bool
INT, UINT, SIZE = ctypes.c_int32, ctypes.c_uint32, ctypes.c_size_t
FLOATS, INTS, FLAGS = (ctypes.POINTER(kind) for kind in (ctypes.c_float, ctypes.c_int32, ctypes.c_int8))
EVALUATED = ctypes.CFUNCTYPE(FLAG, POINTER, FLAG, POINTER)  # ggml_backend_sched_eval_callback
LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, TEXT, POINTER)


class Opaque(ctypes.Structure):
    """A parameter structure passed by value, of which only checked fields are known."""

    _fields_ = (("bytes", ctypes.c_uint8 * OPAQUE_NBYTES),)

    def integers(self, offset: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}I", self, offset)

    def put(self, offset: int, *values: int) -> None:
        struct.pack_into(f"<{len(values)}I", self, offset, *values)

    def put_pointer(self, offset: int, value: int | None) -> None:
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


# Name -> what it returns, what it takes. Headers: llama.h and mtmd.h of llama.cpp.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "llama_backend_init": (None,),
    "llama_log_set": (None, LOG_CALLBACK, POINTER),
    "mtmd_log_set": (None, LOG_CALLBACK, POINTER),
    "mtmd_helper_log_set": (None, LOG_CALLBACK, POINTER),
    "llama_model_default_params": (Opaque,),
    "llama_context_default_params": (Opaque,),
    "mtmd_context_params_default": (Opaque,),
    "llama_model_load_from_file": (POINTER, TEXT, Opaque),
    "llama_model_free": (None, POINTER),
    "llama_model_n_embd": (INT, POINTER),
    "llama_model_n_embd_inp": (INT, POINTER),
    "llama_model_rope_type": (INT, POINTER),
    "llama_model_meta_val_str": (INT, POINTER, TEXT, TEXT, SIZE),
    "llama_model_get_vocab": (POINTER, POINTER),
    "llama_vocab_n_tokens": (INT, POINTER),
    "llama_init_from_model": (POINTER, POINTER, Opaque),
    "llama_free": (None, POINTER),
    "llama_n_ctx": (UINT, POINTER),
    "llama_n_batch": (UINT, POINTER),
    "llama_n_threads": (INT, POINTER),
    "llama_set_n_threads": (None, POINTER, INT, INT),
    "llama_get_memory": (POINTER, POINTER),
    "llama_memory_clear": (None, POINTER, FLAG),
    "llama_decode": (INT, POINTER, Batch),
    "llama_get_logits_ith": (FLOATS, POINTER, INT),
    "ggml_get_name": (TEXT, POINTER),
    "ggml_nelements": (ctypes.c_int64, POINTER),
    "ggml_get_data_f32": (FLOATS, POINTER),
    "mtmd_default_marker": (POINTER,),
    "mtmd_init_from_file": (POINTER, TEXT, POINTER, Opaque),
    "mtmd_free": (None, POINTER),
    "mtmd_support_vision": (FLAG, POINTER),
    "mtmd_bitmap_init": (POINTER, UINT, UINT, TEXT),
    "mtmd_bitmap_free": (None, POINTER),
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


SAID: deque[str] = deque(maxlen=20)  # what is kept for errors


def _keep(level: int, text: bytes, _: object) -> None:
    if WARNING <= level < CONTINUED:
        SAID.append(text.decode(errors="replace"))


KEEP = LOG_CALLBACK(_keep)  # the module's, for the engine calls it as long as the process lives


class LlamaCpp:
    """The functions by their names; what the engine says is shown in errors and nowhere else."""

    def __init__(self) -> None:
        self._functions = ggml_library.library()
        for name, (returned, *taken) in SIGNATURES.items():
            function = getattr(self._functions, name)
            function.restype, function.argtypes = returned, taken
        self._check_layouts()
        for name in ("llama_log_set", "mtmd_log_set", "mtmd_helper_log_set"):
            self(name, KEEP, None)
        self("llama_backend_init")

    def __call__(self, name: str, *arguments: object) -> Any:
        return getattr(self._functions, name)(*arguments)

    def optional(self, name: str, returned: Any, *taken: Any) -> Callable[..., Any]:
        """A function that not every build of the wheel shows; it gives None there."""
        try:
            function = self._functions[name]
        except AttributeError:
            return lambda *_: None
        function.restype, function.argtypes = returned, taken
        return function

    def error(self, message: str, hint: str = "") -> EngineError:
        """An error that ends with what the engine said last."""
        said = "".join(SAID).strip()
        SAID.clear()
        return EngineError(f"{message}; llama.cpp says:\n{said}" if said else message, hint)

    def _check_layouts(self) -> None:
        """Raise EngineError if the parameter structures are not laid out as the pinned version lays them out."""
        context, image = self("llama_context_default_params"), self("mtmd_context_params_default")
        layouts = (
            (self("llama_model_default_params"), MODEL_LAYOUT),
            (context, CONTEXT_LAYOUT),
            (image, IMAGE_LAYOUT),
        )
        fields = [
            (parameters.integers(offset, len(defaults)), defaults)
            for parameters, layout in layouts
            for offset, defaults in layout.items()
        ]
        fields.append((struct.unpack_from("<Q", image, IMAGE_MARKER), (self("mtmd_default_marker"),)))
        if any(found != expected for found, expected in fields):
            raise EngineError("llama.cpp lays out its parameters in a way that is not known here", ggml_library.INSTALL)


@cache
def llamacpp() -> LlamaCpp:
    """The engine, loaded and checked once.

    Raises:
        EngineError: it is not the version that mcpmq knows.
    """
    return LlamaCpp()


def chunk_size(saved: bytes) -> tuple[int, int] | None:
    """(width, height) of the one image in a saved chunk, None if it is laid out in no known way.

    Layout: mtmd_input_chunk::serialize in mtmd.cpp. Version, type, no text, one image: its tokens, its position
    type, three numbers more, its id; then one entry: two flags, a number, width, height.
    """
    head = struct.Struct("<QIQBIIIIIQ")
    if len(saved) < head.size:
        return None
    version, kind, texts, has_image, *_, id_nbytes = head.unpack_from(saved)
    entry = struct.Struct("<BQBBiii")
    known = (version, kind, texts, has_image) == (CHUNK_VERSION, IMAGE_CHUNK, 0, 1)
    if not known or len(saved) < head.size + id_nbytes + entry.size:
        return None
    is_audio, entries, *_, width, height = entry.unpack_from(saved, head.size + id_nbytes)
    return (width, height) if (is_audio, entries) == (0, 1) else None
