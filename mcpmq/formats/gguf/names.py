"""What llama.cpp calls every tensor and every type, and what files are called."""

import re
from collections import Counter
from collections.abc import Iterable

from gguf import GGMLQuantizationType, LlamaFileType

LANGUAGE = {"embedding": "token_embd", "head": "output", "language.norm": "output_norm"}
LANGUAGE_LAYER = {
    "input_norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "post_attention_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
VISION = {
    "vision.patch_embedding": "v.patch_embd",
    "vision.position_embedding": "v.position_embd",
    "vision.post_norm": "v.post_ln",
    "projector.kv": "resampler.kv",
    "projector.norm_q": "resampler.ln_q",
    "projector.norm_kv": "resampler.ln_kv",
    "projector.norm_post": "resampler.ln_post",
    "projector.attention.o": "resampler.attn.out",
    "projector.out": "resampler.proj",
}
VISION_LAYER = {
    "norm1": "ln1",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_out",
    "norm2": "ln2",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
WHOLE = {**LANGUAGE, **VISION}
LAYERS = {"language": ("blk", LANGUAGE_LAYER), "vision": ("v.blk", VISION_LAYER)}
QUERY = ("projector.query", "resampler.query")  # the one tensor without a suffix
FUSED = ("projector.attention.qkv", tuple(f"resampler.attn.{part}" for part in "qkv"))  # one tensor, split by rows

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


def names_of(common_name: str) -> tuple[str, ...]:
    """llama.cpp's name of a tensor; three of them for the fused projection of the resampler."""
    weight = common_name.removesuffix(".bias")
    suffix = ".bias" if weight != common_name else ".weight"
    if weight == QUERY[0]:
        return (QUERY[1],)
    if weight == FUSED[0]:
        return tuple(part + suffix for part in FUSED[1])
    if weight in WHOLE:
        return (WHOLE[weight] + suffix,)
    component, _, layer, rest = weight.split(".", 3)
    prefix, within = LAYERS[component]
    return (f"{prefix}.{layer}.{within[rest]}{suffix}",)


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
