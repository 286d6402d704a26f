"""A tiny random MiniCPM-V 2.6 checkpoint in the published layout, built in a second, for tests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
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


def build_checkpoint(path: Path, config: Mapping[str, Any] = CONFIG, seed: int = 0) -> Path:
    """Write a whole checkpoint: two shards with an index, configuration, tokenizer, preprocessor."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(config, seed)
    write_shards(path, tensors)
    (path / "config.json").write_text(json.dumps(config, indent=1))
    (path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=1))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 258}))
    write_tokenizer(path)
    return path


def random_tensors(config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Weights scaled so that activations stay near one, by hub name."""
    family = family_of(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for spec in family.tensors(family.architecture(config)):
        value = torch.randn(spec.shape, generator=generator)
        if len(spec.shape) > 1:
            value = value * spec.shape[-1] ** -0.5 if spec.role == "matrix" else value * 0.5
        elif "norm" in spec.name and not spec.name.endswith("bias"):
            value = 1 + 0.1 * value
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


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE in Qwen2's manner, with the image and slice tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "What does the sign say? The sign says red. How many circles are there? You are a helpful assistant. user"
    tokenizer.train_from_iterator([words] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
