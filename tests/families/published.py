"""Published configurations, reduced to the relevant keys, and the number of weights of each model."""

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
MINICPM_V_4_6: dict[str, Any] = {
    "model_type": "minicpmv4_6",
    "image_size": 1120,
    "image_token_id": 248056,
    "video_token_id": 248057,
    "insert_layer_id": 6,
    "downsample_mode": "16x",
    "tie_word_embeddings": True,
    "vision_config": SIGLIP,
    "text_config": {
        "model_type": "qwen3_5_text",
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 16,
        "linear_value_head_dim": 128,
        "num_attention_heads": 8,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "vocab_size": 248094,
        "tie_word_embeddings": True,
        "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10000000.0, "rope_type": "default"},
    },
}

QWEN_3_5: dict[str, Any] = {
    "model_type": "qwen3_5",
    "image_token_id": 248056,
    "video_token_id": 248057,
    "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
}
QWEN_3_5_TEXT: dict[str, Any] = {
    **MINICPM_V_4_6["text_config"],
    "vocab_size": 248320,
    "max_position_embeddings": 262144,
    "rope_parameters": {
        **MINICPM_V_4_6["text_config"]["rope_parameters"],
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    },
}
QWEN_3_5_MOE_TEXT: dict[str, Any] = {
    **{key: value for key, value in QWEN_3_5_TEXT.items() if key not in ("intermediate_size", "layer_types")},
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "linear_num_value_heads": 32,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
}
QWEN_3_5_VISION = {"patch_size": 16, "num_position_embeddings": 2304, "deepstack_visual_indexes": []}

