"""GGUF artifacts for tests, read by gguf-py."""

import ctypes
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.execution.device import CPU
from mcpmq.execution.torch_model import StoredWeight, to_float
from mcpmq.export import export
from mcpmq.families.family import TensorSpec
from mcpmq.families.modeling_minicpmv2 import PatchEmbedding
from mcpmq.formats.gguf.position_tables import flat_position_rows, resample_position_table
from mcpmq.formats.gguf.resampler import POSITION_TABLE_SIDE
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.runners.llamacpp.language import LanguageModel


def quantize_with(checkpoint: Path, folder: Path, **schemes: str) -> QuantizedModel:
    """Quantize a checkpoint; keywords are globs with `__` for a dot, and `_all` for `*`."""
    weights = {glob.replace("__", ".").replace("_all", "*"): scheme for glob, scheme in schemes.items()}
    recipe = Recipe.model_validate({"name": "test", "weights": weights})
    return quantize(make_plan(Checkpoint.open(checkpoint), recipe), folder / "quantized")


def export_gguf(quantized: QuantizedModel, folder: Path) -> Artifact:
    """Export a quantized model to GGUF."""
    return export(quantized, "gguf", folder / "gguf")


def gguf_reader(artifact: Artifact, component: str) -> GGUFReader:
    """Open the file of a component with gguf-py."""
    [file] = artifact.component_files(component)
    return GGUFReader(file)


def metadata_value(reader: GGUFReader, key: str) -> object:
    """Return a metadata value; the key must exist."""
    found = reader.get_field(key)
    assert found is not None, key
    return found.contents()


def tensor_values(reader: GGUFReader, name: str) -> NDArray[np.float32]:
    """Return a tensor, dequantized by gguf-py, rows first."""
    [tensor] = [tensor for tensor in reader.tensors if tensor.name == name]
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return dequantize(tensor.data, tensor.tensor_type).reshape(shape)


def llama_cpp_tokens(model: LanguageModel, text: str) -> list[int]:
    """Tokenize a text with llama.cpp, which parses special tokens in it."""
    kinds = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32)
    tokenize = model.engine.optional("llama_tokenize", ctypes.c_int32, *kinds, ctypes.c_bool, ctypes.c_bool)
    buffer, encoded = np.zeros(500, np.int32), text.encode()
    vocabulary = model.engine("llama_model_get_vocab", model.pointer)
    count = tokenize(vocabulary, encoded, len(encoded), buffer.ctypes.data, len(buffer), False, True)
    return [int(token) for token in buffer[:count]]


def llama_cpp_gelu(activation: nn.Module, value: Tensor) -> Tensor:
    """Return the GELU of ggml, which reads the values of F16 numbers from a table of F16 numbers."""
    rounded = functional.gelu(value.half().float(), approximate="tanh").half().float()
    return torch.where(value.abs() < 10, rounded, value.clamp(min=0))


def llama_cpp_positions(patches: PatchEmbedding, size: tuple[int, int], slice_side: int = 4) -> Tensor:
    """Look up the patch positions of MiniCPM-V 2.0 as llama.cpp does: [h * w, hidden].

    Square slices have `slice_side` patches a side.
    """
    side = POSITION_TABLE_SIDE
    table = resample_position_table(patches.pos_embed.detach(), side, slice_side).unflatten(0, (side, side))
    rows, columns = ([side * index // length for index in range(length)] for length in size)
    positions: Tensor = table[rows][:, columns].flatten(0, 1).float()
    return positions


def llama_cpp_weights(
    stored: StoredWeight, spec: TensorSpec, device: torch.device = CPU, *, slice_side: int = 4
) -> Tensor:
    """Return a weight of MiniCPM-V 2.5 as the GGUF file stores it: the position table is reordered."""
    values = to_float(stored, spec, device)
    if spec.name != "vision.position_embedding":
        return values
    return values[list(flat_position_rows(POSITION_TABLE_SIDE, slice_side))]
