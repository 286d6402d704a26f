"""Resampler of MiniCPM-V up to 4.5: learned queries with cross-attention to the patches of a slice."""

from collections.abc import Iterator

from mcpmq.families.family import Architecture, TensorSpec
from mcpmq.families.tensors import layer_norm_specs, matrix_specs

RESAMPLER_HEAD_DIM = 128


def resampler_specs(architecture: Architecture, hub_name: str) -> Iterator[TensorSpec]:
    """Yield the tensors of the resampler; its width is the hidden size of the language model."""
    width, shape = architecture.language.hidden_size, architecture.required_vision
    yield TensorSpec("projector.query", f"{hub_name}.query", (shape.num_queries, width))
    yield from matrix_specs("projector.kv", f"{hub_name}.kv_proj", (width, shape.hidden_size), bias=False)
    for norm in ("q", "kv", "post"):
        yield from layer_norm_specs(f"projector.norm_{norm}", f"{hub_name}.ln_{norm}", width)
    yield TensorSpec("projector.attention.qkv", f"{hub_name}.attn.in_proj_weight", (3 * width, width), "matrix")
    yield TensorSpec("projector.attention.qkv.bias", f"{hub_name}.attn.in_proj_bias", (3 * width,))
    yield from matrix_specs("projector.attention.o", f"{hub_name}.attn.out_proj", (width, width))
    yield TensorSpec("projector.out", f"{hub_name}.proj", (width, width), "matrix", transposed=True)
