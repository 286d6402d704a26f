"""llama.cpp's names of tensors, file types and files."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gguf import GGMLQuantizationType, LlamaFileType

from mcpmq.families.language_shape import LanguageShape

if TYPE_CHECKING:  # a forecast needs no torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorNames:
    """Tensor names of one file, by common name; several names where llama.cpp splits a tensor into parts.

    layer_names: component -> prefix of its layers, and names by common name within a layer
    transforms: conversions of values, by common name within a layer
    """

    global_names: Mapping[str, str | tuple[str, ...]]
    layer_names: Mapping[str, tuple[str, Mapping[str, str | tuple[str, ...]]]]
    transforms: "Mapping[str, Callable[[Tensor], Tensor]]" = field(default_factory=dict)


GLOBAL_NAMES = {"embedding": "token_embd", "head": "output", "language.norm": "output_norm"}
LAYER_NAMES = {
    "input_norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.norm_q": "attn_q_norm",
    "attention.k": "attn_k",
    "attention.norm_k": "attn_k_norm",
    "attention.v": "attn_v",
    "attention.q_a": "attn_q_a",
    "attention.norm_q_a": "attn_q_a_norm",
    "attention.q_b": "attn_q_b",
    "attention.kv_a": "attn_kv_a_mqa",
    "attention.norm_kv_a": "attn_kv_a_norm",
    "attention.kv_b": "attn_kv_b",
    "attention.o": "attn_output",
    "post_attention_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "router": "ffn_gate_inp",
    "shared.router": "ffn_gate_inp_shexp",
    "shared.mlp.gate": "ffn_gate_shexp",
    "shared.mlp.up": "ffn_up_shexp",
    "shared.mlp.down": "ffn_down_shexp",
    "experts.mlp.gate": "ffn_gate_exps",
    "experts.mlp.up": "ffn_up_exps",
    "experts.mlp.down": "ffn_down_exps",
}
LINEAR_LAYER_NAMES = {
    "post_attention_norm": "post_attention_norm",
    "linear.qkv": "attn_qkv",
    "linear.z": "attn_gate",
    "linear.a": "ssm_alpha",
    "linear.b": "ssm_beta",
    "linear.convolution": "ssm_conv1d",
    "linear.decay": "ssm_a",
    "linear.time_step": "ssm_dt.bias",
    "linear.norm": "ssm_norm",
    "linear.o": "ssm_out",
}
CONVOLUTION_LAYER_NAMES = {
    "conv.in": "shortconv.in_proj",
    "conv.kernel": "shortconv.conv",
    "conv.out": "shortconv.out_proj",
}
# Norms of the outputs of attention and MLP.
OUTPUT_NORMS = {"attention.norm_output": "post_attention_norm", "mlp.norm_output": "post_ffw_norm"}
EXPERT = re.compile(r"^experts\.\d+\.")
# RMS norms that multiply by 1 + weight in transformers, and by the weight in llama.cpp.
OFFSET_NORMS = ("norm", "input_norm", "post_attention_norm", "attention.norm_q", "attention.norm_k", *OUTPUT_NORMS)


def add_one(weight: "Tensor") -> "Tensor":
    """Return the factors of a norm that multiplies by 1 + weight."""
    return weight.float() + 1


LANGUAGE_NAMES = TensorNames(GLOBAL_NAMES, {"language": ("blk", LAYER_NAMES)})
OUTPUT_NORM_LANGUAGE_NAMES = TensorNames(
    GLOBAL_NAMES, {"language": ("blk", {**LAYER_NAMES, **OUTPUT_NORMS})}, dict.fromkeys(OFFSET_NORMS, add_one)
)
HYBRID_LANGUAGE_NAMES = TensorNames(
    GLOBAL_NAMES,
    {"language": ("blk", {**LAYER_NAMES, **LINEAR_LAYER_NAMES})},
    {
        **dict.fromkeys(OFFSET_NORMS, add_one),
        "linear.decay": lambda weight: -weight.float().exp(),
        "linear.convolution": lambda weight: weight[:, 0],
    },
)
# The norm after the last layer has another name.
CONVOLUTION_LANGUAGE_NAMES = TensorNames(
    {**GLOBAL_NAMES, "language.norm": "token_embd_norm"},
    {"language": ("blk", {**LAYER_NAMES, **CONVOLUTION_LAYER_NAMES})},
    {"conv.kernel": lambda weight: weight[:, 0]},
)


def language_names(shape: LanguageShape) -> TensorNames:
    """Return the names of the tensors of a language model."""
    if shape.linear_attention:
        return HYBRID_LANGUAGE_NAMES
    if shape.short_convolution:
        return CONVOLUTION_LANGUAGE_NAMES
    return OUTPUT_NORM_LANGUAGE_NAMES if shape.output_norms else LANGUAGE_NAMES


# Names without the suffix `.weight` or `.bias`.
UNSUFFIXED_NAMES = {
    "resampler.query",
    "resampler.pos_embed_k",
    "v.patch_embd.weight.1",
    "v.class_embd",
    "ssm_a",
    "ssm_dt.bias",
}

FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q4_1": LlamaFileType.MOSTLY_Q4_1,
    "Q5_0": LlamaFileType.MOSTLY_Q5_0,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "IQ4_NL": LlamaFileType.MOSTLY_IQ4_NL,
    "IQ4_XS": LlamaFileType.MOSTLY_IQ4_XS,
    "IQ3_S": LlamaFileType.MOSTLY_IQ3_S,
    "Q2_K": LlamaFileType.MOSTLY_Q2_K,
    "Q3_K_S": LlamaFileType.MOSTLY_Q3_K_S,
    "Q3_K_M": LlamaFileType.MOSTLY_Q3_K_M,
    "Q4_K_S": LlamaFileType.MOSTLY_Q4_K_S,
    "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
    "Q5_K_S": LlamaFileType.MOSTLY_Q5_K_S,
    "Q5_K_M": LlamaFileType.MOSTLY_Q5_K_M,
    "Q6_K": LlamaFileType.MOSTLY_Q6_K,
}


def gguf_names(common_name: str, names: TensorNames) -> tuple[str, ...]:
    """Return llama.cpp's name of a tensor, or the names of its parts; matrices of experts are parts of one tensor."""
    if isinstance(exact := names.global_names.get(common_name), str) and common_name.endswith(".bias"):
        return (exact,)
    weight = common_name.removesuffix(".bias")
    suffix = ".bias" if weight != common_name else ".weight"
    prefix, found = "", names.global_names.get(weight)
    if found is None:
        component, _, layer, rest = weight.split(".", 3)
        blocks, within = names.layer_names[component]
        prefix, found = f"{blocks}.{layer}.", within[EXPERT.sub("experts.", rest)]
    parts = (found,) if isinstance(found, str) else found
    return tuple(f"{prefix}{part}{'' if part in UNSUFFIXED_NAMES else suffix}" for part in parts)


def name_in_layer(common_name: str) -> str:
    """Return the last part of a common name: `language.layers.0.linear.decay` -> `linear.decay`."""
    *_, last = common_name.split(".", 3 if ".layers." in common_name else 1)
    return last


def safe_file_name(name: str) -> str:
    """Return a name, or the last part of `owner/name`, without characters that are not portable in file names."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.rpartition("/")[2])


def mixture_name(weights: Iterable[tuple[GGMLQuantizationType, int]]) -> str:
    """Return llama.cpp's name for a mix of types, given with their numbers of weights: `Q4_0`, `Q4_K_M`.

    The most frequent type names the mix. A mix of K-quants has the suffix `M` if some matrices have a type of more
    bits, else `S`.
    """
    counts: Counter[str] = Counter()
    for kind, count in weights:
        counts[kind.name] += count
    [(most, _)] = counts.most_common(1)
    if most not in ("Q3_K", "Q4_K", "Q5_K"):
        return most
    larger = {"Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16", "BF16", "F32"} - {"Q4_K" if most == "Q5_K" else most}
    return f"{most}_{'M' if counts.keys() & larger else 'S'}"