# Checkpoint -> family, configuration, number of weights; of Qwen2.5-Omni those of the thinker.
PUBLISHED: dict[str, tuple[str, dict[str, Any], int]] = {
    "MiniCPM-V-2": (
        "minicpm-v-2.0",
        {
            "model_type": "minicpmv",
            "hidden_size": 2304,
            "intermediate_size": 5760,
            "num_hidden_layers": 40,
            "num_attention_heads": 36,
            "num_key_value_heads": 36,
            "vocab_size": 122753,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 256,
            "query_num": 64,
            "image_size": 448,
            "patch_size": 14,
            "drop_vision_last_layer": True,
            "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
        },
        3_434_965_792,
    ),
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
    "MiniCPM-V-4.6": ("minicpm-v-4.6", MINICPM_V_4_6, 1_300_428_016),
    # Known from the FastFlowLM engine: the sizes of the language model (Qwen3.5-0.8B, as in 4.6), the M-RoPE sections
    # [11, 11, 10], patch and image size, merger layer, downsample mode and image token. Inferred: the vocabulary and
    # the sizes of the vision encoder from the number of weights of the mixture-of-experts model (below), the tied head
    # from 4.6, and from these the number of weights. `image_size` is the default of the torch class.
    "MiniCPM-V-4.7-1B": (
        "minicpm-v-4.7",
        {
            **MINICPM_V_4_6,
            "model_type": "minicpmv4_7",
            "image_size": 448,
            "text_config": {
                **MINICPM_V_4_6["text_config"],
                "vocab_size": 248144,
                "rope_parameters": {
                    **MINICPM_V_4_6["text_config"]["rope_parameters"],
                    "mrope_section": [11, 11, 10],
                    "mrope_interleaved": True,
                },
            },
        },
        1_300_479_216,
    ),
    # The number of weights is published; it is that of the language model of Qwen3.5-35B-A3B with this vocabulary.
    "MiniCPM-V-4.7-35B-A3B": (
        "minicpm-v-4.7-moe",
        {
            **MINICPM_V_4_6,
            "model_type": "minicpmv4_7",
            "image_size": 448,
            "tie_word_embeddings": False,
            "text_config": {**QWEN_3_5_MOE_TEXT, "vocab_size": 248144},
        },
        35_212_875_824,
    ),
    "MiniCPM-o-2_6": (
        "minicpm-o-2.6",
        {
            **MINICPM_V,
            "model_type": "minicpmo",
            "version": "2.6",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 151700,
            "audio_config": {
                "d_model": 1024,
                "encoder_layers": 24,
                "encoder_attention_heads": 16,
                "encoder_ffn_dim": 4096,
            },
        },
        8_099_418_864 + 307_217_408 + 16_521_216,  # language and vision, audio encoder, its projector; without speech
    ),
    "MiniCPM3-4B": (
        "minicpm3",
        {
            "architectures": ["MiniCPM3ForCausalLM"],
            "hidden_size": 2560,
            "intermediate_size": 6400,
            "num_hidden_layers": 62,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
            "vocab_size": 73448,
            "q_lora_rank": 768,
            "kv_lora_rank": 256,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 256,
            "rms_norm_eps": 1e-5,
        },
        4_073_875_968,
    ),
    "Qwen3-VL-4B-Instruct": (
        "qwen3-vl",
        {
            "model_type": "qwen3_vl",
            "tie_word_embeddings": True,
            "vision_config": {
                "depth": 24,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_heads": 16,
                "out_hidden_size": 2560,
                "patch_size": 16,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [5, 11, 17],
            },
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 9728,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 151936,
                "max_position_embeddings": 262144,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0, "mrope_section": [24, 20, 20]},
            },
        },
        4_437_815_808,
    ),
    "Qwen2.5-Omni-3B": (
        "qwen2.5-omni",
        {
            "model_type": "qwen2_5_omni",
            "thinker_config": {
                "model_type": "qwen2_5_omni_thinker",
                "audio_config": {"output_dim": 2048},
                "vision_config": {"hidden_size": 1280, "out_hidden_size": 2048},
                "text_config": {
                    "hidden_size": 2048,
                    "intermediate_size": 11008,
                    "num_hidden_layers": 36,
                    "num_attention_heads": 16,
                    "num_key_value_heads": 2,
                    "vocab_size": 151936,
                    "max_position_embeddings": 32768,
                    "rope_theta": 1000000.0,
                    "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24]},
                    "tie_word_embeddings": False,
                },
            },
        },
        4_703_464_448,
    ),
}
PUBLISHED |= {
    "Qwen3.5-0.8B": (
        "qwen3.5",
        {
            **QWEN_3_5,
            "tie_word_embeddings": True,
            "text_config": QWEN_3_5_TEXT,
            "vision_config": {
                **QWEN_3_5_VISION,
                "depth": 12,
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_heads": 12,
                "out_hidden_size": 1024,
            },
        },
        852_985_920,  # without the draft layer
    ),
    "Qwen3.5-35B-A3B": (
        "qwen3.5-moe",
        {
            **QWEN_3_5,
            "model_type": "qwen3_5_moe",
            "tie_word_embeddings": False,
            "text_config": QWEN_3_5_MOE_TEXT,
            "vision_config": {
                **QWEN_3_5_VISION,
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "out_hidden_size": 2048,
            },
        },
        35_107_181_936,  # without the draft layer
    ),
    "Qwen3.5-4B": (
        "qwen3.5",
        {
            **QWEN_3_5,
            "tie_word_embeddings": True,
            "text_config": {
                **QWEN_3_5_TEXT,
                "hidden_size": 2560,
                "intermediate_size": 9216,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "num_key_value_heads": 4,
                "linear_num_value_heads": 32,
            },
            "vision_config": {
                **QWEN_3_5_VISION,
                "depth": 24,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_heads": 16,
                "out_hidden_size": 2560,
            },
        },
        4_539_265_536,  # without the draft layer
    ),
    "Qwen3.6-27B": (
        "qwen3.5",
        {
            **QWEN_3_5,
            "tie_word_embeddings": False,
            "text_config": {
                **QWEN_3_5_TEXT,
                "hidden_size": 5120,
                "intermediate_size": 17408,
                "num_hidden_layers": 64,
                "num_attention_heads": 24,
                "num_key_value_heads": 4,
                "linear_num_value_heads": 48,
                "tie_word_embeddings": False,
            },
            "vision_config": {
                **QWEN_3_5_VISION,
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "out_hidden_size": 5120,
            },
        },
        27_356_728_560,  # without the draft layer
    ),
}
PUBLISHED |= {
    "SmolVLM2-256M-Video-Instruct": (
        "smolvlm2",
        {
            "model_type": "smolvlm",
            "image_token_id": 49190,
            "scale_factor": 4,
            "tie_word_embeddings": False,
            "vision_config": {
                "model_type": "smolvlm_vision",
                "hidden_size": 768,
                "image_size": 512,
                "num_attention_heads": 12,
                "patch_size": 16,
            },
            "text_config": {
                "model_type": "llama",
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "head_dim": 64,
                "vocab_size": 49280,
                "max_position_embeddings": 8192,
                "rope_theta": 100000.0,
            },
        },
        256_484_928,
    ),
    "SmolVLM2-2.2B-Instruct": (
        "smolvlm2",
        {
            "model_type": "smolvlm",
            "image_token_id": 49190,
            "scale_factor": 3,
            "tie_word_embeddings": False,
            "vision_config": {
                "model_type": "smolvlm_vision",
                "hidden_size": 1152,
                "image_size": 384,
                "intermediate_size": 4304,
                "num_attention_heads": 16,
                "num_hidden_layers": 27,
                "patch_size": 14,
            },
            "text_config": {
                "model_type": "llama",
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 24,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "vocab_size": 49280,
                "max_position_embeddings": 8192,
                "rope_theta": 130000.0,
            },
        },
        2_246_784_880,
    ),
}
PUBLISHED |= {
    "InternVL3_5-1B-HF": (
        "internvl",
        {
            "model_type": "internvl",
            "image_token_id": 151671,
            "image_seq_length": 256,
            "downsample_ratio": 0.5,
            "tie_word_embeddings": False,
            "vision_config": {
                "model_type": "internvl_vision",
                "attention_bias": True,
                "hidden_size": 1024,
                "image_size": [448, 448],
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "patch_size": [14, 14],
            },
            "text_config": {
                "model_type": "qwen3",
                "hidden_size": 1024,
                "intermediate_size": 3072,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 151936,
                "max_position_embeddings": 40960,
                "rope_theta": 1000000.0,
            },
        },
        1_060_897_792,  # of the paper: 304.01 M for vision, 751.63 M for language, 1.06 B in total
    ),
}
GEMMA_3_TEXT = {
    "model_type": "gemma3_text",
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}
GEMMA_3 = {
    "model_type": "gemma3",
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
PUBLISHED |= {
    "gemma-3-4b-it": (
        "gemma-3",
        {
            **GEMMA_3,
            "text_config": {**GEMMA_3_TEXT, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34},
        },
        4_300_079_472,
    ),
    "gemma-3-12b-it": (
        "gemma-3",
        {
            **GEMMA_3,
            "text_config": {
                **GEMMA_3_TEXT,
                "hidden_size": 3840,
                "intermediate_size": 15360,
                "num_attention_heads": 16,
                "num_hidden_layers": 48,
                "num_key_value_heads": 8,
            },
        },
        12_187_325_040,
    ),
    "gemma-3-27b-it": (
        "gemma-3",
        {
            **GEMMA_3,
            "text_config": {
                **GEMMA_3_TEXT,
                "head_dim": 128,
                "hidden_size": 5376,
                "intermediate_size": 21504,
                "num_attention_heads": 32,
                "num_hidden_layers": 62,
                "num_key_value_heads": 16,
                "query_pre_attn_scalar": 168,
            },
        },
        27_432_406_640,
    ),
}
LFM2_VL = {
    "model_type": "lfm2_vl",
    "image_token_id": 396,
    "downsample_factor": 2,
    "projector_hidden_size": 2560,
    "projector_use_layernorm": True,
}
LFM2_TEXT = {
    "model_type": "lfm2",
    "block_auto_adjust_ff_dim": True,
    "block_multiple_of": 256,
    "conv_L_cache": 3,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "vocab_size": 65536,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
}
PUBLISHED |= {
    "LFM2-VL-450M": (
        "lfm2-vl",
        {
            **LFM2_VL,
            "text_config": {
                **LFM2_TEXT,
                "hidden_size": 1024,
                "intermediate_size": 6656,
                "num_attention_heads": 16,
            },
            "vision_config": {
                "model_type": "siglip2_vision_model",
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_attention_heads": 12,
                "num_hidden_layers": 12,
                "num_patches": 256,
                "patch_size": 16,
                "vision_use_head": False,
            },
        },
        450_822_656,
    ),
    "LFM2-VL-1.6B": (
        "lfm2-vl",
        {
            **LFM2_VL,
            "text_config": {
                **LFM2_TEXT,
                "hidden_size": 2048,
                "intermediate_size": 12288,
                "num_attention_heads": 32,
            },
            "vision_config": {
                "model_type": "siglip2_vision_model",
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_attention_heads": 16,
                "num_hidden_layers": 26,
                "num_patches": 256,
                "patch_size": 16,
                "vision_use_head": False,
            },
        },
        1_584_804_000,
    ),
}
