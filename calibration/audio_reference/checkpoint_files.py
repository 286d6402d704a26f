"""Configuration and files of the audio reference checkpoint, in the published layout of MiniCPM-o 2.6."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from calibration.reference.checkpoint_files import write_json, write_weights
from calibration.reference.tokenizer import (
    END_OF_TEXT,
    IMAGE_MARKS,
    SPECIAL_TOKENS,
    SYSTEM_PROMPT,
    TURN_END,
    byte_level_tokenizer,
    token_id,
    write_tokenizer,
)
from calibration.speech_phrases import phrase, questions, written
from mcpmq.families.modeling_minicpmo import MiniCPMOConfig, MiniCPMOForConditionalGeneration

VOCAB_SIZE = 448
AUDIO_MARKS = ("<|audio_start|>", "<|audio_end|>")
MARKS = (*IMAGE_MARKS, *AUDIO_MARKS)
HIDDEN, QUERIES, SLICE, PATCH = 128, 4, 56, 14


def training_texts(count: int) -> Iterator[str]:
    """Yield questions and answers in the proportions of the training data."""
    rng = random.Random("tokenizer")
    for _ in range(count):
        words = phrase(rng)
        yield f"system\n{SYSTEM_PROMPT}"
        for question in questions(words):
            yield f"user\n{written(words)}\n{question.text}"
            yield f"assistant\n{question.answer}"


def train_tokenizer(count: int = 2000) -> Tokenizer:
    """Train a tokenizer of exactly VOCAB_SIZE tokens."""
    return byte_level_tokenizer(training_texts(count), VOCAB_SIZE, (*SPECIAL_TOKENS, *AUDIO_MARKS))


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return config.json."""
    return {
        "architectures": ["MiniCPMO"],
        "model_type": "minicpmo",
        "version": "2.6",
        "hidden_size": HIDDEN,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
        "initializer_range": 0.05,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
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
        "slice_mode": True,
        "use_image_id": True,
        "slice_config": {"model_type": "minicpmv", "max_slice_nums": 9, "patch_size": PATCH, "scale_resolution": SLICE},
        "vision_config": {
            "model_type": "siglip",
            "hidden_size": 64,
            "intermediate_size": 144,
            "num_attention_heads": 4,
            "num_hidden_layers": 1,
            "image_size": 980,
            "patch_size": PATCH,
        },
        "audio_config": {
            "model_type": "whisper",
            "d_model": 128,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 384,
            "num_mel_bins": 80,
            "max_source_positions": 1500,
        },
        "audio_pool_step": 2,
        "audio_chunk_length": 1.0,
    }


def preprocessor_config() -> dict[str, Any]:
    """Return preprocessor_config.json: the settings of images and of audio."""
    return {
        "image_processor_type": "MiniCPMVImageProcessor",
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 80,
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
        "version": 2.6,
        "max_slice_nums": 9,
        "scale_resolution": SLICE,
        "patch_size": PATCH,
        "slice_mode": True,
        "use_image_id": True,
        "image_feature_size": QUERIES,
        "norm_mean": [0.5, 0.5, 0.5],
        "norm_std": [0.5, 0.5, 0.5],
    }


def build_model(config: dict[str, Any]) -> MiniCPMOForConditionalGeneration:
    """Return a randomly initialized float32 model."""
    shape = {key: value for key, value in config.items() if key not in ("torch_dtype", "architectures", "model_type")}
    model = MiniCPMOForConditionalGeneration(MiniCPMOConfig(**shape))
    model.float()
    return model


def write_checkpoint(weights: dict[str, Tensor], tokenizer: Tokenizer, directory: Path) -> None:
    """Write all files of the checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    end, padding = token_id(tokenizer, TURN_END), token_id(tokenizer, END_OF_TEXT)
    write_tokenizer(tokenizer, directory, MARKS)
    write_json(model_config(tokenizer), directory / "config.json")
    write_json(preprocessor_config(), directory / "preprocessor_config.json")
    generation = {"eos_token_id": [end, padding], "pad_token_id": padding, "do_sample": False, "max_new_tokens": 32}
    write_json(generation, directory / "generation_config.json")
    write_weights(weights, directory)
