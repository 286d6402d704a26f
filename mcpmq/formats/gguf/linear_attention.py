"""Linear attention in the GGUF file of a language model: metadata, and value heads in the order of llama.cpp.

Several value heads may share a key head. They are adjacent in transformers; in llama.cpp value head i reads key head i
modulo their number.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from gguf import GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.families.family import TensorSpec
from mcpmq.families.language_shape import LanguageShape, LinearAttention
from mcpmq.formats.gguf.names import name_in_layer
from mcpmq.formats.gguf.tensors import GgufTensor

REASON = "value heads are in the order of llama.cpp"


def add_metadata(writer: GGUFWriter, shape: LanguageShape, linear: LinearAttention) -> None:
    """Write the sizes of linear attention, and M-RoPE sections: llama.cpp always applies M-RoPE to this architecture.

    Raises:
        FormatError: key and value heads have different sizes, or the layers have one kind of attention only.
    """
    if linear.value_head_dim != linear.key_head_dim:
        raise FormatError(
            f"linear attention has key heads of {linear.key_head_dim} and value heads of {linear.value_head_dim};"
            " llama.cpp supports equal sizes only",
            "export to another format, for example `onnx`",
        )
    if not 0 < len(linear.layers) < shape.num_layers:
        raise FormatError(
            f"{len(linear.layers)} of {shape.num_layers} layers have linear attention; llama.cpp needs layers of both"
            " kinds",
            "remove other layers, or export to another format, for example `onnx`",
        )
    writer.add_rope_dimension_count(shape.rotary_dim)
    if not shape.mrope_sections:
        frequencies = shape.rotary_dim // 2
        writer.add_rope_dimension_sections([(frequencies + 2 - axis) // 3 for axis in range(3)] + [0])
    writer.add_ssm_conv_kernel(linear.conv_kernel_size)
    writer.add_ssm_state_size(linear.key_head_dim)
    writer.add_ssm_group_count(linear.num_key_heads)
    writer.add_ssm_time_step_rank(linear.num_value_heads)
    writer.add_ssm_inner_size(linear.num_value_heads * linear.value_head_dim)
    recurrent = [shape.is_linear_attention(layer) for layer in range(shape.num_layers)]
    writer.add_array(f"{shape.gguf_architecture}.attention.recurrent_layers", recurrent)


def head_order(linear: LinearAttention) -> tuple[int, ...]:
    """Return the value heads of transformers in the order of llama.cpp: the first of every key head, the second, ..."""
    shared = linear.values_per_key
    return tuple(key * shared + value for value in range(shared) for key in range(linear.num_key_heads))


def column_order(spec: TensorSpec, shape: LanguageShape) -> tuple[int, ...]:
    """Return the columns of the checkpoint in the order of the file; empty if they are in order."""
    if not spec.head_columns or not shape.linear_attention:
        return ()
    return _channels(head_order(shape.linear_attention), spec.head_columns)


def _channels(heads: Iterable[int], width: int) -> tuple[int, ...]:
    return tuple(head * width + number for head in heads for number in range(width))


def reorder_value_heads(tensors: Iterable[GgufTensor], linear: LinearAttention) -> Iterator[GgufTensor]:
    """Yield the tensors with their rows, or the columns of the output matrix, in the order of llama.cpp."""
    order, keys = head_order(linear), 2 * linear.num_key_heads * linear.key_head_dim
    channels = _channels(order, linear.value_head_dim)
    after_keys = (*range(keys), *(keys + channel for channel in channels))
    rows = {"qkv": after_keys, "convolution": after_keys, "z": channels}
    rows |= dict.fromkeys(("a", "b", "decay", "time_step"), order)
    for tensor in tensors:
        _, linear_part, part = name_in_layer(tensor.source or ".").rpartition("linear.")
        if not linear_part or linear.values_per_key == 1:
            yield tensor
        elif part == "o":
            yield replace(tensor, source_heads=order, reason=REASON)
        else:
            yield replace(tensor, source_rows=rows.get(part, ()), reason=REASON if part in rows else "")
