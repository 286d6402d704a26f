"""What llama.cpp calls every tensor and every type, and what files are called."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gguf import GGMLQuantizationType, LlamaFileType

if TYPE_CHECKING:  # a forecast declares tensors without torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one file, by common name; several where llama.cpp wants a tensor in parts."""

    whole: Mapping[str, str | tuple[str, ...]]
    layers: Mapping[str, tuple[str, Mapping[str, str | tuple[str, ...]]]]  # component -> prefix, and names in a layer
    computed: "Mapping[str, Callable[[Tensor], Tensor]]" = field(default_factory=dict)  # other values than ours


WHOLE = {"embedding": "token_embd", "head": "output", "language.norm": "output_norm"}
LAYER = {
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
}
LINEAR_LAYER = {
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
CENTRED_NORMS = ("norm", "input_norm", "post_attention_norm", "attention.norm_q", "attention.norm_k")


def _one_more(weight: "Tensor") -> "Tensor":
    return weight.float() + 1


LANGUAGE = Names(WHOLE, {"language": ("blk", LAYER)})
HYBRID_LANGUAGE = Names(
    WHOLE,
    {"language": ("blk", {**LAYER, **LINEAR_LAYER})},
    {
        **dict.fromkeys(
            ("norm", "input_norm", "post_attention_norm", "attention.norm_q", "attention.norm_k"), _one_more
        ),
        "linear.decay": lambda weight: -weight.float().exp(),
        "linear.convolution": lambda weight: weight[:, 0],
    },
)
BARE = {
    "resampler.query",
    "resampler.pos_embed_k",
    "v.patch_embd.weight.1",
    "ssm_a",
    "ssm_dt.bias",
}  # names that take no suffix

FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q4_1": LlamaFileType.MOSTLY_Q4_1,
    "Q5_0": LlamaFileType.MOSTLY_Q5_0,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "IQ4_NL": LlamaFileType.MOSTLY_IQ4_NL,
    "Q4_K_S": LlamaFileType.MOSTLY_Q4_K_S,
    "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
    "Q5_K_S": LlamaFileType.MOSTLY_Q5_K_S,
    "Q5_K_M": LlamaFileType.MOSTLY_Q5_K_M,
    "Q6_K": LlamaFileType.MOSTLY_Q6_K,
}


def names_of(common_name: str, names: Names) -> tuple[str, ...]:
    """llama.cpp's name of a tensor, or those of its parts."""
    if isinstance(whole := names.whole.get(common_name), str) and common_name.endswith(".bias"):
        return (whole,)
    weight = common_name.removesuffix(".bias")
    suffix = ".bias" if weight != common_name else ".weight"
    prefix, found = "", names.whole.get(weight)
    if found is None:
        component, _, layer, rest = weight.split(".", 3)
        blocks, within = names.layers[component]
        prefix, found = f"{blocks}.{layer}.", within[rest]
    parts = (found,) if isinstance(found, str) else found
    return tuple(f"{prefix}{part}{'' if part in BARE else suffix}" for part in parts)


def part_of(common_name: str) -> str:
    """`language.layers.0.linear.decay` -> `linear.decay`, `language.norm` -> `norm`."""
    *_, last = common_name.split(".", 3 if ".layers." in common_name else 1)
    return last


def source_name(name: str) -> str:
    """The name of a checkpoint as part of the name of a file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def file_type(weights: Iterable[tuple[GGMLQuantizationType, int]]) -> str:
    """What a file of these types, each with its number of weights, is called: `Q4_0`, `Q4_K_M`.

    The type that most weights have names the file; K-quants are `M` where some matrices have a better one, else `S`.
    """
    counts: Counter[str] = Counter()
    for kind, count in weights:
        counts[kind.name] += count
    [(most, _)] = counts.most_common(1)
    if most not in ("Q4_K", "Q5_K"):
        return most
    better = {"Q5_K", "Q6_K", "Q8_0", "F16", "BF16", "F32"} - {most}
    return f"{most}_{'M' if counts.keys() & better else 'S'}"
