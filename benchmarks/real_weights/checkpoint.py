"""SmolLM2 as the language model of a Qwen2-VL checkpoint, which mcpmq reads unchanged, and as a Llama checkpoint.

The vision encoder is tiny and random, for measurements of text, or the trained one of `tower/`. Qwen2 has biases that
Llama does not have; they are zero.

K-quants need columns in multiples of 256, and the hidden size of SmolLM2 is 576. `padded` extends it to 768 with zeros
and adds heads of zeros, which computes the same function: a residual stream of 768 values of which 192 are zero has a
smaller mean square, so norms get smaller gains and a smaller epsilon.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.real_weights import smollm2

TOWER, PATCH, MERGED_PATCHES = 64, 14, 4
# The pre-tokenizer of Qwen2, which llama.cpp and mcpmq implement; SmolLM2's own differs in rare cases.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Special tokens of SmolLM2 that texts do not contain -> those that a Qwen2-VL checkpoint must have.
RENAMED_TOKENS = {
    "<repo_name>": "<|vision_start|>",
    "<reponame>": "<|vision_end|>",
    "<file_sep>": "<|image_pad|>",
    "<filename>": "<|video_pad|>",
}
CONTROL_TOKEN = 3  # token type of GGUF
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the language model; by default those of SmolLM2. Every head has 64 columns."""

    hidden: int = smollm2.HIDDEN
    heads: int = smollm2.HEADS
    kv_heads: int = smollm2.KV_HEADS
    norm_epsilon: float = smollm2.NORM_EPSILON
    layers: int = smollm2.NUM_LAYERS
    ffn: int = smollm2.FFN
    vocabulary: int = smollm2.VOCABULARY
    rope_theta: float = smollm2.ROPE_THETA


@dataclass(frozen=True, slots=True)
class Vision:
    """A vision encoder with its merger: `vision_config`, and tensors by the names in the checkpoint."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


PADDED = Shape(768, 12, 4, smollm2.NORM_EPSILON * smollm2.HIDDEN / 768)


def padded(weights: Mapping[str, Tensor], shape: Shape = PADDED) -> dict[str, Tensor]:
    """Return weights of a larger model that computes the same function."""
    gain = math.sqrt(smollm2.HIDDEN / shape.hidden)
    query, key = shape.heads * smollm2.HEAD_DIM, shape.kv_heads * smollm2.HEAD_DIM
    rows = {"q_proj": query, "k_proj": key, "v_proj": key, "o_proj": shape.hidden, "down_proj": shape.hidden}
    columns = {"o_proj": query, "down_proj": smollm2.FFN}
    found = {}
    for name, value in weights.items():
        kind = name.split(".")[-2]
        if kind.endswith("norm"):
            found[name] = pad(value * gain, (0, shape.hidden - len(value)))
        else:
            size = rows.get(kind, len(value)), columns.get(kind, shape.hidden)
            found[name] = pad(value, (0, size[1] - value.shape[1], 0, size[0] - len(value)))
    return found


def write_tokenizer(reader: Any, out: Path) -> Tokenizer:
    """Write and return the tokenizer of a file with the pre-tokenizer and the image tokens of Qwen2-VL."""
    found = smollm2.vocabulary(reader)
    tokens = [RENAMED_TOKENS.get(token, token) for token in found["tokens"]]
    control = [token for token, kind in zip(tokens, found["token_type"], strict=True) if kind == CONTROL_TOKEN]
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in found["merges"])]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>", "tokenizer_class": "Qwen2Tokenizer"}
    (out / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def write_qwen2vl(
    weights: Mapping[str, Tensor], reader: Any, out: Path, shape: Shape | None = None, vision: Vision | None = None
) -> None:
    """Write the Qwen2-VL checkpoint with these weights of the language model; the default encoder is random."""
    shape = shape or Shape()
    vision = vision or Vision(vision_config(shape.hidden, 1, TOWER, 1), dict(_vision_tensors(shape.hidden)))
    out.mkdir(parents=True, exist_ok=True)
    tensors = {**dict(_zero_biases(shape)), **weights, **vision.tensors}
    save_file({name: value.contiguous() for name, value in tensors.items()}, out / "model.safetensors")
    tokenizer = write_tokenizer(reader, out)
    (out / "config.json").write_text(json.dumps(_qwen2vl_config(shape, tokenizer, vision.config), indent=1))
    (out / "preprocessor_config.json").write_text(json.dumps(_preprocessor_config(), indent=1))


def write_llama(weights: Mapping[str, Tensor], reader: Any, out: Path) -> None:
    """Write the Llama checkpoint that other tools read."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), out / "model.safetensors", {"format": "pt"})
    write_tokenizer(reader, out)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_language_config(Shape())}
    (out / "config.json").write_text(json.dumps(config, indent=1))


def _language_config(shape: Shape) -> dict[str, Any]:
    return {
        "torch_dtype": "float32",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.ffn,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 8192,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_epsilon,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def vision_config(hidden: int, depth: int, width: int, heads: int) -> dict[str, Any]:
    """Return the settings of a vision encoder; `hidden` are the channels of the language model."""
    return {
        "depth": depth,
        "embed_dim": width,
        "hidden_size": hidden,
        "num_heads": heads,
        "mlp_ratio": 4,
        "in_chans": 3,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "hidden_act": "quick_gelu",
    }


def _qwen2vl_config(shape: Shape, tokenizer: Tokenizer, vision: Mapping[str, Any]) -> dict[str, Any]:
    vision_tokens = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids = {key: tokenizer.token_to_id(token) for key, token in zip(vision_tokens, RENAMED_TOKENS.values(), strict=True)}
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        **_language_config(shape),
        "rope_scaling": {"type": "mrope", "mrope_section": smollm2.MROPE_SECTION},
        **ids,
        "vision_config": dict(vision),
    }


def _preprocessor_config() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 3136,
        "max_pixels": 200704,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }


def _zero_biases(shape: Shape) -> Iterator[tuple[str, Tensor]]:
    sizes = {"q": shape.heads, "k": shape.kv_heads, "v": shape.kv_heads}
    for layer in range(shape.layers):
        for kind, heads in sizes.items():
            yield f"model.layers.{layer}.self_attn.{kind}_proj.bias", torch.zeros(heads * smollm2.HEAD_DIM)


def _vision_tensors(hidden: int) -> Iterator[tuple[str, Tensor]]:
    random = torch.Generator().manual_seed(0)
    merged = MERGED_PATCHES * TOWER
    matrices = {
        "blocks.0.attn.qkv": (3 * TOWER, TOWER),
        "blocks.0.attn.proj": (TOWER, TOWER),
        "blocks.0.mlp.fc1": (4 * TOWER, TOWER),
        "blocks.0.mlp.fc2": (TOWER, 4 * TOWER),
        "merger.mlp.0": (merged, merged),
        "merger.mlp.2": (hidden, merged),
    }
    yield "visual.patch_embed.proj.weight", 0.02 * torch.randn(TOWER, 3, 2, PATCH, PATCH, generator=random)
    for name, size in matrices.items():
        yield f"visual.{name}.weight", 0.02 * torch.randn(*size, generator=random)
        yield f"visual.{name}.bias", torch.zeros(size[0])
    for name in ("blocks.0.norm1", "blocks.0.norm2", "merger.ln_q"):
        yield f"visual.{name}.weight", torch.ones(TOWER)
        yield f"visual.{name}.bias", torch.zeros(TOWER)
