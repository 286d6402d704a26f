"""Language models with local attention in a GGUF file: metadata of Gemma 3."""

from gguf import GGUFWriter, RopeScalingType

from mcpmq.errors import FormatError
from mcpmq.families.language_shape import LanguageShape, LocalAttention

# llama.cpp divides scores by the root of head_dim, and in a model of this many layers by that of hidden_size / heads.
WIDE_HEAD_LAYERS = 62


def add_metadata(writer: GGUFWriter, shape: LanguageShape, local: LocalAttention) -> None:
    """Write the window, the layers with it, and the rotary settings of both kinds of layers.

    Raises:
        FormatError: llama.cpp scales attention scores differently, or supports no such order of layers.
    """
    width = shape.hidden_size / shape.num_heads if shape.num_layers == WIDE_HEAD_LAYERS else shape.head_dim
    if abs(shape.score_scale * width**0.5 - 1) > 1e-6:
        raise FormatError(
            f"attention scores are scaled by {shape.score_scale:.6g} (`query_pre_attn_scalar`), in llama.cpp by"
            f" {width**-0.5:.6g}",
            "export to another format, for example `onnx`",
        )
    name = shape.gguf_architecture
    writer.add_sliding_window(local.window)
    writer.add_uint32(f"{name}.attention.sliding_window_pattern", _period(shape, local))
    writer.add_float32(f"{name}.rope.freq_base_swa", local.rope_theta)
    if shape.rope_divisor != 1:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.rope_divisor)


def _period(shape: LanguageShape, local: LocalAttention) -> int:
    """Return the number of layers of which the last has global attention."""
    period = next((layer + 1 for layer in range(shape.num_layers) if not shape.is_local(layer)), shape.num_layers + 1)
    regular = tuple(layer for layer in range(shape.num_layers) if (layer + 1) % period)
    if regular != local.layers:
        raise FormatError(
            f"layers with local attention are {local.layers}; llama.cpp supports regular periods only",
            "export to another format, for example `onnx`",
        )
    return period
