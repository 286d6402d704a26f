"""SmolVLM2: SigLIP on tiles of one size, a connector that merges squares of patches, and Llama."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt

from mcpmq.families.config_schema import ConfigSchema, check_unsupported_keys, validate_config
from mcpmq.families.family import Architecture, Family, TensorSpec
from mcpmq.families.language import LanguageConfig, normalize_text_config
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.siglip import TiledSiglipConfig, siglip_specs
from mcpmq.families.smoothing_mappings import DECODER, SIGLIP
from mcpmq.families.tensors import decoder_specs, matrix_specs

NAME = "smolvlm2"


class _Language(LanguageConfig):
    model_type: Literal["llama"] = "llama"
    max_position_embeddings: PositiveInt = 2048


class _Config(ConfigSchema):
    scale_factor: PositiveInt = Field(default=2, le=16)


def _parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range, or a feature is not supported.
    """
    text = normalize_text_config(config)
    check_unsupported_keys(text, NAME, "attention_bias", "mlp_bias")
    language = validate_config(
        _Language, {**text, "model_type": (config.get("text_config") or {}).get("model_type", "llama")}
    )
    scale = validate_config(_Config, config).scale_factor
    vision = validate_config(TiledSiglipConfig, config.get("vision_config") or {}).to_tiles(scale)
    return Architecture(language.to_shape("llama", permuted_rope=True), vision)


def _tensor_specs(architecture: Architecture) -> tuple[TensorSpec, ...]:
    vision, language = architecture.required_vision, architecture.language
    square = vision.hidden_size * vision.spatial_merge_size**2
    connector = "model.connector.modality_projection.proj"
    return (
        *siglip_specs(vision, "model.vision_model", position_role="other"),
        *matrix_specs("projector.out", connector, (language.hidden_size, square), bias=False),
        *decoder_specs(language, "model.text_model"),
    )


SMOLVLM2 = Family(
    name=NAME,
    hub_ids=(
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    ),
    matches=lambda config: config.get("model_type") == "smolvlm",
    parse_architecture=_parse_architecture,
    tensor_specs=_tensor_specs,
    inputs_module="mcpmq.families.smolvlm_inputs",
    prompt_format=PromptFormat(
        supports_video=False,
        end_of_turn="<end_of_utterance>",
        image_token="<image>",
        uses_image_id=False,
        image_placeholder="<image>",
        answer_prefix=" ",
        image_markers=(2, 1),
    ),
    torch_builder="mcpmq.families.modeling_transformers:smolvlm",
    smoothing_mappings=(*DECODER, *SIGLIP),
)
