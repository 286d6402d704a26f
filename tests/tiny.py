"""Tiny random checkpoints in the published layouts, built in a second, for tests: MiniCPM-V 2.6 if not told."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from mcpmq.families import family_of

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "<image>", "</image>", "<slice>", "</slice>"]
SPECIAL += ["<image_id>", "</image_id>"]
VOCABULARY = 320
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCEPIECE = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


@dataclass(frozen=True)
class TinyTokenizer:
    """What a family's tokenizer has of its own; without `split` it is one in SentencePiece's manner."""

    special: list[str]
    split: str = SPLIT
    template: str | None = CHAT_TEMPLATE  # None: the family has it, no file does
    settings: Mapping[str, str] = field(default_factory=dict)


TOKENIZER = TinyTokenizer(
    SPECIAL,
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
    "vocab_size": VOCABULARY,
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
        "intermediate_size": 144,  # no multiple of 32, as 4304 is none
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "image_size": 980,
        "patch_size": 14,
    },
}
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
    more: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a whole checkpoint: two shards with an index, configuration, tokenizer, preprocessor."""
    path.mkdir(parents=True, exist_ok=True)
    write_tokenizer(path, tokenizer)
    config = _with_token_ids(config, path)
    tensors = random_tensors(config, seed) | dict(more or {})
    write_shards(path, tensors)
    (path / "config.json").write_text(json.dumps(config, indent=1))
    if preprocessor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 258}))
    return path


def _with_token_ids(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`{"image_token_id": "<|image_pad|>"}` with the number that the tokenizer gave it."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokens = {key for key, value in config.items() if key.endswith("_id") and isinstance(value, str)}
    return {key: tokenizer.token_to_id(value) if key in tokens else value for key, value in config.items()}


def random_tensors(config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Weights scaled so that activations stay near one, by hub name."""
    family = family_of(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    architecture = family.architecture(config)
    for spec in family.tensors(architecture):
        value = torch.randn(spec.shape, generator=generator)
        if len(spec.shape) > 1:
            value = value * (spec.shape[-1] ** -0.5 if spec.role == "matrix" or spec.also else 0.5)
        elif "norm" in spec.name and not spec.name.endswith("bias"):
            centred = architecture.language.centred_norms and not spec.name.startswith(("vision", "projector"))
            value = 0.1 * value + (0 if centred and ".linear." not in spec.name else 1)
        else:
            value = 0.1 * value
        tensors[spec.hub_name] = value.bfloat16()
    return tensors


def make_uneven(path: Path, seed: int = 7) -> Path:
    """Make the channels after every norm of a checkpoint differ by orders of magnitude, as those of real models do."""
    generator = torch.Generator().manual_seed(seed)
    for shard in sorted(path.glob("*.safetensors")):
        tensors = load_file(shard)
        for name, value in tensors.items():
            if value.dim() == 1 and ("norm" in name or "ln_post" in name) and name.endswith("weight"):
                tensors[name] = (value * torch.randn(len(value), generator=generator).exp()).bfloat16()
        save_file(tensors, shard, metadata={"format": "pt"})
    return path


def write_shards(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Two shards and their index."""
    names = list(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, path / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    weight_map = {name: file for file, held in shards.items() for name in held}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(path: Path, asked: TinyTokenizer = TOKENIZER) -> None:
    """A BPE in the manner of the family, with its special tokens."""
    tokenizer = _byte_level(asked.split) if asked.split else _sentencepiece()
    words = "What does the sign say? The sign says red. How many circles are there? You are a helpful assistant. user"
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(asked.special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if asked.split else [],
        special_tokens=[] if asked.split else SENTENCEPIECE,
        show_progress=False,
    )
    tokenizer.train_from_iterator([words] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in asked.special])
    tokenizer.save(str(path / "tokenizer.json"))
    if not asked.split:
        _forget_bytes_are_special(path / "tokenizer.json")
    settings = {**asked.settings, "model_max_length": 2048}
    settings |= {"chat_template": asked.template} if asked.template else {}
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _byte_level(split: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return tokenizer


def _forget_bytes_are_special(file: Path) -> None:
    """The trainer knows no other way to give bytes a place in the vocabulary."""
    written = json.loads(file.read_text())
    written["added_tokens"] = [token for token in written["added_tokens"] if not token["content"].startswith("<0x")]
    file.write_text(json.dumps(written, ensure_ascii=False))
