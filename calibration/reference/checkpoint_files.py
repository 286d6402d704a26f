"""Configuration, shards and index of the reference checkpoint, in the published layout of MiniCPM-V 2.6."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from calibration.reference.samples import QUERIES, SLICE
from calibration.reference.tokenizer import END_OF_TEXT, TURN_END, VOCAB_SIZE, token_id, write_tokenizer
from mcpmq.families.modeling_minicpmv import MiniCPMVConfig, MiniCPMVForConditionalGeneration

PATCH = 14
MAX_SLICES = 9
SHARD_BYTES = 8_000_000
INDEX_FILE = "model.safetensors.index.json"


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return config.json."""
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
        "vocab_size": VOCAB_SIZE,
        "tie_word_embeddings": False,
        "bos_token_id": token_id(tokenizer, END_OF_TEXT),
        "eos_token_id": token_id(tokenizer, TURN_END),
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
    """Return the slicing settings of large images."""
    return {
        "model_type": "minicpmv",
        "max_slice_nums": MAX_SLICES,
        "patch_size": PATCH,
        "scale_resolution": SLICE,
    }


def vision_config() -> dict[str, Any]:
    """Return the settings of the SigLIP tower; like the published 4304, 1008 is not a multiple of 32."""
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
    """Return preprocessor_config.json."""
    return {
        "image_processor_type": "MiniCPMVImageProcessor",
        "version": 2.6,
        "max_slice_nums": MAX_SLICES,
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
    """Return generation_config.json: greedy decoding, stopped by both end tokens."""
    end, padding = token_id(tokenizer, TURN_END), token_id(tokenizer, END_OF_TEXT)
    return {
        "bos_token_id": padding,
        "eos_token_id": [end, padding],
        "pad_token_id": padding,
        "do_sample": False,
        "max_new_tokens": 96,
    }


def build_model(config: dict[str, Any]) -> MiniCPMVForConditionalGeneration:
    """Return a randomly initialized float32 model."""
    shape = {key: value for key, value in config.items() if key not in ("torch_dtype", "architectures", "model_type")}
    model = MiniCPMVForConditionalGeneration(MiniCPMVConfig(**shape))
    model.float()
    return model


def split_shards(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the weights in order, in shards of about SHARD_BYTES."""
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
    """Write bf16 shards and their index, and delete the previous shards."""
    for old in directory.glob("model-*.safetensors"):
        old.unlink()
    rounded = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}
    parts = split_shards(rounded)
    places: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file(part, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(0o644)
        places.update(dict.fromkeys(part, file))
    total = sum(weight.numel() * weight.element_size() for weight in rounded.values())
    write_json({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}, directory / INDEX_FILE)


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Read all weights of a checkpoint with their stored dtypes."""
    places = json.loads((directory / INDEX_FILE).read_text())["weight_map"]
    weights: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        weights.update(load_file(directory / file))
    return weights


def write_json(value: dict[str, Any], path: Path) -> None:
    """Write indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_checkpoint(weights: dict[str, Tensor], tokenizer: Tokenizer, directory: Path) -> None:
    """Write all files of the checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tokenizer, directory)
    write_json(model_config(tokenizer), directory / "config.json")
    write_json(preprocessor_config(), directory / "preprocessor_config.json")
    write_json(generation_config(tokenizer), directory / "generation_config.json")
    write_weights(weights, directory)
