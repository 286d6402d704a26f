"""Tiny random checkpoints in the published layouts for tests; MiniCPM-V 2.6 by default."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from mcpmq.checkpoint import Checkpoint
from mcpmq.families import family_of
from tests.expert_tools import stack_experts

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "<image>", "</image>", "<slice>", "</slice>"]
SPECIAL_TOKENS += ["<image_id>", "</image_id>"]
VOCAB_SIZE = 320
SPLIT_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCEPIECE_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


@dataclass(frozen=True)
class TinyTokenizer:
    """Tokenizer of a family; SentencePiece BPE if `split_regex` is empty, else byte-level BPE."""

    special_tokens: list[str]
    split_regex: str = SPLIT_REGEX
    chat_template: str | None = CHAT_TEMPLATE  # None: the checkpoint has no template file
    settings: Mapping[str, str] = field(default_factory=dict)
    more_words: tuple[str, ...] = ()  # to train on
    keeps_start: bool = False  # SentencePiece without a space before the text, as in Gemma
    splits_digits: bool = False  # every digit, then the regular expression of GPT-2, instead of `split_regex`


TOKENIZER = TinyTokenizer(
    SPECIAL_TOKENS,
    settings={
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
    },
)
CONFIG: dict[str, Any] = {
    "architectures": ["MiniCPMV"],
    "model_type": "minicpmv",
    "version": 2.6,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "query_num": 4,
    "image_size": 56,
    "patch_size": 14,
    "use_image_id": True,
    "slice_mode": True,
    "drop_vision_last_layer": False,
    "batch_vision_input": True,
    "slice_config": {"max_slice_nums": 9, "patch_size": 14, "model_type": "minicpmv"},
    "vision_config": {
        "model_type": "siglip",
        "hidden_size": 64,
        "intermediate_size": 144,  # not a multiple of 32, like the published 4304
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "image_size": 980,
        "patch_size": 14,
    },
}
SMALL_CONFIG = {**CONFIG, "hidden_size": 128, "intermediate_size": 256}  # for tests that calibrate several times
PREPROCESSOR = {
    "image_processor_type": "MiniCPMVImageProcessor",
    "max_slice_nums": 9,
    "scale_resolution": 56,
    "patch_size": 14,
    "use_image_id": True,
    "slice_mode": True,
    "image_feature_size": 4,
    "im_start": "<image>",
    "im_end": "</image>",
    "slice_start": "<slice>",
    "slice_end": "</slice>",
    "unk": "<unk>",
    "im_id_start": "<image_id>",
    "im_id_end": "</image_id>",
    "norm_mean": [0.5, 0.5, 0.5],
    "norm_std": [0.5, 0.5, 0.5],
    "version": 2.6,
}


def build_checkpoint(
    path: Path,
    config: Mapping[str, Any] = CONFIG,
    seed: int = 0,
    preprocessor: Mapping[str, Any] | None = PREPROCESSOR,
    tokenizer: TinyTokenizer = TOKENIZER,
    extra_tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint: two shards with an index, config.json, tokenizer and preprocessor_config.json."""
    path.mkdir(parents=True, exist_ok=True)
    write_tokenizer(path, tokenizer)
    config = _with_token_ids(config, path)
    transposed = config.get("model_type") == "qwen3_vl_moe"
    tensors = stack_experts(random_tensors(config, seed), transposed) | dict(extra_tensors or {})
    write_shards(path, tensors)
    (path / "config.json").write_text(json.dumps(config, indent=1))
    if preprocessor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 258}))
    return path


