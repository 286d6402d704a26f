"""Tensors that several families share: matrices with their biases, norms, decoder layers."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

from mcpmq.families.expert_tensors import expert_specs
from mcpmq.families.family import TensorSpec
from mcpmq.families.language_shape import LanguageShape

PaddableAxis = Literal["rows", "columns"]
DECODER_LAYER_NAMES = {
    "input_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.norm_q": "self_attn.q_norm",
    "attention.k": "self_attn.k_proj",
    "attention.norm_k": "self_attn.k_norm",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
NORM_BEFORE_MLP = "post_attention_norm"
# With norms of the outputs of attention and MLP, the hub name of the norm before the MLP is that of another norm.
OUTPUT_NORM_LAYER_NAMES = {
    **DECODER_LAYER_NAMES,
    NORM_BEFORE_MLP: "pre_feedforward_layernorm",
    "attention.norm_output": "post_attention_layernorm",
    "mlp.norm_output": "post_feedforward_layernorm",
}
QK_NORMS = ("attention.norm_q", "attention.norm_k")
BIASED_MATRICES = ("attention.q", "attention.k", "attention.v")
FFN_MATRICES = ("mlp.gate", "mlp.up", "mlp.down")


def matrix_specs(
    name: str,
    hub_name: str,
    shape: tuple[int, int],
    bias: bool = True,
    paddable_axis: PaddableAxis | None = None,
    head_columns: int = 0,
) -> Iterator[TensorSpec]:
    """Yield a matrix [rows, columns] and its bias, if it has one."""
    yield TensorSpec(
        name, f"{hub_name}.weight", shape, "matrix", paddable_axis=paddable_axis, head_columns=head_columns
    )
    if bias:
        bias_axis: PaddableAxis | None = "rows" if paddable_axis == "rows" else None
        yield TensorSpec(f"{name}.bias", f"{hub_name}.bias", shape[:1], paddable_axis=bias_axis)


def layer_norm_specs(name: str, hub_name: str, width: int) -> Iterator[TensorSpec]:
    """Yield the scale and the bias of a LayerNorm."""
    yield TensorSpec(name, f"{hub_name}.weight", (width,))
    yield TensorSpec(f"{name}.bias", f"{hub_name}.bias", (width,))


def decoder_specs(shape: LanguageShape, prefix: str, head: str = "lm_head.weight") -> Iterator[TensorSpec]:
    """Yield embedding, layers, final norm and head; `prefix` and `head` are hub names."""
    size = (shape.vocab_size, shape.hidden_size)
    embedding = f"{prefix}.embed_tokens.weight"
    if shape.tied_embeddings:
        yield TensorSpec("embedding", embedding, size, "table", module_names=(embedding, head), alias="head")
    else:
        yield TensorSpec("embedding", embedding, size, "table")
    for layer in range(shape.num_layers):
        yield from _layer_specs(shape, layer, f"language.layers.{layer}", f"{prefix}.layers.{layer}")
    yield TensorSpec("language.norm", f"{prefix}.norm.weight", (shape.hidden_size,))
    if not shape.tied_embeddings:
        yield TensorSpec("head", head, size, "matrix")


def _layer_specs(shape: LanguageShape, layer: int, name: str, hub_name: str) -> Iterator[TensorSpec]:
    if shape.is_linear_attention(layer):
        return linear_attention_layer_specs(shape, name, hub_name)
    if shape.latent_attention:
        return latent_attention_layer_specs(shape, name, hub_name)
    return decoder_layer_specs(shape, name, hub_name)


def decoder_layer_specs(shape: LanguageShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    """Yield one layer with softmax attention, as in Llama and Qwen."""
    sizes = layer_shapes(shape)
    names = OUTPUT_NORM_LAYER_NAMES if shape.output_norms else DECODER_LAYER_NAMES
    for part, hub_part in names.items():
        full, hub = f"{name}.{part}", f"{hub_name}.{hub_part}"
        if part in FFN_MATRICES and shape.experts:
            continue
        if part in sizes:
            yield from matrix_specs(full, hub, sizes[part], bias=shape.attention_bias and part in BIASED_MATRICES)
        elif part not in QK_NORMS:
            yield TensorSpec(full, f"{hub}.weight", (shape.hidden_size,))
        elif shape.qk_norm:
            yield TensorSpec(full, f"{hub}.weight", (shape.head_dim,))
    if shape.experts:
        yield from expert_specs(shape.experts, shape.hidden_size, name, f"{hub_name}.mlp")


def linear_attention_layer_specs(shape: LanguageShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    """Yield one layer of Qwen3.5 with linear attention; the small gate matrices a and b are not quantized."""
    linear, hub = shape.linear_attention, f"{hub_name}.linear_attn"
    assert linear is not None
    hidden, heads, channels = shape.hidden_size, linear.num_value_heads, linear.conv_channels
    values = heads * linear.value_head_dim
    yield TensorSpec(f"{name}.input_norm", f"{hub_name}.input_layernorm.weight", (hidden,))
    yield from matrix_specs(f"{name}.linear.qkv", f"{hub}.in_proj_qkv", (channels, hidden), bias=False)
    yield from matrix_specs(f"{name}.linear.z", f"{hub}.in_proj_z", (values, hidden), bias=False)
    for gate in ("a", "b"):
        yield TensorSpec(f"{name}.linear.{gate}", f"{hub}.in_proj_{gate}.weight", (heads, hidden))
    yield TensorSpec(f"{name}.linear.convolution", f"{hub}.conv1d.weight", (channels, 1, linear.conv_kernel_size))
    yield TensorSpec(f"{name}.linear.decay", f"{hub}.A_log", (heads,))
    yield TensorSpec(f"{name}.linear.time_step", f"{hub}.dt_bias", (heads,))
    yield TensorSpec(f"{name}.linear.norm", f"{hub}.norm.weight", (linear.value_head_dim,))
    columns = 0 if linear.values_per_key == 1 else linear.value_head_dim
    yield from matrix_specs(f"{name}.linear.o", f"{hub}.out_proj", (hidden, values), bias=False, head_columns=columns)
    yield from _ffn_specs(shape, name, hub_name)


def latent_attention_layer_specs(shape: LanguageShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    """Yield one layer of MiniCPM3 with multi-head latent attention."""
    latent, hub = shape.latent_attention, f"{hub_name}.self_attn"
    assert latent is not None
    hidden, heads = shape.hidden_size, shape.num_heads
    ranks = {"q_a": latent.q_lora_rank, "kv_a": latent.kv_lora_rank}
    matrices = {
        "q_a": ("q_a_proj", (latent.q_lora_rank, hidden)),
        "q_b": ("q_b_proj", (heads * shape.head_dim, latent.q_lora_rank)),
        "kv_a": ("kv_a_proj_with_mqa", (latent.kv_lora_rank + shape.rotary_dim, hidden)),
        "kv_b": ("kv_b_proj", (heads * (latent.qk_nope_head_dim + latent.v_head_dim), latent.kv_lora_rank)),
        "o": ("o_proj", (hidden, heads * latent.v_head_dim)),
    }
    yield TensorSpec(f"{name}.input_norm", f"{hub_name}.input_layernorm.weight", (hidden,))
    for part, (hub_part, size) in matrices.items():
        yield from matrix_specs(f"{name}.attention.{part}", f"{hub}.{hub_part}", size, bias=False)
        if part in ranks:
            yield TensorSpec(f"{name}.attention.norm_{part}", f"{hub}.{part}_layernorm.weight", (ranks[part],))
    yield from _ffn_specs(shape, name, hub_name)


def _ffn_specs(shape: LanguageShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    """Yield the norm after attention, and the gated FFN or the experts in its place."""
    sizes = layer_shapes(shape)
    hub_norm = f"{hub_name}.post_attention_layernorm.weight"
    yield TensorSpec(f"{name}.post_attention_norm", hub_norm, (shape.hidden_size,))
    if shape.experts:
        yield from expert_specs(shape.experts, shape.hidden_size, name, f"{hub_name}.mlp")
        return
    for part in FFN_MATRICES:
        yield from matrix_specs(f"{name}.{part}", f"{hub_name}.{DECODER_LAYER_NAMES[part]}", sizes[part], bias=False)


def layer_shapes(shape: LanguageShape) -> dict[str, tuple[int, int]]:
    """Return [rows, columns] of the matrices of a layer with softmax attention."""
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    return {
        "attention.q": (queries * (2 if shape.gated_attention else 1), shape.hidden_size),
        "attention.k": (keys, shape.hidden_size),
        "attention.v": (keys, shape.hidden_size),
        "attention.o": (shape.hidden_size, queries),
        "mlp.gate": (shape.intermediate_size, shape.hidden_size),
        "mlp.up": (shape.intermediate_size, shape.hidden_size),
        "mlp.down": (shape.hidden_size, shape.intermediate_size),
    }


def with_module_prefixes(specs: Iterable[TensorSpec], prefixes: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """Return the tensors with hub name prefixes replaced in the names of the torch parameters."""
    return tuple(
        replace(spec, module_names=tuple(_replace_prefix(name, prefixes) for name in spec.parameter_names))
        for spec in specs
    )


def _replace_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    found = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(found, "") + name.removeprefix(found)
