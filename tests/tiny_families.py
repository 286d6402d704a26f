"""Tiny checkpoints of all families in the published layouts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import CONFIG, PREPROCESSOR, SPECIAL_TOKENS, SPLIT_REGEX, TOKENIZER, TinyTokenizer, build_checkpoint

QWEN_3_5_SPLIT_REGEX = SPLIT_REGEX.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)
QWEN_VL_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_VL_SPECIAL_TOKENS += ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
LLAMA_3_SPECIAL_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA_3_SPECIAL_TOKENS += ["<unk>", "<image>", "</image>", "<slice>", "</slice>"]
MINICPM_4_SPECIAL_TOKENS = ["<|im_start|>", "<|im_end|>", "<image>", "</image>", "<slice>", "</slice>"]
MINICPM_4_SPECIAL_TOKENS += ["<image_id>", "</image_id>"]
LLAMA_3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MINICPM_4_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MINICPM_4_TOKENIZER = TinyTokenizer(
    MINICPM_4_SPECIAL_TOKENS,
    "",
    MINICPM_4_TEMPLATE,
    {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>"},
)
MINICPM_V_2_CONFIG = {
    "architectures": ["MiniCPMV"],
    "model_type": "minicpmv",
    "version": 2.0,  # missing in the published file, whose sizes identify it
    "hidden_size": 512,  # twice dim_model_base, for a logits divisor of 2
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 320,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 256,
    "query_num": 4,
    "image_size": 56,
    "patch_size": 14,
    "scale_resolution": 56,
    "max_slice_nums": 9,
    "slice_mode": True,
    "drop_vision_last_layer": True,
    "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 144,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,  # the last one is dropped
        "image_size": 77,  # 5x5 patches; slices have fewer or more
        "patch_size": 14,
    },
}
QWEN_VL_PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "min_pixels": 8 * 28 * 28,
    "max_pixels": 24 * 28 * 28,
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
}


@dataclass(frozen=True)
class TinyFamily:
    """Definition of a tiny checkpoint."""

    name: str  # family name
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any] | None = None
    tokenizer: TinyTokenizer = TOKENIZER
    variant: str = ""
    extra_tensors: Mapping[str, Tensor] = field(default_factory=dict)  # passthrough tensors
    llama_cpp_config: Mapping[str, Any] = field(
        default_factory=dict
    )  # config.json keys that make torch compute as llama.cpp
    video_preprocessor: Mapping[str, Any] | None = None  # settings of videos, where they are not those of images

    def build(self, path: Path) -> Path:
        """Write the checkpoint."""
        if self.video_preprocessor is not None:
            path.mkdir(parents=True, exist_ok=True)
            (path / "video_preprocessor_config.json").write_text(json.dumps(self.video_preprocessor))
        return build_checkpoint(
            path,
            self.config,
            preprocessor=self.preprocessor,
            tokenizer=self.tokenizer,
            extra_tensors=self.extra_tensors,
        )


QWEN_VL_TOKENIZER = TinyTokenizer(
    QWEN_VL_SPECIAL_TOKENS, settings={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
)
QWEN2_VL = TinyFamily(
    "qwen2-vl",
    {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "vision_config": {
            "depth": 3,
            "embed_dim": 64,
            "hidden_size": 128,
            "num_heads": 2,
            "mlp_ratio": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    },
    QWEN_VL_PREPROCESSOR,
    QWEN_VL_TOKENIZER,
    llama_cpp_config={"rms_norm_eps": 1e-20},
)
MINICPM_V_4_6 = TinyFamily(
    "minicpm-v-4.6",
    {
        "architectures": ["MiniCPMV4_6ForConditionalGeneration"],
        "model_type": "minicpmv4_6",
        "tie_word_embeddings": True,
        "insert_layer_id": 0,
        "image_size": 112,
        "downsample_mode": "16x",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "text_config": {
            "model_type": "qwen3_5_text",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "vocab_size": 320,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
            "linear_conv_kernel_dim": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25},
            "tie_word_embeddings": True,
        },
        "vision_config": {**CONFIG["vision_config"], "model_type": "minicpmv4_6_vision"},
    },
    {
        "image_processor_type": "MiniCPMV4_6ImageProcessor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_slice_nums": 9,
        "scale_resolution": 112,
        "patch_size": 14,
        "slice_mode": True,
        "downsample_mode": "16x",
        "use_image_id": True,
    },
    TinyTokenizer(
        [*SPECIAL_TOKENS, "<|image_pad|>", "<|video_pad|>"],
        QWEN_3_5_SPLIT_REGEX,
        settings={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
)
MROPE_8 = {"mrope_section": [3, 3, 2], "mrope_interleaved": True}
QWEN3_VL = replace(
    QWEN2_VL,
    name="qwen3-vl",
    config={
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        **{key: value for key, value in QWEN2_VL.config.items() if key.endswith("_token_id")},
        "text_config": {
            "model_type": "qwen3_vl_text",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 48,
            "vocab_size": 320,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000000.0,
                "mrope_section": [8, 8, 8],
                "mrope_interleaved": True,
            },
        },
        "vision_config": {
            "model_type": "qwen3_vl_vision",
            "depth": 3,
            "hidden_size": 64,
            "out_hidden_size": 128,
            "intermediate_size": 144,
            "num_heads": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
    },
    preprocessor={
        **QWEN_VL_PREPROCESSOR,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "min_pixels": 8 * 32 * 32,
        "max_pixels": 24 * 32 * 32,
        "patch_size": 16,
    },
    video_preprocessor={
        "video_processor_type": "Qwen3VLVideoProcessor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": 48 * 32 * 32, "longest_edge": 120 * 32 * 32},
        "patch_size": 16,
        "merge_size": 2,
        "temporal_patch_size": 2,
    },
    llama_cpp_config={},
)
QWEN3_5 = replace(
    QWEN3_VL,
    name="qwen3.5",
    config={
        **QWEN3_VL.config,
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": {
            **MINICPM_V_4_6.config["text_config"],
            "linear_num_value_heads": 4,  # two share a key head, as in the published 4B and 9B models
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "rope_parameters": {**MINICPM_V_4_6.config["text_config"]["rope_parameters"], **MROPE_8},
        },
        "vision_config": {
            **{key: value for key, value in QWEN3_VL.config["vision_config"].items() if "deepstack" not in key},
            "model_type": "qwen3_5_vision",
            "depth": 2,
        },
    },
    tokenizer=replace(QWEN2_VL.tokenizer, split_regex=QWEN_3_5_SPLIT_REGEX),
    extra_tensors={"mtp.norm.weight": torch.ones(8).bfloat16()},
)
MINICPM_V_4_7 = replace(
    MINICPM_V_4_6,
    name="minicpm-v-4.7",
    config={
        **MINICPM_V_4_6.config,
        "architectures": ["MiniCPMV4_7ForConditionalGeneration"],
        "model_type": "minicpmv4_7",
        "image_start_id": "<image>",
        "image_end_id": "</image>",
        "slice_start_id": "<slice>",
        "slice_end_id": "</slice>",
        "newline_id": "Ċ",
        "text_config": {
            **MINICPM_V_4_6.config["text_config"],
            "rope_parameters": {**MINICPM_V_4_6.config["text_config"]["rope_parameters"], **MROPE_8},
        },
    },
)
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
QWEN3_VL_MOE = replace(
    QWEN3_VL,
    name="qwen3-vl-moe",
    config={
        **QWEN3_VL.config,
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "model_type": "qwen3_vl_moe",
        "tie_word_embeddings": False,
        "text_config": {**QWEN3_VL.config["text_config"], "model_type": "qwen3_vl_moe_text", **EXPERTS},
        "vision_config": {**QWEN3_VL.config["vision_config"], "model_type": "qwen3_vl_moe_vision"},
    },
)


def _with_experts(dense: TinyFamily) -> dict[str, Any]:
    """Return the configuration of the text model of Qwen3.5 with a shared expert and others in the place of the FFN."""
    own = {"model_type": "qwen3_5_moe_text", "shared_expert_intermediate_size": 64, **EXPERTS}
    text = {**dense.config["text_config"], "tie_word_embeddings": False, **own}
    return {key: value for key, value in text.items() if key != "intermediate_size"}


QWEN3_5_MOE = replace(
    QWEN3_5,
    name="qwen3.5-moe",
    config={
        **QWEN3_5.config,
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "tie_word_embeddings": False,
        "text_config": _with_experts(QWEN3_5),
        "vision_config": {**QWEN3_5.config["vision_config"], "model_type": "qwen3_5_moe_vision"},
    },
)
MINICPM_V_4_7_MOE = replace(
    MINICPM_V_4_7,
    name="minicpm-v-4.7-moe",
    config={**MINICPM_V_4_7.config, "tie_word_embeddings": False, "text_config": _with_experts(MINICPM_V_4_7)},
)
EXPERT_FAMILIES = [QWEN3_VL_MOE, QWEN3_5_MOE, MINICPM_V_4_7_MOE]  # without ONNX
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SMOLVLM_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<end_of_utterance>"]
SMOLVLM_SPECIAL_TOKENS += ["<fake_token_around_image>", "<global-img>"]
SMOLVLM_SPECIAL_TOKENS += [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
SMOLVLM2 = TinyFamily(
    "smolvlm2",
    {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "image_token_id": "<image>",
        "scale_factor": 2,
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "vocab_size": 320,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "smolvlm_vision",
            "hidden_size": 64,
            "intermediate_size": 144,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "image_size": 56,
            "patch_size": 14,
        },
    },
    {
        "image_processor_type": "SmolVLMImageProcessor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_image_splitting": True,
        "do_pad": True,
        "max_image_size": {"longest_edge": 56},
        "size": {"longest_edge": 168},
        "resample": 1,
    },
    TinyTokenizer(
        SMOLVLM_SPECIAL_TOKENS,
        chat_template=SMOLVLM_TEMPLATE,
        settings={"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"},
        more_words=("\n\n",),
        splits_digits=True,
    ),
)
QWEN_OMNI_SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
]
QWEN_OMNI_SPECIAL_TOKENS += ["<|vision_bos|>", "<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>"]
QWEN2_5_OMNI = TinyFamily(
    "qwen2.5-omni",
    {
        "architectures": ["Qwen2_5OmniModel"],
        "model_type": "qwen2_5_omni",
        "thinker_config": {
            "model_type": "qwen2_5_omni_thinker",
            "audio_token_index": "<|AUDIO|>",
            "image_token_index": "<|IMAGE|>",
            "video_token_index": "<|VIDEO|>",
            "audio_start_token_id": "<|audio_bos|>",
            "audio_end_token_id": "<|audio_eos|>",
            "vision_start_token_id": "<|vision_bos|>",
            "vision_end_token_id": "<|vision_eos|>",
            "position_id_per_seconds": 25,
            "seconds_per_chunk": 2,
            "text_config": {
                "model_type": "qwen2_5_omni_text",
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 320,
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1000000.0,
                "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [4, 6, 6]},
                "hidden_act": "silu",
                "tie_word_embeddings": False,
                "torch_dtype": "bfloat16",
            },
            "vision_config": {
                "model_type": "qwen2_5_omni_vision_encoder",
                "depth": 3,
                "hidden_size": 64,
                "out_hidden_size": 128,
                "intermediate_size": 140,
                "num_heads": 2,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [2],
            },
            "audio_config": {
                "model_type": "qwen2_5_omni_audio_encoder",
                "d_model": 64,
                "encoder_layers": 2,
                "encoder_attention_heads": 4,
                "encoder_ffn_dim": 128,
                "num_mel_bins": 32,
                "max_source_positions": 1500,
                "n_window": 100,
                "output_dim": 128,
            },
        },
        "talker_config": {"model_type": "qwen2_5_omni_talker"},
        "token2wav_config": {"model_type": "qwen2_5_omni_token2wav"},
        "enable_audio_output": True,
    },
    {
        **QWEN_VL_PREPROCESSOR,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 32,
        "chunk_length": 30,
    },
    TinyTokenizer(QWEN_OMNI_SPECIAL_TOKENS, settings={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    extra_tensors={
        "talker.thinker_to_talker_proj.bias": torch.ones(4).bfloat16(),
        "token2wav.code2wav_dit_model.proj.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(3)),
    },
    llama_cpp_config={"thinker_config": {"text_config": {"rms_norm_eps": 1e-20}}},
)
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
INTERNVL = TinyFamily(
    "internvl",
    {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "image_token_id": "<IMG_CONTEXT>",
        "image_seq_length": 4,
        "downsample_ratio": 0.5,
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "vocab_size": 320,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
        },
        "vision_config": {
            "model_type": "internvl_vision",
            "attention_bias": True,
            "hidden_size": 64,
            "intermediate_size": 144,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "image_size": [56, 56],
            "patch_size": [14, 14],
        },
    },
    {
        "image_processor_type": "GotOcr2ImageProcessor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "crop_to_patches": True,
        "max_patches": 6,
        "size": {"height": 56, "width": 56},
    },
    TinyTokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
        chat_template=INTERNVL_TEMPLATE,
        settings={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- if messages[0]['content'] is string -%}"
    "{%- set prefix = messages[0]['content'] + '\n\n' -%}{%- else -%}"
    "{%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}"
    "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set prefix = '' -%}{%- set loop_messages = messages -%}"
    "{%- endif -%}{%- for message in loop_messages -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}"
    "{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
GEMMA_3 = TinyFamily(
    "gemma-3",
    {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "image_token_index": "<image_soft_token>",
        "boi_token_index": "<start_of_image>",
        "eoi_token_index": "<end_of_image>",
        "mm_tokens_per_image": 4,
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "vocab_size": 320,
            "max_position_embeddings": 2048,
            "query_pre_attn_scalar": 32,
            "sliding_window": 10,
            "sliding_window_pattern": 2,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 144,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
        },
    },
    {
        "image_processor_type": "Gemma3ImageProcessor",
        "do_convert_rgb": None,
        "do_pan_and_scan": None,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_seq_length": 4,
        "resample": 2,
        "size": {"height": 56, "width": 56},
    },
    TinyTokenizer(
        ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"],
        "",
        GEMMA_TEMPLATE,
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        keeps_start=True,
    ),
)
MINICPM_O_2_6 = TinyFamily(
    "minicpm-o-2.6",
    {
        **CONFIG,
        "model_type": "minicpmo",
        "version": "2.6",
        "audio_config": {
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "num_mel_bins": 32,
            "max_source_positions": 1500,
        },
        "audio_pool_step": 2,
        "audio_chunk_length": 1.0,
        "tts_config": {},
    },
    {**PREPROCESSOR, "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 32},
    TinyTokenizer([*SPECIAL_TOKENS, "<|audio_start|>", "<|audio_end|>"], settings=TOKENIZER.settings),
    extra_tensors={
        "tts.emb_text.weight": torch.ones(3, 4).bfloat16(),
        "tts.dvae.coef": torch.randn(5, generator=torch.Generator().manual_seed(1)),
    },
)
LFM_TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif item['type'] == 'text' -%}{{- item['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
LFM_SPECIAL_TOKENS = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
LFM_SPECIAL_TOKENS += ["<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"]
LFM_SPECIAL_TOKENS += [f"<|img_row_{row}_col_{column}|>" for row in range(1, 4) for column in range(1, 4)]
LFM2_VL = TinyFamily(
    "lfm2-vl",
    {
        "architectures": ["Lfm2VlForConditionalGeneration"],
        "model_type": "lfm2_vl",
        "image_token_id": "<image>",
        "downsample_factor": 2,
        "projector_hidden_size": 96,
        "text_config": {
            "model_type": "lfm2",
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 320,
            "max_position_embeddings": 4096,
            "norm_eps": 1e-5,
            "conv_L_cache": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "rope_theta": 1000000.0,
        },
        "vision_config": {
            "model_type": "siglip2_vision_model",
            "hidden_size": 64,
            "intermediate_size": 144,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_patches": 16,
            "patch_size": 16,
            "vision_use_head": False,
        },
    },
    {
        "image_processor_type": "Lfm2VlImageProcessorFast",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "encoder_patch_size": 16,
        "tile_size": 512,
        "min_image_tokens": 64,
        "max_image_tokens": 256,
    },
    TinyTokenizer(
        LFM_SPECIAL_TOKENS,
        SPLIT_REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|"),
        LFM_TEMPLATE,
        {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"},
    ),
)
TINY_FAMILIES = [
    TinyFamily(
        "minicpm-v-2.0",
        MINICPM_V_2_CONFIG,
        None,
        TinyTokenizer(
            ["<image>", "</image>", "<slice>", "</slice>"],
            "",
            None,
            {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        ),
    ),
    TinyFamily(
        "minicpm-v-2.5",
        {
            **CONFIG,
            "version": "2.5",
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "vision_config": {**CONFIG["vision_config"], "model_type": "idefics2"},
        },
        {**PREPROCESSOR, "use_image_id": False, "version": 2.5},
        TinyTokenizer(
            LLAMA_3_SPECIAL_TOKENS,
            SPLIT_REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|"),
            LLAMA_3_TEMPLATE,
            {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "unk_token": "<unk>"},
        ),
    ),
    TinyFamily("minicpm-v-2.6", CONFIG, PREPROCESSOR),
    TinyFamily(
        "minicpm-v-4.0",
        {
            **CONFIG,
            "version": 4.0,
            "rope_theta": 10000.0,
            "head_dim": 48,
            "rope_scaling": {
                "rope_type": "longrope",
                "long_factor": [1 + 0.1 * number for number in range(24)],
                "short_factor": [1 + 0.05 * number for number in range(24)],
                "original_max_position_embeddings": 2048,
            },
        },
        {**PREPROCESSOR, "version": 4.0},
        MINICPM_4_TOKENIZER,
    ),
    TinyFamily("minicpm-v-4.5", {**CONFIG, "version": 4.5, "head_dim": 48}, {**PREPROCESSOR, "version": 4.5}),
    MINICPM_O_2_6,
    QWEN2_VL,
    replace(
        QWEN2_VL,
        name="qwen2.5-vl",
        config={
            **QWEN2_VL.config,
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "vision_config": {
                "depth": 3,
                "hidden_size": 64,
                "out_hidden_size": 128,
                "intermediate_size": 140,  # not a multiple of 32, like the published 3420
                "num_heads": 2,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [2],
            },
        },
    ),
    QWEN3_VL,
    QWEN3_5,
    SMOLVLM2,
    QWEN2_5_OMNI,
    INTERNVL,
    GEMMA_3,
    LFM2_VL,
    MINICPM_V_4_6,
    replace(
        MINICPM_V_4_6,
        config={**MINICPM_V_4_6.config, "downsample_mode": "4x"},
        preprocessor={**(MINICPM_V_4_6.preprocessor or {}), "downsample_mode": "4x"},
        variant="4x",
    ),
    MINICPM_V_4_7,
    TinyFamily(
        "minicpm3",
        {
            "architectures": ["MiniCPM3ForCausalLM"],
            "hidden_size": 512,  # twice dim_model_base, for a logits divisor of 2
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "vocab_size": 320,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "q_lora_rank": 64,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 256,
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
            "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": [1 + 0.1 * number for number in range(8)],
                "short_factor": [1 + 0.05 * number for number in range(8)],
                "original_max_position_embeddings": 2048,
            },
        },
        None,
        MINICPM_4_TOKENIZER,
    ),
]


def without_expert(path: Path, expert: int) -> Path:
    """Give the router of the first layer weights that never select an expert."""
    for shard in path.glob("*.safetensors"):
        tensors = load_file(shard)
        for name in filter(lambda name: name.endswith("layers.0.mlp.gate.weight"), tensors):
            # The other routers read the double of opposite rows: at least one of two is positive.
            rows = tensors[name]
            rows[1::2] = -rows[0::2]
            rows[expert] = 0
            rows[expert - 1] = 0
            rows[(expert + 1) % len(rows)] *= 2
        save_file(tensors, shard, metadata={"format": "pt"})
    return path
