"""Quantize matrices with a type of ik_llama.cpp, in its own environment; this script does not import mcpmq.

python with_ik_llama.py MATRICES.safetensors VALUES.safetensors FACTS.json iq4_kt

MATRICES has a weight, float32 [rows, columns], and the mean squares of its inputs, float32 [columns], for every name:
`NAME.weight` and `NAME.importance`. VALUES has the values of the blocks, float32, by name.
"""

import ctypes
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

NUM_TYPES = 160
SIZES = (ctypes.c_int64,) * 3
POINTER = ctypes.c_void_p


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", POINTER), ("no_alloc", ctypes.c_bool))


def open_library() -> ctypes.CDLL:
    """Load the library and its tables; importing the package would load a second copy."""
    package = importlib.util.find_spec("ik_llama_cpp")
    library = ctypes.CDLL(str(Path(package.origin).parent / "lib" / "libggml.so"))
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_row_size.argtypes, library.ggml_row_size.restype = (ctypes.c_int, ctypes.c_int64), ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (ctypes.c_int, POINTER, POINTER, *SIZES, POINTER)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_init.argtypes, library.ggml_init.restype = (_InitParams,), POINTER
    library.ggml_init(_InitParams(1 << 20, None, False))
    return library


def type_number(library: ctypes.CDLL, name: str) -> int:
    """Return the number of a type."""
    names = [library.ggml_type_name(number) or b"" for number in range(NUM_TYPES)]
    return names.index(name.encode())


def round_trip(library: ctypes.CDLL, name: str, weight: np.ndarray, importance: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the values of the blocks of a weight, and their bytes."""
    number, (rows, columns) = type_number(library, name), weight.shape
    blocks = np.zeros((rows, library.ggml_row_size(number, columns)), np.uint8)
    arguments = (weight.ctypes.data, blocks.ctypes.data, 0, rows, columns, importance.ctypes.data)
    library.ggml_quantize_chunk(number, *arguments)
    values, dequantize = np.empty_like(weight), getattr(library, f"dequantize_row_{name}")
    dequantize.argtypes = (POINTER, POINTER, ctypes.c_int64)
    for row in range(rows):
        dequantize(blocks[row:].ctypes.data, values[row:].ctypes.data, columns)
    return values, blocks.nbytes


def main(matrices: str, out: str, facts: str, name: str) -> None:
    """Write the values, and bits per weight."""
    library, found = open_library(), load_file(matrices)
    names = [one.removesuffix(".weight") for one in found if one.endswith(".weight")]
    results = {one: round_trip(library, name, found[f"{one}.weight"], found[f"{one}.importance"]) for one in names}
    save_file({one: values for one, (values, _) in results.items()}, out)
    weights = sum(values.size for values, _ in results.values())
    bits = 8 * sum(nbytes for _, nbytes in results.values()) / weights
    Path(facts).write_text(json.dumps({"bits_per_weight": bits, "matrices": len(names)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
