"""The resampler, the connector of every MiniCPM-V up to 4.5: queries that look at a slice and become its tokens."""

from collections.abc import Iterator

from mcpmq.families.family import Architecture, TensorSpec
from mcpmq.families.tensors import layer_norm, matrix

HEAD_WIDTH_OF_RESAMPLER = 128


def resampler(architecture: Architecture, hub_name: str) -> Iterator[TensorSpec]:
    """Between a vision tower and a language model, in the width of the latter."""
    width, shape = architecture.language.hidden, architecture.sees
    yield TensorSpec("projector.query", f"{hub_name}.query", (shape.queries, width))
    yield from matrix("projector.kv", f"{hub_name}.kv_proj", (width, shape.hidden), bias=False)
    for norm in ("q", "kv", "post"):
        yield from layer_norm(f"projector.norm_{norm}", f"{hub_name}.ln_{norm}", width)
    yield TensorSpec("projector.attention.qkv", f"{hub_name}.attn.in_proj_weight", (3 * width, width), "matrix")
    yield TensorSpec("projector.attention.qkv.bias", f"{hub_name}.attn.in_proj_bias", (3 * width,))
    yield from matrix("projector.attention.o", f"{hub_name}.attn.out_proj", (width, width))
    yield TensorSpec("projector.out", f"{hub_name}.proj", (width, width), "matrix", transposed=True)
