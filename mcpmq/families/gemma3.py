"""Gemma 3: SigLIP on images of one size, a projector that averages squares of patches, and Gemma."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import ConfigSchema, validate_config
from mcpmq.families.family import Architecture, Family, SmoothingMapping, TensorSpec, VisionShape
from mcpmq.families.gemma_language import GemmaConfig
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.siglip import DefaultSiglipConfig, siglip_specs
from mcpmq.families.smoothing_mappings import OFFSET_DECODER, SIGLIP
from mcpmq.families.tensors import decoder_specs, with_module_prefixes

# Hub name prefix -> prefix in the torch module.
MODULE_PREFIXES = {
    "language_model.model.": "model.language_model.",
    "language_model.": "",
    "vision_tower.vision_model.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
CAUSAL_IMAGES = "runtimes that do not give the decoder its input `token_type_ids` apply a causal mask to image tokens"
PROJECTOR = "model.multi_modal_projector"  # in the torch module


class _Config(ConfigSchema):
    mm_tokens_per_image: PositiveInt = Field(default=256, le=16384)


def _parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range, or a feature is not supported.
    """
    text = validate_config(GemmaConfig, GemmaConfig.normalize(config))
    return Architecture(text.to_shape("gemma3", bidirectional_images=True), _vision(config))


def _vision(config: Mapping[str, Any]) -> VisionShape:
    vision = validate_config(DefaultSiglipConfig, config.get("vision_config") or {})
    tokens, grid = validate_config(_Config, config).mm_tokens_per_image, vision.image_size // vision.patch_size
    side = int(tokens**0.5)
    if side**2 != tokens or grid % side:
        raise CheckpointError(
            f"`config.json` has images of {grid}x{grid} patches, which are not averaged to a square of"
            f" {tokens} tokens (`mm_tokens_per_image`)",
            "compare it with the published file",
        )
    sizes = {"slice_resolution": vision.image_size, "spatial_merge_size": grid // side, "num_queries": tokens}
    return vision.to_shape("siglip-pooled", **sizes)


def _tensor_specs(architecture: Architecture) -> tuple[TensorSpec, ...]:
    specs = (
        *siglip_specs(architecture.required_vision, "vision_tower.vision_model", position_role="other"),
        *_projector_specs(architecture, "multi_modal_projector"),
        *decoder_specs(architecture.language, "language_model.model", "language_model.lm_head.weight"),
    )
    return with_module_prefixes(specs, MODULE_PREFIXES)


def _projector_specs(architecture: Architecture, hub_name: str) -> Iterator[TensorSpec]:
    width = architecture.required_vision.hidden_size
    yield TensorSpec("projector.norm", f"{hub_name}.mm_soft_emb_norm.weight", (width,))
    matrix = (width, architecture.language.hidden_size)  # [in, out]
    yield TensorSpec("projector.out", f"{hub_name}.mm_input_projection_weight", matrix, "matrix", transposed=True)


GEMMA_3 = Family(
    name="gemma-3",
    hub_ids=("google/gemma-3-4b-it", "google/gemma-3-12b-it", "google/gemma-3-27b-it"),
    matches=lambda config: config.get("model_type") == "gemma3",
    parse_architecture=_parse_architecture,
    tensor_specs=_tensor_specs,
    inputs_module="mcpmq.families.gemma_inputs",
    prompt_format=PromptFormat(
        supports_video=False,
        end_of_turn="<end_of_turn>",
        image_token="<image_soft_token>",
        uses_image_id=False,
        image_placeholder="<start_of_image>",
        image_markers=(1, 1),
    ),
    torch_builder="mcpmq.families.modeling_transformers:gemma3",
    caveats=(("onnx", CAUSAL_IMAGES),),
    input_from=((f"{PROJECTOR}.mm_input_projection_weight", f"{PROJECTOR}.mm_soft_emb_norm"),),
    smoothing_mappings=(
        *OFFSET_DECODER,
        *SIGLIP,
        SmoothingMapping("projector", "norm", ("out",), offset_norm=True),
    ),
)
