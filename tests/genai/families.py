"""Tiny checkpoints of the families that ONNX Runtime GenAI runs."""

from dataclasses import replace

from tests.tiny_families import GEMMA_3, TINY_FAMILIES

# GenAI has the number of image tokens of the published checkpoints as a constant.
GEMMA = replace(
    GEMMA_3,
    config={
        **GEMMA_3.config,
        "mm_tokens_per_image": 256,
        "vision_config": {**GEMMA_3.config["vision_config"], "image_size": 448},
    },
    preprocessor={**(GEMMA_3.preprocessor or {}), "image_seq_length": 256, "size": {"height": 448, "width": 448}},
)
NAMES = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3.5", "lfm2-vl"]
FAMILIES = {"gemma-3": GEMMA} | {one.name: one for one in TINY_FAMILIES if one.name in NAMES}
