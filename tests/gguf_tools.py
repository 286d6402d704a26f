"""GGUF artifacts for tests, and gguf-py's own reading of them."""

import ctypes
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.execution.torch_model import Stored, floats_of
from mcpmq.export import export
from mcpmq.families.family import TensorSpec
from mcpmq.families.modeling_minicpmv2 import Patches
from mcpmq.formats.gguf.position_tables import rows_along_one, table_for
from mcpmq.formats.gguf.resampler import GRID
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.runners.llamacpp.language import LanguageModel


def quantized_by(checkpoint: Path, folder: Path, **schemes: str) -> Quantized:
    """A checkpoint under a recipe; `language.mlp` is written `language__mlp`, and `_all` for `*`."""
    weights = {glob.replace("__", ".").replace("_all", "*"): scheme for glob, scheme in schemes.items()}
    recipe = Recipe.model_validate({"name": "test", "weights": weights})
    return quantize(make_plan(Checkpoint.open(checkpoint), recipe), folder / "quantized")


def exported(quantized: Quantized, folder: Path) -> Artifact:
    """The same as GGUF."""
    return export(quantized, "gguf", folder / "gguf")


def reader_of(artifact: Artifact, component: str) -> GGUFReader:
    """One of the two files, in the hands of gguf-py."""
    [file] = artifact.files_of(component)
    return GGUFReader(file)


def field(reader: GGUFReader, key: str) -> object:
    """A metadata value."""
    found = reader.get_field(key)
    assert found is not None, key
    return found.contents()


def values(reader: GGUFReader, name: str) -> NDArray[np.float32]:
    """A tensor, dequantized by gguf-py, rows first."""
    [tensor] = [tensor for tensor in reader.tensors if tensor.name == name]
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return dequantize(tensor.data, tensor.tensor_type).reshape(shape)


def tokens_in_llama_cpp(model: LanguageModel, text: str) -> list[int]:
    """What llama.cpp's own tokenizer makes of a text, special tokens in it included."""
    kinds = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32)
    tokenize = model.engine.optional("llama_tokenize", ctypes.c_int32, *kinds, ctypes.c_bool, ctypes.c_bool)
    room, encoded = np.zeros(500, np.int32), text.encode()
    vocabulary = model.engine("llama_model_get_vocab", model.pointer)
    count = tokenize(vocabulary, encoded, len(encoded), room.ctypes.data, len(room), False, True)
    return [int(token) for token in room[:count]]


def nearest_positions(patches: Patches, size: tuple[int, int], side: int = 4) -> Tensor:
    """Where patches of MiniCPM-V 2.0 lie for llama.cpp, [h * w, hidden]: in the nearest cells of the table that it is
    given, `side` patches being those of a square slice."""
    table = table_for(patches.pos_embed.detach(), GRID, side).unflatten(0, (GRID, GRID))
    rows, columns = ([GRID * number // length for number in range(length)] for length in size)
    return table[rows][:, columns].flatten(0, 1).float()


def floats_along_one_row(stored: Stored, spec: TensorSpec, side: int = 4) -> Tensor:
    """The weights of MiniCPM-V 2.5 as llama.cpp is given them: positions stand where it looks for them."""
    floats = floats_of(stored, spec)
    return floats[list(rows_along_one(GRID, side))] if spec.name == "vision.position_embedding" else floats
