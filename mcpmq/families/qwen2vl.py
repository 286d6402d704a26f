"""Qwen2-VL: a vision encoder for any resolution with rotary embeddings, a merger, and Qwen2 with M-RoPE."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.families.config_schema import HiddenSize, validate_config
from mcpmq.families.family import Architecture, Family, TensorSpec
from mcpmq.families.language import LanguageConfig, normalize_text_config
from mcpmq.families.language_shape import LanguageShape
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.qwen_vision import QwenVisionConfig, patch_embedding_spec, qwen_layer_specs, qwen_merger_specs
from mcpmq.families.smoothing_mappings import DECODER, QWEN_VISION
from mcpmq.families.tensors import decoder_specs, with_module_prefixes

DEFAULT_MROPE_SECTIONS = (
    16,
    24,
    24,
)  # frequencies for time, row and column
# Hub name prefix -> prefix in the torch module.
MODULE_PREFIXES = {"model.": "model.language_model.", "visual.": "model.visual."}
DEFAULT_SPECIAL_TOKENS = tuple((name, "<|endoftext|>") for name in ("eos_token", "pad_token", "unk_token"))
FFN_NAMES = {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
MERGER_NAMES = ("ln_q", "mlp.0", "mlp.2")


class _Language(LanguageConfig):
    default_rope_theta: ClassVar[float] = 1e6
    rms_norm_eps: PositiveFloat = 1e-5


class _Vision(QwenVisionConfig):
    hidden_act: Literal["quick_gelu"] = "quick_gelu"
    embed_dim: HiddenSize = 1280
    mlp_ratio: PositiveInt = Field(default=4, le=16)


def _parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range.
    """
    sizes = validate_config(_Vision, config.get("vision_config") or {})
    vision = sizes.to_shape("qwen2-vl", sizes.embed_dim, sizes.embed_dim * sizes.mlp_ratio)
    return Architecture(parse_language(config), vision)


def parse_language(config: Mapping[str, Any], schema: type[LanguageConfig] = _Language) -> LanguageShape:
    """Read the hyperparameters of Qwen2 with M-RoPE; `schema` has the defaults of the family."""
    sizes = validate_config(schema, normalize_text_config(config))
    return sizes.to_shape(
        "qwen2vl", attention_bias=True, mrope_sections=sizes.rope.mrope_section or DEFAULT_MROPE_SECTIONS
    )


def tensor_specs(architecture: Architecture, ffn_names: Mapping[str, str] = FFN_NAMES) -> tuple[TensorSpec, ...]:
    """Return all tensors; `ffn_names` maps common names of the vision FFN matrices to hub names."""
    specs = (
        *_vision_specs(architecture, ffn_names),
        *qwen_merger_specs(architecture, MERGER_NAMES, "projector", "visual.merger"),
        *decoder_specs(architecture.language, "model"),
    )
    return with_module_prefixes(specs, MODULE_PREFIXES)


def _vision_specs(architecture: Architecture, ffn: Mapping[str, str]) -> Iterator[TensorSpec]:
    shape = architecture.required_vision
    yield patch_embedding_spec(shape, "visual")
    for layer in range(shape.num_layers):
        yield from qwen_layer_specs(shape, ffn, layer, "visual")


QWEN2_VL = Family(
    name="qwen2-vl",
    hub_ids=("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"),
    matches=lambda config: config.get("model_type") == "qwen2_vl",
    parse_architecture=_parse_architecture,
    tensor_specs=tensor_specs,
    inputs_module="mcpmq.families.qwenvl_inputs",
    prompt_format=PromptFormat(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        content_separator="",
        uses_image_id=False,
        default_special_tokens=DEFAULT_SPECIAL_TOKENS,
    ),
    torch_builder="mcpmq.families.modeling_transformers:qwen2_vl",
    uses_mrope=True,
    caveats=(("gguf", "llama.cpp uses a norm epsilon of 0 for this model and ignores the value in the file"),),
    smoothing_mappings=(*DECODER, *QWEN_VISION),
)
