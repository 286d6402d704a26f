"""The tensors that many families share: matrices with their biases, norms, decoder layers."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

from mcpmq.families.family import LanguageShape, TensorSpec

Growth = Literal["rows", "columns"]
LANGUAGE_LAYER = {
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
HEAD_NORMS = ("attention.norm_q", "attention.norm_k")
BIASED = ("attention.q", "attention.k", "attention.v")


def matrix(
    name: str, hub_name: str, shape: tuple[int, int], bias: bool = True, may_grow: Growth | None = None
) -> Iterator[TensorSpec]:
    """A matrix [rows, columns], and its bias where it has one."""
    yield TensorSpec(name, f"{hub_name}.weight", shape, "matrix", may_grow=may_grow)
    if bias:
        grows: Growth | None = "rows" if may_grow == "rows" else None
        yield TensorSpec(f"{name}.bias", f"{hub_name}.bias", shape[:1], may_grow=grows)


def layer_norm(name: str, hub_name: str, width: int) -> Iterator[TensorSpec]:
    """Scale and bias."""
    yield TensorSpec(name, f"{hub_name}.weight", (width,))
    yield TensorSpec(f"{name}.bias", f"{hub_name}.bias", (width,))


def decoder(shape: LanguageShape, prefix: str, head: str = "lm_head.weight") -> Iterator[TensorSpec]:
    """Embedding, layers, last norm and head; `prefix` is the hub name of the model, `head` that of the head."""
    size = (shape.vocabulary, shape.hidden)
    embedding = f"{prefix}.embed_tokens.weight"
    if shape.tied_head:
        yield TensorSpec("embedding", embedding, size, "table", native_names=(embedding, head), also="head")
    else:
        yield TensorSpec("embedding", embedding, size, "table")
    for layer in range(shape.layers):
        one_layer = linear_layer if shape.is_linear(layer) else latent_layer if shape.latent else decoder_layer
        yield from one_layer(shape, f"language.layers.{layer}", f"{prefix}.layers.{layer}")
    yield TensorSpec("language.norm", f"{prefix}.norm.weight", (shape.hidden,))
    if not shape.tied_head:
        yield TensorSpec("head", head, size, "matrix")


def decoder_layer(shape: LanguageShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    """One layer in the manner of Llama and Qwen."""
    widths = layer_shapes(shape)
    for part, hub_part in LANGUAGE_LAYER.items():
        full, hub = f"{name}.{part}", f"{hub_name}.{hub_part}"
        if part in widths:
            yield from matrix(full, hub, widths[part], bias=shape.attention_bias and part in BIASED)
        elif part not in HEAD_NORMS:
            yield TensorSpec(full, f"{hub}.weight", (shape.hidden,))
        elif shape.qk_norm:
            yield TensorSpec(full, f"{hub}.weight", (shape.head_width,))


def linear_layer(shape: LanguageShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    """One layer of Qwen3.5 that attends linearly; what makes its gates is small and stays as it is."""
    linear, widths = shape.linear, layer_shapes(shape)
    assert linear is not None
    values, hub = linear.value_heads * linear.value_width, f"{hub_name}.linear_attn"
    yield TensorSpec(f"{name}.input_norm", f"{hub_name}.input_layernorm.weight", (shape.hidden,))
    yield from matrix(f"{name}.linear.qkv", f"{hub}.in_proj_qkv", (linear.channels, shape.hidden), bias=False)
    yield from matrix(f"{name}.linear.z", f"{hub}.in_proj_z", (values, shape.hidden), bias=False)
    for gate in ("a", "b"):
        yield TensorSpec(f"{name}.linear.{gate}", f"{hub}.in_proj_{gate}.weight", (linear.value_heads, shape.hidden))
    yield TensorSpec(f"{name}.linear.convolution", f"{hub}.conv1d.weight", (linear.channels, 1, linear.kernel))
    yield TensorSpec(f"{name}.linear.decay", f"{hub}.A_log", (linear.value_heads,))
    yield TensorSpec(f"{name}.linear.time_step", f"{hub}.dt_bias", (linear.value_heads,))
    yield TensorSpec(f"{name}.linear.norm", f"{hub}.norm.weight", (linear.value_width,))
    yield from matrix(f"{name}.linear.o", f"{hub}.out_proj", (shape.hidden, values), bias=False)
    yield TensorSpec(f"{name}.post_attention_norm", f"{hub_name}.post_attention_layernorm.weight", (shape.hidden,))
    for part in ("mlp.gate", "mlp.up", "mlp.down"):
        yield from matrix(f"{name}.{part}", f"{hub_name}.{LANGUAGE_LAYER[part]}", widths[part], bias=False)


def latent_layer(shape: LanguageShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    """One layer of MiniCPM3, with multi-head latent attention."""
    latent, widths, hub = shape.latent, layer_shapes(shape), f"{hub_name}.self_attn"
    assert latent is not None
    expanded = shape.heads * (latent.plain_width + latent.value_width)
    yield TensorSpec(f"{name}.input_norm", f"{hub_name}.input_layernorm.weight", (shape.hidden,))
    yield from matrix(f"{name}.attention.q_a", f"{hub}.q_a_proj", (latent.query_rank, shape.hidden), bias=False)
    yield TensorSpec(f"{name}.attention.norm_q_a", f"{hub}.q_a_layernorm.weight", (latent.query_rank,))
    queries = (shape.heads * shape.head_width, latent.query_rank)
    yield from matrix(f"{name}.attention.q_b", f"{hub}.q_b_proj", queries, bias=False)
    keys = (latent.key_rank + shape.turned_width, shape.hidden)
    yield from matrix(f"{name}.attention.kv_a", f"{hub}.kv_a_proj_with_mqa", keys, bias=False)
    yield TensorSpec(f"{name}.attention.norm_kv_a", f"{hub}.kv_a_layernorm.weight", (latent.key_rank,))
    yield from matrix(f"{name}.attention.kv_b", f"{hub}.kv_b_proj", (expanded, latent.key_rank), bias=False)
    output = (shape.hidden, shape.heads * latent.value_width)
    yield from matrix(f"{name}.attention.o", f"{hub}.o_proj", output, bias=False)
    yield TensorSpec(f"{name}.post_attention_norm", f"{hub_name}.post_attention_layernorm.weight", (shape.hidden,))
    for part in ("mlp.gate", "mlp.up", "mlp.down"):
        yield from matrix(f"{name}.{part}", f"{hub_name}.{LANGUAGE_LAYER[part]}", widths[part], bias=False)


def layer_shapes(shape: LanguageShape) -> dict[str, tuple[int, int]]:
    """[rows, columns] of the matrices of a layer."""
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    return {
        "attention.q": (queries * (2 if shape.gated_attention else 1), shape.hidden),
        "attention.k": (keys, shape.hidden),
        "attention.v": (keys, shape.hidden),
        "attention.o": (shape.hidden, queries),
        "mlp.gate": (shape.ffn, shape.hidden),
        "mlp.up": (shape.ffn, shape.hidden),
        "mlp.down": (shape.hidden, shape.ffn),
    }


def renamed(specs: Iterable[TensorSpec], prefixes: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """The same tensors, for a native module whose names begin otherwise than those of the checkpoint."""
    return tuple(
        replace(spec, native_names=tuple(_renamed(name, prefixes) for name in spec.parameters)) for spec in specs
    )


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    found = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(found, "") + name.removeprefix(found)
