"""The configurations that were published, in the sizes that matter, and how many weights each model has."""

from typing import Any

SIGLIP = {
    "hidden_size": 1152,
    "image_size": 980,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
MINICPM_V = {"model_type": "minicpmv", "query_num": 64, "image_size": 448, "patch_size": 14, "vision_config": SIGLIP}
QWEN2_VL = {
    "model_type": "qwen2_vl",
    "num_hidden_layers": 28,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
QWEN2_VL_VISION = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14}

# Checkpoint -> family, configuration, weights.
PUBLISHED: dict[str, tuple[str, dict[str, Any], int]] = {
    "MiniCPM-Llama3-V-2_5": (
        "minicpm-v-2.5",
        {
            **MINICPM_V,
            "version": "2.5",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "query_num": 96,
            "rope_theta": 500000.0,
        },
        8_537_092_336,
    ),
    "MiniCPM-V-2_6": (
        "minicpm-v-2.6",
        {
            **MINICPM_V,
            "version": 2.6,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 151666,
        },
        8_099_175_152,
    ),
    "MiniCPM-V-4": (
        "minicpm-v-4.0",
        {
            **MINICPM_V,
            "version": 4.0,
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "vocab_size": 73448,
        },
        4_059_533_040,
    ),
    "MiniCPM-V-4_5": (
        "minicpm-v-4.5",
        {
            **MINICPM_V,
            "version": 4.5,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151748,
        },
        8_695_895_280,
    ),
    "Qwen2-VL-2B-Instruct": (
        "qwen2-vl",
        {
            **QWEN2_VL,
            "vision_config": {**QWEN2_VL_VISION, "hidden_size": 1536},
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        2_208_985_600,
    ),
    "Qwen2-VL-7B-Instruct": (
        "qwen2-vl",
        {
            **QWEN2_VL,
            "vision_config": {**QWEN2_VL_VISION, "hidden_size": 3584},
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        8_291_375_616,
    ),
    "Qwen2.5-VL-3B-Instruct": (
        "qwen2.5-vl",
        {
            **QWEN2_VL,
            "model_type": "qwen2_5_vl",
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 2048,
                "patch_size": 14,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
            "num_hidden_layers": 36,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        3_754_622_976,
    ),
}