def _with_token_ids(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Replace tokens by their ids, for example in `{"image_token_id": "<|image_pad|>"}`."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    inner = {key: _with_token_ids(value, path) for key, value in config.items() if isinstance(value, Mapping)}
    tokens = {key for key, value in config.items() if key.endswith(("_id", "_index")) and isinstance(value, str)}
    return {key: tokenizer.token_to_id(value) if key in tokens else value for key, value in config.items()} | inner


def random_tensors(config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Return random tensors by hub name, scaled to keep activations near 1."""
    family = family_of(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    architecture = family.parse_architecture(config)
    for spec in family.tensor_specs(architecture):
        value = torch.randn(spec.shape, generator=generator)
        if len(spec.shape) > 1:
            is_scaled = spec.role == "matrix" or spec.alias or spec.name.endswith("router")
            value = value * (spec.shape[-1] ** -0.5 if is_scaled else 0.5)
        elif "norm" in spec.name and not spec.name.endswith("bias"):
            offset_norm = architecture.language.offset_norms and not spec.name.startswith(("vision", "projector"))
            value = 0.1 * value + (0 if offset_norm and ".linear." not in spec.name else 1)
        else:
            value = 0.1 * value
        tensors[spec.hub_name] = value.bfloat16()
    return tensors


def make_uneven(path: Path, seed: int = 7) -> Path:
    """Scale the norms of a checkpoint so that channels differ by orders of magnitude, as in trained models."""
    generator = torch.Generator().manual_seed(seed)
    for shard in sorted(path.glob("*.safetensors")):
        tensors = load_file(shard)
        for name, value in tensors.items():
            if value.dim() == 1 and ("norm" in name or "ln_post" in name) and name.endswith("weight"):
                tensors[name] = (value * torch.randn(len(value), generator=generator).exp()).bfloat16()
        save_file(tensors, shard, metadata={"format": "pt"})
    return path


def change_weights(path: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    """Replace every weight of a checkpoint, by its common name, by the result of `change` in bfloat16."""
    names = {spec.hub_name: spec.name for spec in Checkpoint.open(path).specs}
    for shard in sorted(path.glob("*.safetensors")):
        tensors = {name: change(names[name], value).bfloat16().contiguous() for name, value in load_file(shard).items()}
        save_file(tensors, shard, metadata={"format": "pt"})
    return path


def multiply(**exponents: int) -> Callable[[str, Tensor], Tensor]:
    """Return a change that multiplies language weights and their biases by powers of two; names have __ for dots."""
    suffixes = {f".{name.replace('__', '.')}": exponent for name, exponent in exponents.items()}

    def change(name: str, value: Tensor) -> Tensor:
        found = [exponent for suffix, exponent in suffixes.items() if name.removesuffix(".bias").endswith(suffix)]
        return value.float() * 2.0 ** found[0] if found and name.startswith("language") else value

    return change


def write_shards(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write two shards and their index."""
    names = list(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, path / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    weight_map = {name: file for file, held in shards.items() for name in held}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(path: Path, definition: TinyTokenizer = TOKENIZER) -> None:
    """Train a BPE tokenizer with the special tokens of the family."""
    tokenizer = _byte_level(definition) if definition.split_regex else _sentencepiece(definition)
    words = "What does the sign say? The sign says red. How many circles are there? You are a helpful assistant. user"
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(definition.special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if definition.split_regex else [],
        special_tokens=[] if definition.split_regex else SENTENCEPIECE_TOKENS,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*[words] * 4, *definition.more_words * 8], trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in definition.special_tokens]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    if not definition.split_regex:
        _make_byte_tokens_ordinary(path / "tokenizer.json")
    settings = {**definition.settings, "model_max_length": 2048}
    settings |= {"chat_template": definition.chat_template} if definition.chat_template else {}
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _byte_level(definition: TinyTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    by_regex = pre_tokenizers.Split(Regex(definition.split_regex), behavior="isolated")
    split = pre_tokenizers.Digits(individual_digits=True) if definition.splits_digits else by_regex
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=definition.splits_digits)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(definition: TinyTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replaced = normalizers.Replace(" ", "\u2581")
    if definition.keeps_start:
        tokenizer.normalizer = replaced
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replaced])
    return tokenizer


def _make_byte_tokens_ordinary(file: Path) -> None:
    """Remove the byte tokens from the special tokens, which the trainer needs for a fixed vocabulary."""
    content = json.loads(file.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    file.write_text(json.dumps(content, ensure_ascii=False))
