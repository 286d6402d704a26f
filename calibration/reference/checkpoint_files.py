"""The reference checkpoint's shape and files: configuration, shards and index in the published MiniCPM-V 2.6 layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from calibration.reference.samples import QUERIES, SLICE
from calibration.reference.tokenizer import END_OF_TEXT, TURN_END, VOCABULARY, write_tokenizer
from mcpmq.families.modeling_minicpmv import MiniCPMVConfig, MiniCPMVForConditionalGeneration

PATCH = 14
MAXIMUM_SLICES = 9
SHARD_BYTES = 8_000_000
INDEX = "model.safetensors.index.json"


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """What stands in config.json."""
    return {
        "architectures": ["MiniCPMV"],
        "model_type": "minicpmv",
        "version": 2.6,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "attention_dropout": 0.0,
        "use_cache": True,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "eos_token_id": tokenizer.token_to_id(TURN_END),
        "torch_dtype": "bfloat16",
        "query_num": QUERIES,
        "image_size": SLICE,
        "patch_size": PATCH,
        "drop_vision_last_layer": False,
        "batch_vision_input": True,
        "slice_mode": True,
        "use_image_id": True,
        "vision_batch_size": 16,
        "slice_config": slice_config(),
        "vision_config": vision_config(),
    }


def slice_config() -> dict[str, Any]:
    """How a large picture is cut."""
    return {
        "model_type": "minicpmv",
        "max_slice_nums": MAXIMUM_SLICES,
        "patch_size": PATCH,
        "scale_resolution": SLICE,
    }


def vision_config() -> dict[str, Any]:
    """The SigLIP tower; 1008 is, like the published 4304, no multiple of 32."""
    return {
        "model_type": "siglip",
        "hidden_size": 256,
        "intermediate_size": 1008,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "image_size": 980,
        "patch_size": PATCH,
    }


def preprocessor_config() -> dict[str, Any]:
    """What stands in preprocessor_config.json."""
    return {
        "image_processor_type": "MiniCPMVImageProcessor",
        "version": 2.6,
        "max_slice_nums": MAXIMUM_SLICES,
        "scale_resolution": SLICE,
        "patch_size": PATCH,
        "slice_mode": True,
        "use_image_id": True,
        "image_feature_size": QUERIES,
        "im_start": "<image>",
        "im_end": "</image>",
        "slice_start": "<slice>",
        "slice_end": "</slice>",
        "unk": "<unk>",
        "im_id_start": "<image_id>",
        "im_id_end": "</image_id>",
        "norm_mean": [0.5, 0.5, 0.5],
        "norm_std": [0.5, 0.5, 0.5],
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """What stands in generation_config.json: greedy, both ends of text stop it."""
    end, padding = tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT)
    return {
        "bos_token_id": padding,
        "eos_token_id": [end, padding],
        "pad_token_id": padding,
        "do_sample": False,
        "max_new_tokens": 96,
    }


def build_model(config: dict[str, Any]) -> MiniCPMVForConditionalGeneration:
    """A model with fresh weights, float32."""
    shape = {key: value for key, value in config.items() if key not in ("torch_dtype", "architectures", "model_type")}
    return MiniCPMVForConditionalGeneration(MiniCPMVConfig(**shape)).float()


def shards(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The weights in order, in parts of about SHARD_BYTES."""
    parts: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, weight in sorted(weights.items()):
        nbytes = weight.numel() * weight.element_size()
        if filled and filled + nbytes > SHARD_BYTES:
            parts.append({})
            filled = 0
        parts[-1][name] = weight
        filled += nbytes
    return parts


def write_weights(weights: dict[str, Tensor], directory: Path) -> None:
    """bf16 shards and their index; shards of an earlier run are removed."""
    for old in directory.glob("model-*.safetensors"):
        old.unlink()
    rounded = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}
    parts = shards(rounded)
    places: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file(part, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(0o644)
        places.update(dict.fromkeys(part, file))
    total = sum(weight.numel() * weight.element_size() for weight in rounded.values())
    write_json({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}, directory / INDEX)


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint, as stored."""
    places = json.loads((directory / INDEX).read_text())["weight_map"]
    weights: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        weights.update(load_file(directory / file))
    return weights


def write_json(value: dict[str, Any], path: Path) -> None:
    """Indented JSON with a newline at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_checkpoint(weights: dict[str, Tensor], tokenizer: Tokenizer, directory: Path) -> None:
    """The whole checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tokenizer, directory)
    write_json(model_config(tokenizer), directory / "config.json")
    write_json(preprocessor_config(), directory / "preprocessor_config.json")
    write_json(generation_config(tokenizer), directory / "generation_config.json")
    write_weights(weights, directory)
